"""Groups of options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bgectl.options.base import Flag, Options
from bgectl.presets import names, nearest

Pooling = Literal["cls", "mean", "last_token"]
Device = Annotated[list[str], Flag(pattern=r"auto|cpu|cuda|mps|npu|(cuda|npu):\d+", metavar="DEVICE...")]
Score = Literal["dense", "sparse", "colbert", "hybrid"]
InputFile = Annotated[Path, Flag("--input", "-i", positional=True)]
OutputFile = Annotated[Path, Flag("--output", "-o", positional=True)]


Presets = Annotated[list[str], Flag(metavar="NAME...", pattern="|".join(names()))]


def known_presets(presets: list[str]) -> list[str]:
    """Check the names of presets.

    Raises:
        ValueError: There is none of a name.
    """
    for name in presets:
        if name not in names():
            raise ValueError(f"no preset `{name}`; {nearest(name)}")
    return presets


class PresetOptions(Options):
    """Values that belong together, by the name of a model or a purpose; `resolve` puts them under the user's own."""

    panel: ClassVar[str] = "Preset"

    preset: Presets = Field(
        default_factory=list, json_schema_extra={"items": {"type": "string", "enum": list(names())}}
    )
    """Take the values that suit a model or a purpose as defaults; `bgectl presets` lists them. Of several, the later
    win over the earlier; bgectl.yaml, --config and flags win over all."""

    _known = field_validator("preset")(known_presets)

    @classmethod
    def gives_way(cls, given: Mapping[str, Any]) -> set[str]:
        """Options whose value in a preset falls away beside what the user gave: two that exclude each other."""
        return set()


class HubOptions(Options):
    """Where models come from."""

    panel: ClassVar[str] = "Model files"

    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    cache_dir: Path | None = None
    """Folder for downloaded models."""
    token: str | None = None
    """Access token of the hub; the environment variable HF_TOKEN works too and stays out of shell histories."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


class DeviceOptions(Options):
    """Where and in which precision a model runs for inference."""

    panel: ClassVar[str] = "Devices"

    devices: Device = Field(default_factory=list)
    """Devices to run on, such as `cuda:0 cuda:1`; each holds a copy of the model. Default: a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` is float16 on a GPU, bfloat16 there for a decoder, and on a CPU float32, but for
    mining and scoring bfloat16 where the CPU computes in it (AVX512-BF16, AMX)."""
    use_fp16: bool = False
    """The same as `--dtype float16`."""
    use_bf16: bool = False
    """The same as `--dtype bfloat16`."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens in one batch, padding included: batches of long texts are smaller. Default: 2048 on a CPU, else 65536."""


class LaunchOptions(Options):
    """How many processes work together, and on which machines. They are started by torch.distributed.run, once: under
    torchrun or SLURM the processes that are there already are taken.
    """

    panel: ClassVar[str] = "Processes"

    gpus: int | None = Field(None, ge=1)
    """GPUs of this machine to use, a process each."""
    nproc: Annotated[int | None, Flag("--nproc-per-node")] = Field(None, ge=1)
    """Processes on this machine; the same as --gpus where the device is a GPU."""
    nnodes: int = Field(1, ge=1)
    """Machines that work together; the same command is run on each."""
    node_rank: int | None = Field(None, ge=0)
    """Which of the machines this is; 0 is the one that --rdzv-endpoint names."""
    rdzv_endpoint: Annotated[str | None, Flag(metavar="HOST:PORT")] = None
    """Where the machines meet: a host and a free port of it."""
    rdzv_id: str = "bgectl"
    """Name of the meeting; different runs that meet at one endpoint take different ones."""
    max_restarts: int = Field(0, ge=0)
    """Start all processes again, so often, when one of them fails; what was done is not done again."""

    @model_validator(mode="after")
    def _machines(self) -> Any:
        if self.gpus is not None and self.nproc is not None and self.gpus != self.nproc:
            raise ValueError("--gpus and --nproc exclude each other")
        if self.gpus is not None and self.wanted_device == "cpu":
            raise ValueError("--gpus and a CPU exclude each other; --nproc counts processes on a CPU")
        if self.nnodes > 1 and self.rdzv_endpoint is None:
            raise ValueError("--nnodes needs --rdzv-endpoint HOST:PORT, the same on all machines")
        if self.node_rank is not None and self.node_rank >= self.nnodes:
            raise ValueError(f"--node-rank counts from 0; with --nnodes {self.nnodes} it is less than {self.nnodes}")
        return self

    @property
    def wanted_device(self) -> str:
        """`cpu`, `cuda` or `auto`."""
        return "auto" if self.gpus is None else "cuda"

    @property
    def processes(self) -> int:
        """Processes asked for on this machine."""
        return self.gpus or self.nproc or 1


class WorkOptions(LaunchOptions, DeviceOptions):
    """Where intermediate results are kept, and which processes compute them."""

    panel: ClassVar[str] = "Work folder"

    work_folder: Path | None = None
    """Folder where embeddings and scores are kept: what is in it is not computed again, by this run after it was
    stopped or by another. Default: `.bgectl` beside the output."""
    shard_size: int | None = Field(None, ge=1)
    """Texts, or pairs, in one file there: what is lost at most when a process is killed, and what is searched at once.
    Default: 8192 texts, 2048 pairs."""
    keep_work: bool = True
    """Leave them there at the end; `--no-keep-work` deletes what this run used."""

    @property
    def wanted_device(self) -> str:
        """`cpu`, `cuda` or `auto`."""
        if self.devices == ["cpu"]:
            return "cpu"
        return "auto" if self.gpus is None else "cuda"


ASIDE = frozenset({
    *LaunchOptions.model_fields, "token", "cache_dir", "cache_path", "work_folder", "keep_work", "shard_size",
    "devices", "batch_tokens", "search_batch_size", "reranker_batch_size", "workers", "dataloader_num_workers",
    "use_gpu_for_searching", "output_file", "output_dir", "overwrite_output_dir", "resume", "report", "plot",
    "format", "max_problems", "logging_steps", "save_steps", "save_total_limit", "report_to", "run_name", "dry_run",
    "probe", "check",
})  # fmt: skip
"""Options of where and how something is computed and written, which decide nothing of what is in it but rounding."""


def deciding(options: Options) -> dict[str, Any]:
    """The options that decide what comes out, as JSON knows them."""
    return options.model_dump(mode="json", exclude=set(ASIDE))


class PromptOptions(Options):
    """The instructions put before queries and passages."""

    panel: ClassVar[str] = "Prompts"

    query_instruction_for_retrieval: str | None = None
    """Instruction for queries. Default: the model's own, if it has one; an empty text turns it off."""
    passage_instruction_for_retrieval: str | None = None
    """Instruction for passages. Default: the model's own, if it has one."""


def newlines(text: str) -> str:
    r"""A text from a command line, where the two characters `\n` stand for a newline."""
    return text.replace("\\n", "\n")


def with_places(text: str, *values: str) -> str:
    """Check a format that is to hold `{}` once for each value; see `newlines`.

    Raises:
        ValueError: There are more places or fewer, or a brace stands alone.
    """
    text = newlines(text)
    marks = [chr(number) for number in range(len(values))]
    try:
        shown = text.format(*marks)
    except (IndexError, KeyError, ValueError):
        shown = ""
    if any(shown.count(mark) != 1 for mark in marks):
        times = {2: "twice", 3: "three times"}[len(values)]
        raise ValueError(f"must hold `{{}}` {times}: {', then '.join(values)}")
    return text


def two_places(text: str | None) -> str | None:
    """Check an instruction format; None stays.

    Raises:
        ValueError: See `with_places`.
    """
    return None if text is None else with_places(text, "the instruction", "the text")


class EmbedderClassOptions(Options):
    """What kind of embedder it is, and the examples that one kind takes."""

    panel: ClassVar[str] = "Embedder"

    embedder_model_class: (
        Literal["encoder-only-base", "encoder-only-m3", "decoder-only-base", "decoder-only-icl"] | None
    ) = None
    """Kind of the embedder. Default: seen from its files; an icl embedder that bgectl did not train has to be named."""
    examples_for_task: Path | None = None
    """Examples to put before each query of an icl embedder: lines, or a JSON list, of
    `{"instruct": …, "query": …, "response": …}`; without `instruct` the query's instruction is taken."""
    examples_instruction_format: str = "<instruct>{}\n<query>{}\n<response>{}"
    """How instruction, query and response of an example are joined."""

    @field_validator("examples_instruction_format")
    @classmethod
    def _places(cls, text: str) -> str:
        return with_places(text, "the instruction", "the query", "the response")


class HybridOptions(Options):
    """The sum of an M3 model's scores."""

    panel: ClassVar[str] = "Prompts"

    weights: Annotated[
        list[Annotated[float, Field(ge=0)]], Flag(pattern=r"\d*\.?\d+", metavar="DENSE SPARSE COLBERT")
    ] = Field(default_factory=lambda: [1.0, 0.3, 1.0], min_length=3, max_length=3)
    """What each score counts in the hybrid one, which is their weighted mean."""

    @field_validator("weights")
    @classmethod
    def _some(cls, weights: list[float]) -> list[float]:
        if not sum(weights):
            raise ValueError("one of the weights is above 0")
        return weights


class EmbedderOptions(EmbedderClassOptions, PromptOptions):
    """An embedder used for inference."""

    panel: ClassVar[str] = "Embedder"

    embedder_name_or_path: str
    """Name on the hub or folder of the embedder."""
    pooling_method: Pooling | None = None
    """How token vectors become one. Default: seen from the model's files, else known for its name, else cls."""
    normalize_embeddings: bool | None = None
    """Scale vectors to length 1. Default: seen from the model's files, else yes."""
    query_instruction_format_for_retrieval: str | None = None
    """How instruction and query are joined. Default: the model's own, else `{}{}`."""
    passage_instruction_format_for_retrieval: str = "{}{}"
    """How instruction and passage are joined."""
    embedder_query_max_length: int = Field(512, ge=4)
    """Tokens of a query; what is longer is cut."""
    embedder_passage_max_length: int = Field(512, ge=4)
    """Tokens of a passage; what is longer is cut."""
    embedder_batch_size: int = Field(3000, ge=1)
    """Texts in one batch at most; `--batch-tokens` usually binds first."""

    _format = field_validator("query_instruction_format_for_retrieval", "passage_instruction_format_for_retrieval")(
        two_places
    )
