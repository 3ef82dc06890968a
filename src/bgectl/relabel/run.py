"""`bgectl relabel`: rows with a teacher's scores → false negatives dropped or promoted → rows.

The idea is that of RLHN (arXiv 2505.16967): negatives that are relevant do more harm than none, and as positives they
help.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bgectl import console, distributed, jsonl
from bgectl.data.copies import same_text
from bgectl.data.rows import Row
from bgectl.errors import DataError
from bgectl.manifest import described, read_manifest, write_manifest
from bgectl.options.relabel import RelabelOptions
from bgectl.report import Report
from bgectl.score.pairs import Pairs, Scores
from bgectl.score.run import has_scores, own_scores, scored_rows
from bgectl.score.teacher import Scored, open_teacher
from bgectl.work.rows import rows_at_work, write_together


def run(options: RelabelOptions) -> None:
    """Relabel every row of the input; all processes of a run call this.

    Raises:
        UsageError: An option means nothing to the teacher.
        DataError: Rows have defects, or there is no teacher and a row has no scores.
        RunError: The teacher cannot be loaded, a score is not finite, or the disk is full.
    """
    started = time.monotonic()
    if options.report is not None:
        jsonl.check_target(options.report)
    with rows_at_work(options.input_file, options.output_file, options.work_folder) as (source, work):
        name = options.reranker_name_or_path
        teacher = None if name is None else open_teacher(options, name, work)
        relabelling = Relabelling(options, teacher)
        inputs = described({"input_file": options.input_file}) if distributed.rank() == 0 else {}
        told = scores_of_manifest(options.input_file)
        rows = relabelling.rows(source)
        # A teacher has progress of its own.
        rows = console.counted(rows, "Relabelling", "rows") if teacher is None else rows
        write_together(options.output_file, rows)
        if distributed.rank() == 0:
            # The scores stay those of their teacher, and so does what `score --only-missing` goes by.
            facts = teacher.facts if teacher else told
            write_manifest(options.output_file, "relabel", inputs, {
                **facts, "relabel": options.model_dump(mode="json", include=RULE),
            }, options)  # fmt: skip
            relabelling.tell(time.monotonic() - started)
        if teacher is not None and not options.keep_work:
            teacher.teacher.forget()


RULE = {"action", "compare_to", "margin", "min_score", "min_positive_score"}
MINED = ("mined_pos_scores", "mined_neg_scores")
OF_TEACHER = ("teacher", "kind", "revision", "files", "normalize", "scale", "options")


def scores_of_manifest(path: Path) -> dict[str, Any]:
    """What the manifest of the input says of the teacher of its scores."""
    told = read_manifest(path) or {}
    return {name: told[name] for name in OF_TEACHER if name in told}


@dataclass
class Relabelled:
    """What became of a row.

    Attributes:
        pos: Places of the positives that stay.
        neg: Places of the negatives that stay.
        false: Places of the negatives that are relevant by the teacher's scores.
    """

    pos: list[int]
    neg: list[int]
    false: list[int]


def judge(
    positives: Scores, negatives: Scores, *, best: bool = True, margin: float = 0.0, least: float | None = None,
    least_positive: float | None = None,
) -> Relabelled:  # fmt: skip
    """Which texts of a row keep their label.

    Args:
        positives: (P,) scores.
        negatives: (N,) scores.
        best: Compare negatives with the best positive, else with the least.
        margin: A negative is false that scores above that by more than this.
        least: And at least this; None for no such bound.
        least_positive: A positive is wrong that scores below this; None for no such bound.
    """
    right = np.flatnonzero(positives >= (-np.inf if least_positive is None else least_positive))
    if not len(right):
        return Relabelled([], list(range(len(negatives))), [])
    chosen = positives[right]
    bar = float(chosen.max() if best else chosen.min()) + margin
    wrong = negatives > bar
    if least is not None:
        wrong &= negatives >= least
    return Relabelled(right.tolist(), np.flatnonzero(~wrong).tolist(), np.flatnonzero(wrong).tolist())


class Relabelling:
    """One run.

    Args:
        options: What is asked for.
        teacher: What scores; None to go by the scores that rows have.
    """

    def __init__(self, options: RelabelOptions, teacher: Scored | None) -> None:
        self.options, self.teacher = options, teacher
        self.report = Report()
        self.touched = self.moved = self.wrong = self.gone = self.bare = 0

    def rows(self, source: Path) -> Iterator[dict[str, Any]]:
        """The rows that are left; all processes go through this, the first has the result."""
        teacher = self.teacher
        score: Callable[[Pairs], Scores] = nothing if teacher is None else teacher.score
        with self.report.stage("scoring and relabelling", "rows") as stage:
            for row, values in scored_rows(source, score, keep=teacher is None):
                self.report.rows += 1
                if values is None or teacher is None:
                    if not has_scores(row):
                        raise DataError(
                            f"row {self.report.rows:,} has no score for each of its texts",
                            where=f"{self.options.input_file}",
                            hint="name a teacher by --reranker, or run `bgectl score` first",
                        )  # fmt: skip
                    values = own_scores(row)
                result = self.relabelled(row, values)
                if result is not None:
                    yield result
            stage.amount = self.report.rows

    def relabelled(self, row: Row, scores: Scores) -> dict[str, Any] | None:
        """A row with its texts where they belong; None where no positive is left."""
        options, report = self.options, self.report
        positives, negatives = scores[: len(row.pos)], scores[len(row.pos) :]
        found = judge(
            positives, negatives, best=options.compare_to == "best", margin=options.margin, least=options.min_score,
            least_positive=options.min_positive_score,
        )  # fmt: skip
        report.positives.extend(positives.tolist())
        report.negatives.extend(negatives.tolist())
        report.suspect(report.rows, row.query, row.pos, positives, row.neg, negatives.tolist())
        self.wrong += len(row.pos) - len(found.pos)
        if not found.pos:
            self.gone += 1
            return None
        self.touched += bool(found.false)
        self.moved += len(found.false)
        self.bare += bool(row.neg) and not found.neg
        promoted = self.promoted(row, found) if options.action == "promote" else []
        return relabelled(row, positives, negatives, found, promoted)

    @staticmethod
    def promoted(row: Row, found: Relabelled) -> list[int]:
        """The false negatives that become positives: each text once."""
        seen = {same_text(row.pos[place]) for place in found.pos}
        chosen = []
        for place in found.false:
            if (key := same_text(row.neg[place])) not in seen:
                seen.add(key)
                chosen.append(place)
        return chosen

    def tell(self, seconds: float) -> None:
        """What was done."""
        options = self.options
        name = "the rows' own scores" if self.teacher is None else f"{options.reranker_name_or_path}"
        what = "dropped" if options.action == "drop" else "promoted"
        console.info(
            f"{what} {self.moved:,} false negatives of {self.touched:,} of {self.report.rows:,} rows by {name} in "
            f"{seconds:.1f} s: {options.output_file}"
        )
        if self.teacher is not None:
            self.report.cut = self.teacher.teacher.cut
        self.report.show("teacher")
        if self.wrong:
            console.info(f"dropped {self.wrong:,} positives that score below {options.min_positive_score}")
        if self.gone:
            console.warn(f"{self.gone:,} rows had no other positive and were left out")
        if self.bare:
            console.warn(f"{self.bare:,} rows have no negative left; `bgectl mine` finds new ones")
        if options.report is not None:
            counts = {
                "with false negatives": self.touched, "left without a negative": self.bare,
                "left out, without a positive": self.gone,
            }  # fmt: skip
            facts = {
                "rows": options.input_file, "teacher": name, "false negatives": f"{what}: {self.moved:,}",
                "a negative is false": in_words(options), "wrong positives": f"{self.wrong:,}",
            }  # fmt: skip
            lead = f"{self.moved:,} false negatives {what} in {self.touched:,} of {self.report.rows:,} rows."
            self.report.write(
                options.report, f"Relabelled: {options.output_file}", lead, facts, "teacher", counts
            )  # fmt: skip
            console.info(f"report: {options.report}")


def nothing(pairs: Pairs) -> Scores:
    """The scores of no teacher."""
    return np.full(len(pairs), np.nan, dtype=np.float32)


def in_words(options: RelabelOptions) -> str:
    """The rule."""
    beyond = f" + {options.margin:g}" if options.margin else ""
    least = "" if options.min_score is None else f" and at least {options.min_score:g}"
    return f"that scores above the row's {options.compare_to} positive{beyond}{least}"


def relabelled(
    row: Row, positives: Scores, negatives: Scores, found: Relabelled, promoted: list[int]
) -> dict[str, Any]:
    """A row as read, with its texts where they belong and the scores of each; what mining wrote of them goes with them.

    Args:
        row: The row.
        positives: Scores of its positives.
        negatives: Scores of its negatives.
        found: Which texts keep their label.
        promoted: Places of negatives that become positives.
    """

    def moved(kept: list[Any], others: list[Any]) -> tuple[list[Any], list[Any]]:
        return (
            [kept[place] for place in found.pos] + [others[place] for place in promoted],
            [others[place] for place in found.neg],
        )

    pos, neg = moved(row.pos, row.neg)
    pos_scores, neg_scores = moved(
        [float(str(value)) for value in positives], [float(str(value)) for value in negatives]
    )
    result = row.raw | {"pos": pos, "neg": neg, "pos_scores": pos_scores, "neg_scores": neg_scores}
    mined = [row.raw.get(name) for name in MINED]
    of_pos, of_neg = (list(scores) if isinstance(scores, list) else [] for scores in mined)
    if (len(of_pos), len(of_neg)) == (len(row.pos), len(row.neg)):
        result |= dict(zip(MINED, moved(of_pos, of_neg), strict=True))
    return result
