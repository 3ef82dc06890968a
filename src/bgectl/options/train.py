"""Options of `bgectl train …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bgectl.options.base import Flag, Options
from bgectl.options.common import HubOptions, Pooling, two_places


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
    use_mrl: bool = False
    """Train prefixes of the embedding too (Matryoshka representation learning)."""
    mrl_dims: Annotated[list[Annotated[int, Field(ge=1)]], Flag(pattern=r"\d+", metavar="DIM...")] = Field(
        default_factory=list
    )
    """Dimensions of the prefixes. Default: the whole, half, a quarter … down to 32."""
    sub_batch_size: int | None = Field(None, ge=1)
    """Encode a step's texts in pieces of this many, holding one piece's activations (gradient caching)."""


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
    """Optimiser, by transformers' name."""

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
    bf16: bool = False
    """Compute in bfloat16."""
    fp16: bool = False
    """Compute in float16 with loss scaling; a GPU only."""
    use_cpu: bool = False
    """Do not use a GPU though there is one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
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
    report_to: Annotated[list[str], Flag(metavar="NAME...")] = Field(default_factory=list)
    """Also log to tensorboard, wandb, mlflow and the others of transformers."""
    run_name: str | None = None
    """Name of the run for `--report-to`."""


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
    ModelOptions, DataOptions, LossOptions, OptimOptions, RunOptions, HeldOutOptions, HubOptions
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
        return self


class TrainBaseOptions(TrainOptions):
    """Options of `bgectl train base`."""
