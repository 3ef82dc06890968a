"""Options of `bgectl eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from bgectl.options.base import Flag
from bgectl.options.common import (
    DeviceOptions,
    EmbedderClassOptions,
    HubOptions,
    HybridOptions,
    Pooling,
    PresetOptions,
    PromptOptions,
    Score,
    two_places,
)


class JudgedOptions(EmbedderClassOptions, HybridOptions, PromptOptions):
    """Models, judged data and measures."""

    panel: ClassVar[str] = "Evaluation"

    model_name_or_path: Annotated[list[str], Flag("--model", "-m", positional=True, metavar="MODEL...")] = Field(
        min_length=1
    )
    """Names on the hub or folders of embedders; with several, each is compared with the first."""
    eval_data: Annotated[Path, Flag("--data", "-d")]
    """A folder in BEIR layout (corpus.jsonl, queries.jsonl, qrels/*.tsv), or training rows held out."""
    split: str = "test"
    """Which qrels/<split>.tsv to use."""
    score: Annotated[list[Score], Flag(pattern="dense|sparse|colbert|hybrid")] = Field(["dense"], min_length=1)
    """What passages are ranked by; all but dense need a model with the heads of M3. Several are compared too."""
    cutoffs: list[int] = Field(default_factory=lambda: [10, 100])
    """Ranks k for Recall@k; nDCG and MRR are at 10."""
    format: Literal["table", "json"] = "table"
    """What to print on stdout."""
    output_file: Annotated[Path | None, Flag("--output", "-o")] = None
    """Also write the JSON, with the measures of each query, to this file."""
    report: Path | None = None
    """Write a page of HTML: the measures with pictures, and the queries that each model gained and lost, to read."""
    pooling_method: Pooling | None = None
    """How token vectors become one. Default: seen from the model's files, else known for its name, else cls."""
    normalize_embeddings: bool | None = None
    """Scale vectors to length 1. Default: seen from the model's files, else yes."""
    query_instruction_format: str | None = None
    """How instruction and query are joined. Default: the model's own, else `{}{}`."""
    passage_instruction_format: str = "{}{}"
    """How instruction and passage are joined."""
    query_max_len: int = Field(512, ge=4)
    """Tokens of a query."""
    passage_max_len: int = Field(512, ge=4)
    """Tokens of a passage."""

    _format = field_validator("query_instruction_format", "passage_instruction_format")(two_places)

    @field_validator("cutoffs")
    @classmethod
    def _positive(cls, cutoffs: list[int]) -> list[int]:
        if not cutoffs or min(cutoffs) < 1:
            raise ValueError("ranks are whole numbers from 1")
        return sorted(set(cutoffs))


class EvalOptions(JudgedOptions, DeviceOptions, HubOptions, PresetOptions):
    """Options of `bgectl eval`."""
