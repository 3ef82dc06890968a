"""Options of `bgectl mine`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bgectl.options.base import Flag, Options
from bgectl.options.common import (
    EmbedderOptions,
    HubOptions,
    HybridOptions,
    InputFile,
    OutputFile,
    PresetOptions,
    Score,
    WorkOptions,
)


class MiningOptions(EmbedderOptions, HybridOptions):
    """What is mined, and from what."""

    panel: ClassVar[str] = "Mining"

    input_file: InputFile
    """Training rows: `query`, `pos` and, if there is no candidate pool, `neg`."""
    output_file: OutputFile
    """The same rows with `neg` replaced; written beside and renamed into place."""
    range: Annotated[str, Flag("--range-for-sampling", metavar="LO-HI")] = Field("10-210", pattern=r"^\d+-\d+$")
    """Ranks to draw from, counted from 0, the end not included: `2-200` leaves out the two best matches."""
    negative_number: Annotated[int, Flag("-n")] = Field(15, ge=1)
    """Negatives for each row."""
    score: Score = "dense"
    """What the pool is ranked by; all but dense need a model with the heads of M3, and take longer."""
    candidate_pool: Path | None = None
    """File of `{"text": …}` lines (a `title` is put in front) to mine from. Default: all pos and neg of the input."""
    mode: Literal["dense", "m3"] = "dense"
    """`m3` is the same as `--score hybrid`."""
    search_batch_size: int = Field(256, ge=1)
    """Queries searched at a time."""
    use_gpu_for_searching: bool = False
    """Search on the GPU; of several, each process takes its own."""
    index: Annotated[str | None, Flag(metavar="FACTORY")] = None
    """Search by an index of faiss in place of exactly, for large pools: its name, such as `IVF4096,PQ64` or `HNSW32`.
    Its candidates are scored exactly, and the share of the best that it finds is measured and told."""
    index_parameters: Annotated[str | None, Flag(metavar="NAME=VALUE,...")] = None
    """Its search parameters, as faiss writes them. Default: `nprobe` is a sixteenth of an IVF index's lists."""
    fuse: Literal["rrf"] | None = None
    """Rank by the sum of 1 / (60 + rank) over the embedder's ranks and those of BM25, which needs `bgectl[bm25]` and
    memory for its index."""
    sampling: Literal["random", "top", "weighted"] = "random"
    """How negatives are taken from the range: at random, the best ranks, or at random with weights 1, 1/2, 1/3 … by
    rank."""
    fill: Literal["random", "deeper", "none"] = "random"
    """What is taken where the range has too few: random texts of the pool; the best of the ranks below the range that
    keep to the rule, and random texts only where there are none of those either; or nothing."""
    dedupe: Literal["exact", "normalized", "near"] = "normalized"
    """Which texts count as copies of the query, a positive or another negative, and are left out: the same text; also
    texts that differ in case and white space; also texts that share four fifths of their 5-grams of characters."""
    exclude_qrels: Path | None = None
    """Judged data whose relevant passages are no negatives of their query: a BEIR folder, or training rows."""
    report: Path | None = None
    """Write a page of HTML with pictures: scores, ranks, what was left out, and the most suspicious pairs to read."""
    keep_scores: bool = False
    """Also write `mined_pos_scores` and `mined_neg_scores`, what this model gives each text."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the draws: the same seed gives the same file."""

    @field_validator("range")
    @classmethod
    def _not_empty(cls, text: str) -> str:
        low, high = ranks(text)
        if low >= high:
            raise ValueError("the first rank must be below the second")
        return text


def ranks(text: str) -> tuple[int, int]:
    """`2-200` → (2, 200)."""
    low, high = re.split("-", text)
    return int(low), int(high)


class RuleOptions(Options):
    """Which candidates may be negatives: what is as near to the query as its positive is likely relevant too."""

    panel: ClassVar[str] = "False negatives"

    positive_percent: float | None = Field(None, gt=0, le=1)
    """Leave out what scores this share of the row's least similar positive, or more (NV-Retriever: 0.95)."""
    relative_margin: float | None = Field(None, ge=0, lt=1)
    """The same as `--positive-percent`, said as 1 less it."""
    absolute_margin: float | None = Field(None, ge=0)
    """Leave out what does not score below that positive by this much."""
    max_score: float | None = None
    """Leave out what scores above this."""
    min_score: float | None = None
    """Leave out what scores below this."""
    cross_encoder: str | None = None
    """Name or folder of a reranker whose scores the candidates are ranked and judged by, in place of the embedder's; it
    reads every candidate of the range."""
    cross_encoder_max_length: int = Field(512, ge=8)
    """Tokens of a pair for it."""


class MineOptions(MiningOptions, RuleOptions, WorkOptions, HubOptions, PresetOptions):
    """Options of `bgectl mine`."""

    @model_validator(mode="before")
    @classmethod
    def _mode(cls, given: Any) -> Any:
        return {"score": "hybrid", **given} if isinstance(given, dict) and given.get("mode") == "m3" else given

    @classmethod
    def gives_way(cls, given: Mapping[str, Any]) -> set[str]:
        """See `PresetOptions`."""
        margins = (given.get("relative_margin"), given.get("absolute_margin"))
        return set() if margins == (None, None) else {"positive_percent"}

    @model_validator(mode="after")
    def _one_rule(self) -> Any:
        if self.relative_margin is not None and self.positive_percent is not None:
            raise ValueError("--relative-margin and --positive-percent say the same; give one")
        if self.min_score is not None and self.max_score is not None and self.min_score >= self.max_score:
            raise ValueError("--min-score is not below --max-score")
        if self.mode == "m3" and self.score == "dense":
            raise ValueError("--mode m3 and --score dense exclude each other")
        dense = {"index": self.index, "fuse": self.fuse, "use_gpu_for_searching": self.use_gpu_for_searching or None}
        for name, value in dense.items():
            if value is not None and self.score != "dense":
                raise ValueError(f"--{name.replace('_', '-')} searches by dense vectors; --score {self.score} does not")
        if self.index_parameters is not None and self.index is None:
            raise ValueError("--index-parameters says nothing without --index")
        if self.cross_encoder is not None and self.fill == "deeper":
            raise ValueError("--fill deeper and --cross-encoder exclude each other: it reads the range alone")
        return self

    @property
    def percent(self) -> float | None:
        """Of the positive's score; None where there is no such rule."""
        return self.positive_percent if self.relative_margin is None else 1 - self.relative_margin
