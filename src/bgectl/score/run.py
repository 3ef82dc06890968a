"""`bgectl score`: rows → (query, passage) pairs, each distinct one once → teacher scores → rows.

Several processes score, each a share, through the work folder; the first of them writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bgectl import console, distributed, jsonl
from bgectl.data.rows import Row, read_rows
from bgectl.errors import UsageError
from bgectl.manifest import described, read_manifest, write_manifest
from bgectl.options.score import ScoreOptions
from bgectl.score.pairs import Pair, Pairs, Scores
from bgectl.score.teacher import Scored, open_teacher
from bgectl.work.rows import rows_at_work, write_together

ROWS = 16_384
"""Rows scored together: their texts are in memory."""


def run(options: ScoreOptions) -> None:
    """Score every positive and negative of the input; all processes of a run call this.

    Raises:
        UsageError: An option means nothing to the teacher, or the scores of another teacher would be kept.
        DataError: Rows have defects.
        RunError: The teacher cannot be loaded, a score is not finite, or the disk is full.
    """
    started = time.monotonic()
    with rows_at_work(options.input_file, options.output_file, options.work_folder) as (source, work):
        teacher = open_teacher(options, options.reranker_name_or_path, work)
        if options.only_missing:
            refuse_other_teacher(options, teacher)
        scoring = Scoring(options, teacher)
        inputs = described({"input_file": options.input_file}) if distributed.rank() == 0 else {}
        write_together(options.output_file, scoring.rows(source))
        if distributed.rank() == 0:
            write_manifest(options.output_file, "score", inputs, teacher.facts, options)
        scoring.tell(time.monotonic() - started)
        if not options.keep_work:
            teacher.teacher.forget()


def refuse_other_teacher(options: ScoreOptions, teacher: Scored) -> None:
    """Scores of two teachers do not compare.

    Raises:
        UsageError: The input's manifest names another teacher, or other options.
    """
    told = read_manifest(options.input_file)
    if told is None or "files" not in told:
        return
    for name in ("files", "kind", "normalize", "scale", "options"):
        # As JSON, which knows no paths or tuples.
        if told.get(name) != json.loads(json.dumps(teacher.facts[name], default=str)):
            shown = told.get("teacher") if name == "files" else f"{name} {told.get(name)}"
            raise UsageError(
                f"the scores that are there are by another teacher or other options ({shown})", where="--only-missing",
                hint="leave it out to score all rows again, or give the teacher that its manifest names",
            )  # fmt: skip


class Scoring:
    """One run of scoring.

    Args:
        options: What is asked for.
        teacher: What scores.
    """

    def __init__(self, options: ScoreOptions, teacher: Scored) -> None:
        self.options, self.teacher = options, teacher
        self.seen = self.kept = self.above = self.pairs = 0

    def rows(self, source: Path) -> Iterator[dict[str, Any]]:
        """The rows with their scores; all processes go through this, the first has the result."""
        for row, values in scored_rows(source, self._score, keep=self.options.only_missing):
            self.seen += 1
            if values is None:
                self.kept += 1
                self.look(row, own_scores(row))
                yield row.raw
            else:
                self.look(row, values)
                yield scored(row, values)

    def _score(self, pairs: Pairs) -> Scores:
        self.pairs += len(pairs)
        return self.teacher.score(pairs)

    def look(self, row: Row, scores: Scores) -> None:
        """Count a row in which the teacher puts a negative above every positive; with --check, print it."""
        count = len(row.pos)
        if not row.neg or scores[count:].max() <= scores[:count].max():
            return
        self.above += 1
        if self.options.check and distributed.rank() == 0:
            positive, negative = int(np.argmax(scores[:count])), int(np.argmax(scores[count:]))
            found = {
                "row": self.seen, "query": row.query, "positive": row.pos[positive],
                "positive_score": float(scores[positive]), "negative": row.neg[negative],
                "negative_score": float(scores[count + negative]),
            }  # fmt: skip
            print(jsonl.dump(found).decode())

    def tell(self, seconds: float) -> None:
        """What was done, and how the teacher sees the data."""
        options, teacher = self.options, self.teacher
        kept = f"; {self.kept:,} rows had scores" if options.only_missing else ""
        console.info(
            f"scored {self.pairs:,} pairs of {self.seen:,} rows in {seconds:.1f} s with "
            f"{options.reranker_name_or_path} ({teacher.kind}){kept}: {options.output_file}"
        )
        if self.pairs > teacher.teacher.scored and teacher.kind != "embedder":
            console.info(f"{self.pairs - teacher.teacher.scored:,} of them had been scored before")
        if teacher.teacher.cut:
            what = "texts" if teacher.kind == "embedder" else "pairs"
            console.warn(f"{teacher.teacher.cut:,} {what} were cut to their length")
        if self.above:
            console.warn(
                f"in {self.above:,} rows the teacher puts a negative above every positive: likely false negatives"
                + ("" if options.check else " (--check lists them, `bgectl relabel` drops or promotes them)")
            )


def scored_rows(
    source: Path, score: Callable[[Pairs], Scores], *, keep: bool = False
) -> Iterator[tuple[Row, Scores | None]]:
    """Each row with the scores of its positives, then of its negatives.

    Many rows are scored together, each different pair once; all processes go through this.

    Args:
        source: The rows.
        score: From pairs to scores.
        keep: Rows that have scores are not scored; they come with None.
    """
    rows = (row for _, row in read_rows(source))
    while chunk := list(islice(rows, ROWS)):
        places: dict[Pair, int] = {}
        index = [
            None if keep and has_scores(row) else
            [places.setdefault(Pair(row.query, row.prompt, text), len(places)) for text in (*row.pos, *row.neg)]
            for row in chunk
        ]  # fmt: skip
        values = score(list(places))
        for row, own in zip(chunk, index, strict=True):
            yield row, None if own is None else values[own]


def own_scores(row: Row) -> Scores:
    """The scores that a row has: of its positives, then of its negatives."""
    return np.array([*(row.pos_scores or ()), *(row.neg_scores or ())], dtype=np.float32)


def has_scores(row: Row) -> bool:
    """Whether a row has a score for each of its texts."""
    return (
        row.pos_scores is not None and len(row.pos_scores) == len(row.pos)
        and (not row.neg or (row.neg_scores is not None and len(row.neg_scores) == len(row.neg)))
    )  # fmt: skip


def scored(row: Row, values: Scores) -> dict[str, Any]:
    """The row as read with `pos_scores` and `neg_scores`; numbers as short as their precision allows."""
    scores = [float(str(value)) for value in values]
    positives = len(row.pos)
    return row.raw | {"neg": row.neg, "pos_scores": scores[:positives], "neg_scores": scores[positives:]}
