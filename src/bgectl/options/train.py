"""Options of `bgectl train …`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bgectl.options.base import Flag, Options
from bgectl.options.common import HubOptions, LaunchOptions, Pooling, PresetOptions, newlines, two_places


def _flags(names: Iterable[str]) -> str:
    """`--one and --other`."""
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


def pairs_of(given: Any) -> Any:
    """A mapping from `NAME=VALUE` words, each value read as YAML; anything else as it is.

    Raises:
        ValueError: A word has no `=`.
    """
    if not isinstance(given, list):
        return given
    import yaml

    pairs: dict[str, Any] = {}
    for item in given:
        if isinstance(item, dict):
            pairs.update(item)
            continue
        name, equals, value = str(item).partition("=")
        if not equals:
            raise ValueError("takes NAME=VALUE pairs")
        pairs[name.replace("-", "_")] = yaml.safe_load(value)
    return pairs


class ModelOptions(Options):
    """The model that training starts from."""

    panel: ClassVar[str] = "Model"

    model_name_or_path: Annotated[str, Flag("--model", "-m")]
    """Name on the hub or folder of the model to start from."""
    config_name: str | None = None
    """Name or folder of the configuration, where it is not the model's."""
    tokenizer_name: str | None = None
    """Name or folder of the tokenizer, where it is not the model's."""
    sentence_pooling_method: Pooling | None = None
    """How token vectors become one. Default: seen from the model's files, else known for its name, else cls."""
    normalize_embeddings: bool = True
    """Scale vectors to length 1 before they are compared."""
    fix_position_embedding: bool = False
    """Freeze the position embeddings."""


class DataOptions(Options):
    """Training data: which rows, and what a row becomes."""

    panel: ClassVar[str] = "Data"

    train_data: Annotated[list[Path], Flag("-t", metavar="PATH...")] = Field(min_length=1)
    """Files (.json, .jsonl, also .gz and .zst) or directories of them."""
    query_instruction_for_retrieval: str | None = None
    """Instruction for queries; a row's own `prompt` replaces it. Saved with the model. Default: none."""
    passage_instruction_for_retrieval: str | None = None
    """Instruction for passages. Saved with the model. Default: none."""
    cache_path: Path | None = None
    """Folder that keeps unpacked copies of compressed files for further runs. Default: they go with the run."""
    train_group_size: int = Field(8, ge=1)
    """Passages for each query: one positive and the rest negatives."""
    query_max_len: int = Field(512, ge=4)
    """Tokens of a query; what is longer is cut."""
    passage_max_len: int = Field(512, ge=4)
    """Tokens of a passage; what is longer is cut."""
    pad_to_multiple_of: int | None = Field(None, ge=1)
    """Pad to a multiple of this many tokens; 8 suits tensor cores."""
    max_example_num_per_dataset: int | None = Field(None, ge=1)
    """Take a seeded sample of this many rows of each file."""
    query_instruction_format: str = "{}{}"
    """How instruction and query are joined."""
    passage_instruction_format: str = "{}{}"
    """How instruction and passage are joined."""
    shuffle_ratio: float = Field(0.0, ge=0, le=1)
    """Probability that a positive longer than 100 characters is cut in three and shuffled."""
    same_dataset_within_batch: bool = False
    """Take all rows of a step from one dataset."""
    small_threshold: int = Field(0, ge=0)
    """With same-dataset batches: files of a directory with fewer rows are merged into one dataset."""
    drop_threshold: int = Field(0, ge=0)
    """With same-dataset batches: a merged dataset with fewer rows is left out."""
    allow_empty_datasets: bool = False
    """Go on although a dataset gives no batch (it is reported either way)."""

    _format = field_validator("query_instruction_format", "passage_instruction_format")(two_places)


class LossOptions(Options):
    """The loss."""

    panel: ClassVar[str] = "Loss"

    temperature: float = Field(0.02, gt=0)
    """Similarities are divided by this."""
    knowledge_distillation: bool = False
    """Learn from `pos_scores` and `neg_scores` where rows have them."""
    kd_loss_type: Literal["kl_div", "m3_kd_loss"] = "kl_div"
    """Loss of the distillation."""
    mask_duplicates: bool = True
    """Leave a passage out of a query's negatives when it is one of the query's own positives."""
    false_negative_margin: float | None = Field(None, ge=0)
    """Leave in-batch passages out that are more similar to the query than its positive, by more than this."""
    use_mrl: bool = False
    """Train prefixes of the embedding too (Matryoshka representation learning)."""
    mrl_dims: Annotated[list[Annotated[int, Field(ge=1)]], Flag(pattern=r"\d+", metavar="DIM...")] = Field(
        default_factory=list
    )
    """Dimensions of the prefixes. Default: the whole, half, a quarter … down to 32."""
    gradient_cache: bool | None = None
    """Hold the activations of one piece of a step at a time: the same gradient in less memory, for a second forward
    pass. Default: yes where --sub-batch-size is given."""
    sub_batch_tokens: int | None = Field(None, ge=1)
    """Encode a step's texts, sorted by length, in pieces of this many tokens, padding included. Default: 1024 on a CPU,
    else 65536."""
    sub_batch_size: int | None = Field(None, ge=1)
    """Texts of a piece at most."""
    auto_sub_batch: bool = False
    """Before training, try the longest step and take the largest --sub-batch-tokens that fits, up to the one given or
    its default, with --gradient-cache where it must be; and take a step that does not fit once more in smaller
    pieces."""


class OptimOptions(Options):
    """Schedule and optimiser; names and meanings are those of transformers' TrainingArguments."""

    panel: ClassVar[str] = "Optimisation"

    learning_rate: Annotated[float, Flag("--lr")] = Field(2e-5, gt=0)
    """Highest learning rate."""
    num_train_epochs: Annotated[float, Flag("--epochs")] = Field(1.0, gt=0)
    """Passes over the data."""
    max_steps: int = -1
    """Stop after this many steps; -1 leaves it to the epochs."""
    per_device_train_batch_size: Annotated[int, Flag("--batch-size", "-b")] = Field(32, ge=1)
    """Queries in a step on each device."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Steps whose gradients are added up before the weights change."""
    warmup_ratio: float | None = Field(None, ge=0, lt=1)
    """Share of the steps in which the learning rate rises. Default: 0.1, where --warmup-steps is not given."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps in which the learning rate rises."""
    lr_scheduler_type: str = "linear"
    """Shape of the learning rate: linear, cosine, constant_with_warmup and the others of transformers."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm."""
    optim: str = "adamw_torch"
    """Optimiser, by transformers' name; adamw_torch_fused is the fastest on a GPU."""

    layerwise_lr_decay: float = Field(1.0, gt=0, le=1)
    """Each layer below the last learns by this factor slower than the one above it; the embeddings are the lowest."""
    trainer: Annotated[dict[str, Any], Flag(metavar="NAME=VALUE...", pattern=r"\w+=.*")] = Field(default_factory=dict)
    """Other arguments of transformers' TrainingArguments, by their names: a mapping in YAML."""

    @field_validator("trainer", mode="before")
    @classmethod
    def _pairs(cls, given: Any) -> Any:
        return pairs_of(given)

    @field_validator("max_steps")
    @classmethod
    def _steps(cls, steps: int) -> int:
        if steps != -1 and steps < 1:
            raise ValueError("is a number of steps, or -1")
        return steps


class RunOptions(Options):
    """Where and how the run goes, and what it leaves."""

    panel: ClassVar[str] = "Run"

    output_dir: Annotated[Path, Flag("-o")]
    """Folder for the trained model; checkpoints and logs lie in it too."""
    overwrite_output_dir: bool = False
    """Delete what an earlier run left in the folder."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the draws, the order and dropout."""
    dataloader_num_workers: int = Field(2, ge=0)
    """Processes that read and tokenise ahead."""
    dataloader_drop_last: bool = False
    """Leave out the last, smaller batch."""
    logging_steps: int = Field(10, ge=1)
    """Steps between two lines of the log."""
    save_steps: int = Field(500, ge=0)
    """Steps between two checkpoints; 0 keeps none but the final model."""
    save_total_limit: int | None = Field(2, ge=1)
    """Checkpoints kept."""
    resume: Annotated[str | None, Flag("--resume-from-checkpoint", metavar="auto|CHECKPOINT")] = None
    """Go on from a checkpoint: `auto` takes the newest whole one in the output folder and starts anew where there is
    none, or name one. The rest of the run is what it would have been."""
    dry_run: bool = False
    """Show the plan, an example of each dataset as the model will see it and an estimate of memory, and stop; see
    --probe."""
    probe: bool | None = None
    """With --dry-run: also take some real steps, the longest among them, and tell the memory they held, the largest
    --sub-batch-tokens that fits and the hours of the run. Default: yes on a GPU; a CPU takes long."""
    report_to: Annotated[list[str], Flag(metavar="NAME...")] = Field(default_factory=list)
    """Also log to tensorboard, wandb, mlflow and the others of transformers."""
    run_name: str | None = None
    """Name of the run for `--report-to`."""


class PrecisionOptions(Options):
    """What a step costs in time and memory."""

    panel: ClassVar[str] = "Precision and memory"

    bf16: bool = False
    """Compute in bfloat16; the weights stay in float32."""
    fp16: bool = False
    """Compute in float16 with loss scaling; a GPU only."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    attn_implementation: Annotated[str | None, Flag(metavar="NAME")] = None
    """Attention by transformers' name: sdpa, flash_attention_2, eager, or a kernel of the hub. Default: sdpa where the
    model has it."""
    torch_compile: bool = False
    """Compile the model with torch.compile: a slow start, faster steps."""
    deepspeed: Annotated[str | None, Flag(metavar="0|1|2|3|FILE")] = None
    """Train with DeepSpeed: the stage of ZeRO, or a JSON file of its own."""
    fsdp: bool = False
    """Cut weights, gradients and optimiser state over the processes (torch's FSDP)."""


class ProcessOptions(LaunchOptions):
    """How many processes train together, and where."""

    panel: ClassVar[str] = "Processes"

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What to train on; `auto` is a GPU if there is one."""
    use_cpu: bool = False
    """The same as `--device cpu`."""

    @model_validator(mode="after")
    def _device(self) -> Any:
        if self.use_cpu and self.device == "cuda":
            raise ValueError("--use-cpu and --device cuda exclude each other")
        return self

    @property
    def on_cpu(self) -> bool:
        """Whether a CPU is asked for."""
        return self.use_cpu or self.device == "cpu"

    @property
    def wanted_device(self) -> str:
        """`cpu`, `cuda` or `auto`."""
        return "cpu" if self.on_cpu else "cuda" if self.gpus is not None else self.device


class HeldOutOptions(Options):
    """Evaluation while training."""

    panel: ClassVar[str] = "Evaluation"

    eval_data: Path | None = None
    """Folder in BEIR layout or held-out rows; measured before, during and after, and the best weights are kept."""
    eval_split: str = "test"
    """Which qrels/<split>.tsv of it to use."""
    eval_steps: int = Field(100, ge=1)
    """Steps between two evaluations."""


class TrainOptions(
    ModelOptions, DataOptions, LossOptions, OptimOptions, RunOptions, PrecisionOptions, ProcessOptions, HeldOutOptions,
    HubOptions, PresetOptions,
):  # fmt: skip
    """What every way of training shares."""

    @model_validator(mode="after")
    def _rules(self) -> Any:
        if self.bf16 and self.fp16:
            raise ValueError("--bf16 and --fp16 exclude each other")
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("--warmup-ratio and --warmup-steps exclude each other")
        if self.mrl_dims and not self.use_mrl:
            raise ValueError("--mrl-dims needs --use-mrl")
        if self.resume is not None and self.overwrite_output_dir:
            raise ValueError("--resume and --overwrite-output-dir exclude each other")
        if self.fp16 and self.on_cpu:
            raise ValueError("--fp16 does not train on a CPU; use --bf16, or neither, there")
        if self.deepspeed is not None and self.deepspeed.isdigit() and int(self.deepspeed) > 3:
            raise ValueError("--deepspeed takes a stage of ZeRO, 0 to 3, or a JSON file")
        if self.probe is not None and not self.dry_run:
            raise ValueError("--probe needs --dry-run; a run itself tries its steps by --auto-sub-batch")
        if self.auto_sub_batch and (self.fsdp or self.deepspeed is not None):
            raise ValueError(
                "--auto-sub-batch excludes --fsdp and --deepspeed: a process that runs out of memory leaves the others "
                "waiting for its part of the weights"
            )
        if self.fsdp and self.deepspeed is not None:
            raise ValueError("--fsdp and --deepspeed exclude each other")
        if self.fsdp and self.fp16:
            raise ValueError("--fsdp trains in float32 or, with --bf16, in bfloat16")
        return self

    @classmethod
    def gives_way(cls, given: Mapping[str, Any]) -> set[str]:
        """See `PresetOptions`."""
        pairs = {"bf16": "fp16", "fp16": "bf16", "warmup_ratio": "warmup_steps", "warmup_steps": "warmup_ratio"}
        gone = {name for name, other in pairs.items() if given.get(other) not in (None, False)}
        if given.get("use_lora") is False:
            gone |= set(getattr(cls, "of_lora", ()))
        elif given.get("from_peft") is not None:
            gone |= {"lora_rank", "lora_alpha", "target_modules", "modules_to_save"}
        return gone

    @property
    def cross_device(self) -> Literal["dense", "all"] | None:
        """Which scores take the passages of all processes as candidates."""
        raise NotImplementedError

    @property
    def heads(self) -> bool:
        """Whether sparse and ColBERT heads are trained too."""
        return False


class LoraOptions(Options):
    """Low-rank adapters."""

    panel: ClassVar[str] = "LoRA"
    of_lora: ClassVar[tuple[str, ...]] = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules")
    """Options that mean nothing without adapters."""

    use_lora: bool = False
    """Train low-rank adapters in place of the encoder's own weights. The folder holds the merged model, and beside it
    the adapter alone in `adapter/`."""
    lora_rank: int = Field(64, ge=1)
    """Rank of the adapters."""
    lora_alpha: float = Field(16, gt=0)
    """What the adapters give counts alpha / rank."""
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of what goes into the adapters."""
    target_modules: Annotated[list[str], Flag(metavar="NAME...")] = Field(default_factory=list)
    """Linear layers that get adapters, by the ends of their names. Default: all."""

    @model_validator(mode="after")
    def _lora(self) -> Any:
        changed = self._changed(self.of_lora)
        if changed and not self.use_lora:
            raise ValueError(f"{_flags(changed)} needs --use-lora")
        return self

    def _changed(self, names: Iterable[str]) -> list[str]:
        """Those of the options that are not at their default."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].get_default(call_default_factory=True)]


class CrossDeviceOptions(Options):
    """Candidates of other processes."""

    panel: ClassVar[str] = "Loss"

    negatives_cross_device: bool = False
    """With several processes: the passages of all of them are negatives, with the exact gradient."""


class TrainBaseOptions(TrainOptions, CrossDeviceOptions, LoraOptions):
    """Options of `bgectl train base`."""

    @property
    def cross_device(self) -> Literal["dense", "all"] | None:
        """See `TrainOptions`."""
        return "all" if self.negatives_cross_device else None


DECODER_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj")
"""The linear layers of Mistral, Llama, Gemma 2, Qwen and their kin."""


class DecoderLoraOptions(LoraOptions):
    """Low-rank adapters of a decoder."""

    panel: ClassVar[str] = "LoRA"
    of_lora: ClassVar[tuple[str, ...]] = (
        *LoraOptions.of_lora, "modules_to_save", "from_peft", "raw_peft", "save_merged_lora_model",
    )  # fmt: skip

    use_lora: bool = True
    """Train low-rank adapters in place of the model's own weights. The output folder holds the adapter, with all that
    it takes to use it beside its base; `bgectl merge-lora` makes a whole model of both."""
    target_modules: Annotated[list[str], Flag(metavar="NAME...")] = Field(default_factory=lambda: list(DECODER_LAYERS))
    """Linear layers that get adapters, by the ends of their names."""
    modules_to_save: Annotated[list[str], Flag(metavar="NAME...")] = Field(default_factory=list)
    """Modules that are trained whole and saved with the adapter, by the ends of their names, such as norm."""
    from_peft: Annotated[str | None, Flag("--peft-model-path", metavar="ADAPTER")] = None
    """Go on with this adapter: its rank, layers and new tokens, from its weights."""
    raw_peft: Annotated[str | None, Flag(metavar="ADAPTER")] = None
    """Merge this adapter into the model first, and train a new one on top of it."""
    save_merged_lora_model: bool = False
    """Afterwards also write the whole model to `merged_model/` in the output folder."""

    @model_validator(mode="after")
    def _one_adapter(self) -> Any:
        if self.from_peft is not None:
            own = self._changed(("lora_rank", "lora_alpha", "target_modules", "modules_to_save"))
            if own:
                raise ValueError(f"{_flags(own)} cannot be given with --from-peft: the adapter has its own")
        return self


class DecoderOptions(Options):
    """The decoder that training starts from."""

    panel: ClassVar[str] = "Model"

    sentence_pooling_method: Pooling | None = None
    """How token vectors become one. Default: seen from the model's files, else last_token, the one that has seen the
    whole text."""
    additional_special_tokens: Annotated[list[str], Flag(metavar="TOKEN...")] = Field(default_factory=list)
    """Tokens to add to the vocabulary, such as '<instruct>' '<query>'; their vectors begin as the mean of the tokens
    that the text was cut into before, are trained, and are saved with the adapter."""
    use_flash_attn: bool = False
    """The same as `--attn-implementation flash_attention_2`."""
    use_slow_tokenizer: bool = False
    """Take the tokenizer's form in Python, where transformers still has one for the model."""
    load_in_4bit: bool = False
    """Hold the frozen weights in 4 bits (QLoRA); needs the package bitsandbytes: pip install 'bgectl[qlora]'."""

    @field_validator("additional_special_tokens")
    @classmethod
    def _words(cls, tokens: list[str]) -> list[str]:
        if any(not token.strip() for token in tokens):
            raise ValueError("a token is empty")
        return list(dict.fromkeys(tokens))


class TrainLlmOptions(DecoderOptions, TrainOptions, CrossDeviceOptions, DecoderLoraOptions):
    """Options of `bgectl train llm`."""

    @model_validator(mode="after")
    def _decoder(self) -> Any:
        if self.use_flash_attn and self.attn_implementation not in (None, "flash_attention_2"):
            raise ValueError("--use-flash-attn and --attn-implementation exclude each other")
        if self.sentence_pooling_method == "cls":
            raise ValueError("--sentence-pooling-method cls: a decoder's first token sees no other; last_token does")
        if self.load_in_4bit and not self.use_lora:
            raise ValueError("--load-in-4bit needs --use-lora: weights in 4 bits are not trained themselves")
        if self.load_in_4bit and self.raw_peft is not None:
            raise ValueError("--load-in-4bit and --raw-peft exclude each other; merge-lora makes one model of both")
        if self.load_in_4bit and (self.fsdp or self.deepspeed == "3"):
            raise ValueError("--load-in-4bit excludes --fsdp and --deepspeed 3: its weights are not cut over processes")
        return self

    @property
    def attention(self) -> str | None:
        """Attention by transformers' name; None for the model's own choice."""
        return "flash_attention_2" if self.use_flash_attn else self.attn_implementation

    @property
    def cross_device(self) -> Literal["dense", "all"] | None:
        """See `TrainOptions`."""
        return "all" if self.negatives_cross_device else None


class ExampleOptions(Options):
    """Examples before queries (in-context learning)."""

    panel: ClassVar[str] = "Examples"

    example_query_max_len: int = Field(64, ge=1)
    """Tokens of an example's query."""
    example_passage_max_len: int = Field(96, ge=1)
    """Tokens of an example's passage."""
    retrieval_use_examples: bool = True
    """Put examples before the queries of all rows; without it before those of symmetric types alone."""
    query_max_len: int = Field(2048, ge=4)
    """Tokens of a query with its examples, which leave 512 of them to the query itself; what is longer is cut."""
    icl_suffix_str: str = "\nResponse:"
    """What stands behind a query, and between the query and the passage of an example."""
    same_dataset_within_batch: bool = True
    """Take all rows of a step from one dataset; examples come from the step's other rows, so there is no other way."""

    @field_validator("icl_suffix_str")
    @classmethod
    def _newlines(cls, text: str) -> str:
        return newlines(text)

    @field_validator("same_dataset_within_batch")
    @classmethod
    def _always(cls, same: bool) -> bool:
        if not same:
            raise ValueError("is how train icl works: a query's examples are other rows of its step")
        return same


class TrainIclOptions(ExampleOptions, TrainLlmOptions):
    """Options of `bgectl train icl`."""


class HeadOptions(Options):
    """The three heads of an M3 model."""

    panel: ClassVar[str] = "Heads"

    unified_finetuning: bool = True
    """Train dense, sparse and ColBERT together; without it the dense vector alone, and no other head is saved."""
    colbert_dim: int = -1
    """Size of the ColBERT vectors of a new head; -1 is the hidden size."""
    fix_encoder: bool = False
    """Train the sparse and the ColBERT head alone; the encoder stays as it is."""
    use_self_distill: bool = False
    """Each head also learns from the sum of all."""
    self_distill_start_step: int = Field(-1, ge=-1)
    """Learn from the sum once more than this many steps were taken; -1 is from the start."""

    @field_validator("colbert_dim")
    @classmethod
    def _size(cls, size: int) -> int:
        if size != -1 and size < 1:
            raise ValueError("is a number of dimensions, or -1 for the hidden size")
        return size


class HeadsCrossDeviceOptions(Options):
    """Candidates of other processes, by score."""

    panel: ClassVar[str] = "Loss"

    negatives_cross_device: Annotated[Literal["dense", "all"] | None, Flag(bare="dense")] = None
    """With several processes: the passages of all of them are negatives, of the dense scores (`dense`, also where no
    value is given) or of all scores (`all`), with the exact gradient."""

    @field_validator("negatives_cross_device", mode="before")
    @classmethod
    def _switch(cls, given: Any) -> Any:
        word = str(given).lower()
        return "dense" if word in ("true", "yes", "on", "1") else None if word in ("false", "no", "off", "0") else given


class TrainM3Options(HeadOptions, TrainOptions, HeadsCrossDeviceOptions, LoraOptions):
    """Options of `bgectl train m3`."""

    @model_validator(mode="after")
    def _heads(self) -> Any:
        if self.fix_encoder and self.use_lora:
            raise ValueError("--fix-encoder and --use-lora exclude each other: one keeps the encoder, one trains it")
        if not self.unified_finetuning:
            asked = [
                f"--{name.replace('_', '-')}" for name, off in (
                    ("fix_encoder", False), ("use_self_distill", False), ("colbert_dim", -1),
                ) if getattr(self, name) != off
            ]  # fmt: skip
            if asked:
                raise ValueError(f"{' and '.join(asked)} needs --unified-finetuning")
            if self.negatives_cross_device == "all":
                raise ValueError("--negatives-cross-device all needs --unified-finetuning; `dense` is all there is")
        return self

    @property
    def cross_device(self) -> Literal["dense", "all"] | None:
        """See `TrainOptions`."""
        return self.negatives_cross_device

    @property
    def heads(self) -> bool:
        """See `TrainOptions`."""
        return self.unified_finetuning
