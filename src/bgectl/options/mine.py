"""Options of `bgectl mine`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from bgectl.options.base import Flag
from bgectl.options.common import (
    DeviceOptions,
    EmbedderOptions,
    HubOptions,
    HybridOptions,
    InputFile,
    OutputFile,
    Score,
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
    search_batch_size: int = Field(64, ge=1)
    """Queries searched at a time."""
    use_gpu_for_searching: bool = False
    """Search on all GPUs; needs the package faiss-gpu."""
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


class MineOptions(MiningOptions, DeviceOptions, HubOptions):
    """Options of `bgectl mine`."""
