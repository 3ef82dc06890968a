"""Groups of options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from bgectl.options.base import Flag, Options

Pooling = Literal["cls", "mean", "last_token"]
Device = Annotated[list[str], Flag(pattern=r"auto|cpu|cuda|mps|npu|(cuda|npu):\d+", metavar="DEVICE...")]
Score = Literal["dense", "sparse", "colbert", "hybrid"]
InputFile = Annotated[Path, Flag("--input", "-i", positional=True)]
OutputFile = Annotated[Path, Flag("--output", "-o", positional=True)]


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
    """Precision of the weights; `auto` is float16 on a GPU, bfloat16 there for a decoder, and float32 on a CPU."""
    use_fp16: bool = False
    """The same as `--dtype float16`."""
    use_bf16: bool = False
    """The same as `--dtype bfloat16`."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens in one batch, padding included: batches of long texts are smaller. Default: 2048 on a CPU, else 65536."""


class PromptOptions(Options):
    """The instructions put before queries and passages."""

    panel: ClassVar[str] = "Prompts"

    query_instruction_for_retrieval: str | None = None
    """Instruction for queries. Default: the model's own, if it has one; an empty text turns it off."""
    passage_instruction_for_retrieval: str | None = None
    """Instruction for passages. Default: the model's own, if it has one."""


def two_places(text: str) -> str:
    r"""Check an instruction format: `{}` for the instruction, then `{}` for the text; `\n` is a newline.

    Raises:
        ValueError: There are not two places, or a brace stands alone.
    """
    text = text.replace("\\n", "\n")
    try:
        shown = text.format("\0", "\1")
    except (IndexError, KeyError, ValueError):
        shown = ""
    if shown.count("\0") != 1 or shown.count("\1") != 1:
        raise ValueError("must hold `{}` twice: the instruction, then the text")
    return text


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


class EmbedderOptions(PromptOptions):
    """An embedder used for inference."""

    panel: ClassVar[str] = "Embedder"

    embedder_name_or_path: str
    """Name on the hub or folder of the embedder."""
    embedder_model_class: Literal["encoder-only-base", "encoder-only-m3", "decoder-only-base"] | None = None
    """Kind of the embedder. Default: seen from its files."""
    pooling_method: Pooling | None = None
    """How token vectors become one. Default: seen from the model's files, else known for its name, else cls."""
    normalize_embeddings: bool | None = None
    """Scale vectors to length 1. Default: seen from the model's files, else yes."""
    query_instruction_format_for_retrieval: str = "{}{}"
    """How instruction and query are joined."""
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
