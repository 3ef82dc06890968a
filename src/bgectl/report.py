"""What mining or relabelling saw: a table on the terminal, and a page to read."""

from __future__ import annotations

import heapq
import math
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bgectl import console

SUSPICIOUS = 20
DEPTHS = (1, 2, 3, 5, 10, 20, 50, 100, 200)
"""Ranks at which the positives' ranks are summed up."""


@dataclass(order=True)
class Suspect:
    """A negative that may be relevant, or a positive that may not be.

    Args:
        excess: By how much the negative scores above the positive, or how far below its negatives the positive lies.
        row: The row's number, from 1.
        query: Its text.
        positive: The positive with its score.
        negative: The negative with its score.
    """

    excess: float
    row: int
    query: str = field(compare=False)
    positive: tuple[str, float] = field(compare=False)
    negative: tuple[str, float] = field(compare=False)


class Worst:
    """The SUSPICIOUS largest of what is offered."""

    def __init__(self) -> None:
        self._heap: list[Suspect] = []

    def offer(self, suspect: Suspect) -> None:
        """Keep it if it is among the largest."""
        if len(self._heap) < SUSPICIOUS:
            heapq.heappush(self._heap, suspect)
        else:
            heapq.heappushpop(self._heap, suspect)

    def enters(self, excess: float) -> bool:
        """Whether it would be kept."""
        return len(self._heap) < SUSPICIOUS or excess > self._heap[0].excess

    @property
    def all(self) -> list[Suspect]:
        """The largest first."""
        return sorted(self._heap, reverse=True)


@dataclass
class Stage:
    """One part of the work."""

    name: str
    seconds: float
    amount: int
    unit: str


@dataclass
class Report:
    """What was seen, summed up while rows go by.

    Attributes:
        rows: Rows that went by.
        left_out: Candidates that were left out, by reason.
        rows_touched: Rows with such candidates, by reason.
        positives: Scores of the positives, where they are known.
        negatives: Scores of the negatives; random ones have none.
        ranks: Of each row's best positive that is in the pool, from 0; -1 where it is not among the ranks searched.
        stages: Where the time went.
    """

    rows: int = 0
    cut: int = 0
    """Texts that were cut to their length."""
    left_out: Counter[str] = field(default_factory=Counter)
    rows_touched: Counter[str] = field(default_factory=Counter)
    positives: array[float] = field(default_factory=lambda: array("f"))
    negatives: array[float] = field(default_factory=lambda: array("f"))
    ranks: array[int] = field(default_factory=lambda: array("i"))
    false_negatives: Worst = field(default_factory=Worst)
    wrong_positives: Worst = field(default_factory=Worst)
    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, unit: str = "") -> Iterator[Stage]:
        """Measure one part of the work; what is given may be told the amount."""
        started = time.monotonic()
        stage = Stage(name, 0.0, 0, unit)
        yield stage
        stage.seconds = time.monotonic() - started
        self.stages.append(stage)

    def suspect(
        self, row: int, query: str, pos: Sequence[str], pos_scores: npt.NDArray[np.float32], neg: Sequence[str],
        neg_scores: Sequence[float],
    ) -> None:  # fmt: skip
        """Look at one row's texts and scores; NaN for one that is not known."""
        scores = np.asarray(neg_scores, dtype=np.float32)
        if not len(pos_scores) or not len(scores) or np.isnan(scores).all():
            return
        place, best = int(np.nanargmax(scores)), int(np.argmax(pos_scores))
        excess = float(scores[place] - pos_scores[best])
        if self.false_negatives.enters(excess):
            pair = (pos[best], float(pos_scores[best])), (neg[place], float(scores[place]))
            self.false_negatives.offer(Suspect(excess, row, query, *pair))
        worst = int(np.argmin(pos_scores))
        below = float(np.nanmean(scores) - pos_scores[worst])
        if self.wrong_positives.enters(below):
            pair = (pos[worst], float(pos_scores[worst])), (neg[place], float(scores[place]))
            self.wrong_positives.offer(Suspect(below, row, query, *pair))

    def show(self, judge: str) -> None:
        """A table of the scores, where the positives rank, and what was left out, on the terminal."""
        rows = [
            [name, f"{len(scores):,}", *(f"{x:.3f}" for x in (np.mean(scores), *np.percentile(scores, [10, 50, 90])))]
            for name, scores in (("positives", self.positives), ("negatives", self.negatives))
            if len(scores)
        ]
        if rows:
            console.table(f"Scores ({judge})", ["texts", "number", "mean", "10 %", "median", "90 %"], rows)
        if self.ranks:
            ranks = np.asarray(self.ranks)
            unseen = int((ranks < 0).sum())
            console.info(
                f"the best positive ranks first for {int((ranks == 0).sum()):,} of {len(ranks):,} rows"
                + (f", and not among the ranks searched for {unseen:,}" if unseen else "")
            )
        for reason, count in self.left_out.items():
            console.info(
                f"left out: {count:,} candidates of {self.rows_touched[reason]:,} rows {reason}"
                if count
                else f"left out: no candidate {reason}"
            )

    def write(
        self, target: Path, title: str, lead: str, facts: Mapping[str, object], judge: str, counts: Mapping[str, int]
    ) -> None:
        """A page with pictures.

        Args:
            target: The file.
            title: Its heading.
            lead: What was done, in a sentence.
            facts: Of the run: model, range and the like.
            judge: What the scores are of.
            counts: How many rows are of some kind.
        """
        from bgectl.page import Case, Page, Passage

        page = Page(title, lead)
        page.facts("The run", facts)
        page.histogram(
            "Scores of positives and negatives", {"positives": self.positives, "negatives": self.negatives},
            f"score ({judge})", "Where the two lie over each other, the model cannot tell them apart: negatives there "
            "are the hardest, and the likeliest to be relevant.",
        )  # fmt: skip
        if self.ranks:
            page.bars("Rank of the best positive", rank_groups(np.asarray(self.ranks)), "rows")
        reasons = [
            [reason, f"{count:,}", f"{self.rows_touched[reason]:,}", f"{self.rows_touched[reason] / self.rows:.1%}"]
            for reason, count in self.left_out.items()
        ]
        if reasons:
            page.table("Candidates left out", ["why", "candidates", "rows", "share of rows"], reasons)
        page.table(
            "Rows", ["rows", "number", "share"],
            [[name, f"{count:,}", f"{count / max(1, self.rows):.1%}"] for name, count in counts.items()],
            f"{self.cut:,} texts were longer than the maximum length and were cut.",
        )  # fmt: skip
        for heading, suspects, note, said in (
            ("Likely false negatives", self.false_negatives, "Negatives that come near their positive, or pass it.",
             "the negative scores {} the positive by {:.3f}"),
            ("Likely wrong positives", self.wrong_positives, "Positives that score lowest beside their negatives.",
             "its negatives score {} it by {:.3f} on average"),
        ):  # fmt: skip
            cases = [
                Case(
                    suspect.query, [Passage("positive", *suspect.positive), Passage("negative", *suspect.negative)],
                    f"row {suspect.row:,}: " + said.format(*above_or_below(suspect.excess)),
                )
                for suspect in suspects.all
            ]  # fmt: skip
            if cases:
                page.cases(heading, cases, note)
        page.table(
            "Time", ["stage", "seconds", "amount", "a second"],
            [[stage.name, f"{stage.seconds:.1f}", f"{stage.amount:,} {stage.unit}" if stage.unit else "",
              f"{stage.amount / stage.seconds:,.0f}" if stage.amount and stage.seconds else ""]
             for stage in self.stages],
        )  # fmt: skip
        page.write(target)


def above_or_below(excess: float) -> tuple[str, float]:
    """A difference in words."""
    return "above" if excess > 0 else "below", abs(excess)


def rank_groups(ranks: npt.NDArray[Any]) -> dict[str, int]:
    """How many ranks lie in each group of them, counted from 1."""
    groups = {}
    low = 1
    for high in DEPTHS:
        name = f"{low}" if low == high else f"{low} to {high}"
        groups[name] = int(((ranks + 1 >= low) & (ranks + 1 <= high) & (ranks >= 0)).sum())
        low = high + 1
    groups[f"{low} or more"] = int((ranks + 1 >= low).sum())
    groups["not among those searched"] = int((ranks < 0).sum())
    return {name: count for name, count in groups.items() if count}


def rounded(score: float) -> float | None:
    """A score as it is written; None for one that is not known."""
    return None if math.isnan(score) else round(score, 6)
