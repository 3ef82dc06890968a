"""Options of `bgectl data convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bgectl.options.base import Flag, Options

Format = Literal[
    "bgectl", "sentence-transformers", "jsonl", "csv", "tsv", "parquet", "datasets", "tevatron", "beir", "llamaindex",
    "msmarco", "msmarco-ids",
]  # fmt: skip
PAIR = r"[a-z_]+=.*"


class ConvertOptions(Options):
    """What is read, what is written, and how a row of one becomes a row of the other."""

    panel: ClassVar[str] = "Data"

    input_file: Annotated[str, Flag("--input", "-i", positional=True, metavar="PATH")] = Field(min_length=1)
    """File or folder to read, also .gz and .zst; `-` for stdin; with `--from datasets` also a name on the hub."""
    output_file: Annotated[Path, Flag("--output", "-o", positional=True)]
    """File to write, compressed by its ending; `-` for stdout; a folder for `beir` and `datasets`."""
    from_format: Annotated[Format | None, Flag("--from", "-f", metavar="FORMAT")] = None
    """Format of the input: bgectl, sentence-transformers, jsonl, csv, tsv, parquet, datasets, tevatron, beir,
    llamaindex, msmarco or msmarco-ids. Default: seen from the input, where that leaves no doubt."""
    to_format: Annotated[Format | None, Flag("--to", "-t", metavar="FORMAT")] = None
    """Format of the output, one of the same. Default: by its ending; bgectl's own training rows for .jsonl and
    stdout."""
    columns: Annotated[list[str], Flag(pattern=PAIR, metavar="ROLE=COLUMN...")] = Field(default_factory=list)
    """Which column of the input is what: `query=question positive=answer negative=wrong`. Roles are query, positive,
    negative, score, label, pos_scores, neg_scores, prompt, type, category; `ROLE=` leaves that role out. Default: by
    the names that are in use."""
    keep: list[str] = Field(default_factory=list)
    """Further columns of the input to carry along under their names."""
    output_columns: Annotated[list[str], Flag(pattern=PAIR, metavar="ROLE=COLUMN...")] = Field(default_factory=list)
    """Names of columns of the output: `query=question positive=answer`."""
    group: bool = True
    """Make one row of all lines with the same query, where the format has one pair or triplet a line."""
    positive_from: float | None = None
    """Pairs with a score: from this score on the second text is a positive, below it a negative."""
    shape: Literal["tuple", "triplet", "pair"] = "tuple"
    """A line of sentence-transformers, jsonl, csv and tsv output: query, positive and all negatives; query, positive
    and one negative; or query, passage and label."""
    negatives: int | None = Field(None, ge=1)
    """Negatives on each line of the shape `tuple`, so that all lines are full: further ones are cut, and lines with
    fewer are left out."""
    split: str | None = None
    """Which qrels/<split>.tsv, or split of a dataset. Default: train where there is a choice; test for BEIR output."""
    subset: str | None = None
    """Which configuration of a dataset."""
    collection: Path | None = None
    """File of passage ids and texts of `msmarco-ids`. Default: collection.tsv beside the triples."""
    queries: Path | None = None
    """File of query ids and texts of `msmarco-ids`. Default: queries.tsv beside the triples."""
    skip_bad: bool = False
    """Leave defective records out and count them, in place of stopping."""
    max_problems: int = Field(20, ge=1)
    """Name at most this many defects; further ones are counted."""
    overwrite: bool = False
    """Write into a folder that is not empty."""

    @field_validator("columns", "output_columns")
    @classmethod
    def _pairs(cls, values: list[str], info: object) -> list[str]:
        from bgectl.data.formats.columns import ROLES

        known = ROLES if getattr(info, "field_name", "") == "columns" else ROLES[:5]
        for value in values:
            role, equals, _ = value.partition("=")
            if not equals or role not in known:
                raise ValueError(f"`{value}` is not ROLE=COLUMN with a role of {', '.join(known)}")
        return values

    @model_validator(mode="after")
    def _fits(self) -> ConvertOptions:
        if self.negatives is not None and self.shape != "tuple":
            raise ValueError("--negatives goes with --shape tuple")
        return self
