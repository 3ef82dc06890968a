"""Options of `bgectl merge-lora`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from bgectl.options.base import Flag, Options
from bgectl.options.common import HubOptions


class MergingOptions(Options):
    """What is merged, and how it is written."""

    panel: ClassVar[str] = "Merging"

    adapters: Annotated[list[str], Flag("--adapter", positional=True, metavar="ADAPTER...")] = Field(min_length=1)
    """Folders of adapters, or the output folders of their trainings; several are added in their order."""
    output_dir: Annotated[Path, Flag("-o", "--output", positional=True, metavar="OUT")]
    """Folder for the whole model; it must not exist, or be empty."""
    base: str | None = None
    """Name or folder of the base model, where it is not where the adapter says."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the merged weights; `auto` is the base model's own."""
    max_shard_size: str = "5GB"
    """A file of weights has at most this size, such as 500MB or 5GB."""
    check: bool = True
    """Compare the vectors of a few texts by adapter and by merged model; it takes the model in memory, which merging
    itself does not."""

    @field_validator("max_shard_size")
    @classmethod
    def _bytes(cls, text: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)? ?([kmgt]i?)?b?", text.lower()) or shard_bytes(text) < 1:
            raise ValueError("is a size such as 500MB or 5GB")
        return text


def shard_bytes(text: str) -> int:
    """`5GB` → 5_000_000_000, `1GiB` → 1_073_741_824."""
    number, unit = re.match(r"([\d.]+) ?([kmgt]?i?)", text.lower()).groups()  # type: ignore[union-attr]
    power = " kmgt".index(unit[0]) if unit else 0
    return int(float(number) * (1024 if unit.endswith("i") else 1000) ** power)


class MergeOptions(MergingOptions, HubOptions):
    """Options of `bgectl merge-lora`."""
