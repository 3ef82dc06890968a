"""A training row, and what is wrong with one. SPEC of the fields: docs/data.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bgectl import jsonl
from bgectl.errors import DataError

TYPES = (
    "normal", "only_1neg", "symmetric_sts", "symmetric_class", "symmetric_clustering",
)  # fmt: skip
"""Values of `type` that mean something. A row without one is `normal`."""

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Flaw:
    """One defect of one row.

    Args:
        field: The field, with an index for a list's item: `neg[3]`; empty when it is the row as a whole.
        code: A stable short name for machines, such as `empty-text`.
        message: What is wrong.
        hint: What to do.
        severity: An error stops training; a warning does not.
    """

    field: str
    code: str
    message: str
    hint: str
    severity: Severity = "error"


@dataclass(frozen=True, slots=True)
class Row:
    """One training row, checked. `raw` is the object as read, with the keys that bgectl does not know."""

    query: str
    pos: list[str]
    neg: list[str]
    pos_scores: list[float] | None
    neg_scores: list[float] | None
    prompt: str | None
    type: str
    category: str | None
    batch_size: int | None
    train_group_size: int | None
    raw: dict[str, Any]


def to_row(raw: dict[str, Any]) -> Row:
    """A `Row` from an object without flaws of severity `error`."""
    return Row(
        query=raw["query"],
        pos=raw["pos"],
        neg=raw.get("neg") or [],
        pos_scores=raw.get("pos_scores"),
        neg_scores=raw.get("neg_scores"),
        prompt=raw.get("prompt"),
        type=raw.get("type") or "normal",
        category=raw.get("category"),
        batch_size=raw.get("batch_size"),
        train_group_size=raw.get("train_group_size"),
        raw=raw,
    )


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, row) of a file of training rows.

    Raises:
        DataError: At the first row with an error; the message names file, line and field.
    """
    from bgectl.data.check import row_flaws

    for number, raw in jsonl.read_objects(path):
        for flaw in row_flaws(raw):
            if flaw.severity == "error":
                where = f"{path}:{number}" + (f": `{flaw.field}`" if flaw.field else "")
                hint = f"{flaw.hint}; `bgectl data validate {path}` lists all defects"
                raise DataError(flaw.message, where=where, hint=hint)
        yield number, to_row(raw)
