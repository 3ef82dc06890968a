"""Options of `bgectl data split`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bgectl.options.base import Flag, Options

LENGTHS = (
    "0-500", "500-1000", "1000-2000", "2000-3000", "3000-4000", "4000-5000", "5000-6000", "6000-7000", "7000-inf",
)  # fmt: skip
"""The ranges of FlagEmbedding's split_data_by_length."""
RANGE = r"\d+-(\d+|inf)"


class SplitOptions(Options):
    """What is split, and where to."""

    panel: ClassVar[str] = "Data"

    paths: Annotated[list[Path], Flag("--train-data", positional=True, metavar="PATH...")] = Field(min_length=1)
    """Files of training rows (.json, .jsonl, also .gz and .zst), directories of them, or `-` for stdin."""
    output_dir: Annotated[Path, Flag("-o")]
    """Folder for the files: train/ and held-out/ with the names of the input, or with --by-length all in one."""
    held_out: float = Field(0.1, gt=0)
    """Rows to hold out: a share below 1, or a number of them."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the draw: the same seed and rows give the same files."""
    near: bool = False
    """Also keep rows on one side whose queries or positives are near copies: they share four fifths of their 5-grams
    of characters."""
    drop_leaked_negatives: bool = False
    """Take queries and positives of held-out rows out of the negatives of training rows; without, they are counted."""
    beir: bool = False
    """Also write the held-out rows as a folder eval/ in BEIR layout, for `bgectl eval --eval-data`."""
    corpus: Literal["all", "held-out"] = "all"
    """Passages of that folder: those of all rows, or of the held-out rows only."""
    by_length: Annotated[list[str], Flag(pattern=RANGE, metavar="LO-HI...", bare=",".join(LENGTHS))] = Field(
        default_factory=list
    )
    """In place of holding out: sort rows into files NAME_len-LO-HI.jsonl by the length of their longest text, LO
    included and HI not. Without values the ranges of FlagEmbedding: 0-500 500-1000 1000-2000 ... 7000-inf."""
    tokenizer: str | None = None
    """Name or folder of the tokenizer that lengths are counted with, special tokens included."""
    unit: Literal["tokens", "characters"] = "tokens"
    """What lengths are counted in."""
    skip_bad: bool = False
    """Leave defective rows out and count them, in place of stopping."""
    max_problems: int = Field(20, ge=1)
    """Name at most this many defects; further ones are counted."""
    overwrite: bool = False
    """Replace files of an earlier split."""

    @field_validator("held_out")
    @classmethod
    def _share_or_count(cls, value: float) -> float:
        if value >= 1 and not value.is_integer():
            raise ValueError("is neither a share below 1 nor a whole number of rows")
        return value

    @field_validator("by_length")
    @classmethod
    def _ranges(cls, values: list[str]) -> list[str]:
        words = [word for value in values for word in value.split(",")]
        for word in words:
            if not re.fullmatch(RANGE, word):
                raise ValueError(f"`{word}` is not of the form LO-HI")
        after = 0.0
        for low, high in sorted(map(length_range, words)):
            if low >= high:
                raise ValueError(f"{low:g}-{high:g}: the first length must be below the second")
            if low < after:
                raise ValueError(f"{low:g}-{high:g} overlaps the range before it")
            after = high
        return words

    @model_validator(mode="after")
    def _one_way(self) -> SplitOptions:
        if self.by_length:
            if self.unit == "tokens" and self.tokenizer is None:
                raise ValueError("--by-length counts tokens: give a --tokenizer, or --unit characters")
            if self.unit == "characters" and self.tokenizer is not None:
                raise ValueError("--tokenizer goes with --unit tokens")
            holding = {"held_out", "near", "drop_leaked_negatives", "beir", "corpus"} & self.model_fields_set
            changed = [name for name in sorted(holding) if getattr(self, name) != type(self).model_fields[name].default]
            if changed:
                raise ValueError(f"--by-length holds no rows out: leave --{changed[0].replace('_', '-')} out")
        elif self.tokenizer is not None or self.unit != "tokens":
            raise ValueError("--tokenizer and --unit go with --by-length")
        if self.corpus != "all" and not self.beir:
            raise ValueError("--corpus goes with --beir")
        return self


def length_range(text: str) -> tuple[float, float]:
    """`500-1000` → (500, 1000)."""
    low, _, high = text.partition("-")
    return float(low), float(high)
