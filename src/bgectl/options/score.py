"""Options of `bgectl score`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bgectl.options.base import Flag, Options
from bgectl.options.common import (
    HubOptions,
    HybridOptions,
    InputFile,
    OutputFile,
    Pooling,
    PresetOptions,
    Score,
    WorkOptions,
    two_places,
)


class TeacherOptions(HybridOptions, WorkOptions, HubOptions):
    """The teacher and what it reads."""

    panel: ClassVar[str] = "Teacher"

    reranker_model_class: Literal[
        "auto",
        "encoder-only-base",
        "decoder-only-base",
        "decoder-only-layerwise",
        "decoder-only-lightweight",
        "embedder",
    ] = "auto"
    """Kind of the teacher; `auto` looks at its files."""
    reranker_peft_path: Annotated[str | None, Flag(metavar="ADAPTER")] = None
    """LoRA adapter to add to a decoder."""
    query_instruction_for_rerank: str | None = None
    """Instruction for queries. Default: an embedder's own; `A: ` for a decoder; none for a cross-encoder."""
    query_instruction_format_for_rerank: str = "{}{}"
    """How instruction and query are joined."""
    passage_instruction_for_rerank: str | None = None
    """Instruction for passages. Default: an embedder's own; `B: ` for a decoder; none for a cross-encoder."""
    passage_instruction_format_for_rerank: str = "{}{}"
    """How instruction and passage are joined."""
    reranker_batch_size: int = Field(3000, ge=1)
    """Pairs in one batch at most; `--batch-tokens` usually binds first."""
    reranker_query_max_length: int | None = Field(None, ge=4)
    """Tokens of a query. Default: three quarters of the pair's length."""
    reranker_max_length: int = Field(512, ge=8)
    """Tokens of a pair; the passage is cut."""
    normalize: bool = False
    """Put a cross-encoder's or a decoder's logit through a sigmoid."""
    scale: float = Field(1.0, gt=0)
    """Multiply each score: the softmax of an embedder's cosines is flat at 1, and about 20 to 50 suits distillation."""
    prompt: str | None = None
    """What a decoder is asked about query A and passage B. Default: the question it was trained with."""
    cutoff_layers: Annotated[list[int], Flag(metavar="LAYER")] = Field(default_factory=list, max_length=1)
    """The layer whose head scores, of a layerwise or lightweight decoder. Default: the last."""
    compress_layers: Annotated[list[Annotated[int, Field(ge=1)]], Flag(metavar="LAYER...")] = Field(
        default_factory=list
    )
    """Layers before which a lightweight decoder makes the passage shorter."""
    compress_ratio: int = Field(1, ge=1)
    """Tokens of the passage that become one there."""
    pooling_method: Pooling | None = None
    """Pooling of an embedder. Default: seen from its files."""
    score: Score = "dense"
    """What an embedder scores by; all but dense need one with the heads of M3."""

    _format = field_validator("query_instruction_format_for_rerank", "passage_instruction_format_for_rerank")(
        two_places
    )


class ScoringOptions(Options):
    """What is scored."""

    panel: ClassVar[str] = "Scoring"

    input_file: InputFile
    """Training rows: `query`, `pos`, `neg`."""
    output_file: OutputFile
    """The same rows with `pos_scores` and `neg_scores`; written beside and renamed into place. A manifest beside it
    names the teacher and its options."""
    reranker_name_or_path: Annotated[str, Flag("--reranker")]
    """Name on the hub or folder of the teacher: a cross-encoder, a decoder that scores pairs, or an embedder, whose
    similarity is the score."""
    only_missing: bool = False
    """Keep the scores of rows that have one for each text; refused if the input's manifest names another teacher."""
    check: bool = False
    """Print the rows in which the teacher puts a negative above every positive, as lines of JSON."""

    @model_validator(mode="after")
    def _stdout(self) -> Any:
        if self.check and str(self.output_file) == "-":
            raise ValueError("--check prints to stdout, and so does the output `-`")
        return self


class ScoreOptions(ScoringOptions, TeacherOptions, PresetOptions):
    """Options of `bgectl score`."""
