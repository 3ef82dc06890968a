"""Options of `bgectl data validate` and `bgectl data stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bgectl.options.base import Flag, Options


class FilesOptions(Options):
    """Which files, and how texts are counted."""

    panel: ClassVar[str] = "Data"

    paths: Annotated[list[Path], Flag("--train-data", positional=True, metavar="PATH...")] = Field(min_length=1)
    """Files (.json, .jsonl, also .gz and .zst), directories of them, or `-` for stdin."""
    tokenizer: str | None = None
    """Name or folder of a tokenizer: also count tokens and texts that would be cut."""
    query_max_len: int = Field(512, ge=1)
    """Tokens of a query."""
    passage_max_len: int = Field(512, ge=1)
    """Tokens of a passage."""
    format: Literal["table", "json"] = "table"
    """What to print on stdout."""
    workers: int | None = Field(None, ge=1)
    """Processes that read large files. Default: one for each core, at most 8. Counting tokens takes one."""


class ValidateOptions(FilesOptions):
    """Options of `bgectl data validate`."""

    panel: ClassVar[str] = "Checks"

    train_group_size: int = Field(8, ge=1)
    """Warn of rows with fewer negatives than a group of this size needs."""
    per_device_train_batch_size: int = Field(8, ge=1)
    """Warn of datasets with fewer rows than a batch."""
    icl: bool = False
    """Check for `train icl`: symmetric_clustering rows need a `category`."""
    knowledge_distillation: bool = False
    """Check for distillation: rows without scores are reported."""
    strict: bool = False
    """Count warnings as errors."""
    fix: Annotated[Path | None, Flag(metavar="OUT")] = None
    """Write the rows without errors to this file, byte for byte, and the others with the reasons to
    OUT.rejected.jsonl. Of equal rows the first is kept. The exit code still tells of the input."""
    max_problems: int = Field(5, ge=1)
    """Show at most this many problems of a kind in the table; JSON has all of them."""


class StatsOptions(FilesOptions):
    """Options of `bgectl data stats`."""

    panel: ClassVar[str] = "Picture"

    plot: Annotated[Path | None, Flag(metavar="PNG")] = None
    """Also draw the length histograms into this picture (.png, .svg or .pdf)."""
