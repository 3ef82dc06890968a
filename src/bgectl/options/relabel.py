"""Options of `bgectl relabel`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from bgectl.options.base import Flag, Options
from bgectl.options.common import InputFile, OutputFile
from bgectl.options.score import TeacherOptions


class RelabelingOptions(Options):
    """Which labels a teacher changes."""

    panel: ClassVar[str] = "Relabelling"

    input_file: InputFile
    """Training rows: `query`, `pos`, `neg`."""
    output_file: OutputFile
    """The rows with their labels changed, and the teacher's scores; written beside and renamed into place."""
    reranker_name_or_path: Annotated[str | None, Flag("--reranker")] = None
    """Name on the hub or folder of the teacher, as for `bgectl score`. Default: the scores that the rows have."""
    action: Literal["drop", "promote"] = "drop"
    """What becomes of a false negative: it is dropped, or becomes a positive of its row."""
    compare_to: Literal["best", "least"] = "best"
    """A negative is false that scores above this one of the row's positives."""
    margin: float = 0.0
    """By more than this; below 0, negatives that come near the positive are false too."""
    min_score: float | None = None
    """And that scores at least this."""
    min_positive_score: float | None = None
    """Drop positives that score below this; a row without another positive is left out."""
    report: Path | None = None
    """Write a page of HTML with pictures: scores, counts, and the most suspicious pairs to read."""


class RelabelOptions(RelabelingOptions, TeacherOptions):
    """Options of `bgectl relabel`."""

    @model_validator(mode="after")
    def _teacher(self) -> Any:
        if self.reranker_name_or_path is None:
            own = set(RelabelingOptions.model_fields) | {"work_folder"}
            fields = TeacherOptions.model_fields
            given = [
                name for name in sorted(self.model_fields_set - own)
                if getattr(self, name) != fields[name].get_default(call_default_factory=True)
            ]  # fmt: skip
            if given:
                raise ValueError(f"--{given[0].replace('_', '-')} says nothing without --reranker")
        return self
