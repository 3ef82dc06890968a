"""A page about an evaluation: the measures, how they are spread, and the queries to read on which models differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from bgectl.evaluate.compare import Comparison
from bgectl.evaluate.judged import Judged
from bgectl.evaluate.result import Result, describe, labels
from bgectl.page import Case, Page, Passage

MEASURE = "nDCG@10"
"""By this the queries are sorted."""
RELEVANT = 3
"""Relevant passages shown of a query."""
CASES = 15
"""Queries shown that were won, and as many that were lost."""


def write_page(
    target: Path, judged: Judged, results: Sequence[Result], comparisons: Sequence[tuple[Result, Result, Comparison]]
) -> None:
    """Write the page.

    Args:
        target: The file.
        judged: The data.
        results: Each model, the baseline first.
        comparisons: Baseline, model, and how it differs.
    """
    names = labels(results)
    page = Page(f"Evaluation: {judged.name}", f"{describe(judged)}.")
    measures = list(results[0].measures.values)
    page.table(
        "Measures", ["model", *measures, "seconds"],
        [[name, *(f"{value:.4f}" for value in result.measures.means.values()), f"{result.seconds:.1f}"]
         for name, result in zip(names, results, strict=True)],
    )  # fmt: skip
    named = {id(result): name for name, result in zip(names, results, strict=True)}
    if comparisons:
        page.table(
            "Change", ["model", "from", "measure", "change", "95% interval", "p", "wins", "ties", "losses"],
            [[named[id(other)], named[id(base)], found.measure, f"{found.difference:+.4f}",
              f"{found.low:+.4f}, {found.high:+.4f}", f"{found.p_value:.4f}", found.wins, found.ties, found.losses]
             for base, other, found in comparisons],
            "p: how often a change at least as large arises when it is chance which model gets which of a query's two "
            "values.",
        )  # fmt: skip
    page.histogram(
        f"{MEASURE} of the queries", {name: result.measures.values[MEASURE] for name, result in
                                      zip(names, results, strict=True)}, MEASURE,
    )  # fmt: skip
    for base, other, found in comparisons:
        if found.measure == MEASURE:
            pair = f"{named[id(other)]} against {named[id(base)]}"
            for what, sign in (("Won", 1), ("Lost", -1)):
                cases = list(islice(differing(judged, base, other, sign), CASES))
                count = found.wins if sign > 0 else found.losses
                note = f"{len(cases)} of the {count:,} queries, those with the largest difference first."
                page.cases(f"{what}: {pair}", cases, note if count else "There is none.")
    page.write(target)


def differing(judged: Judged, base: Result, other: Result, sign: int) -> Iterator[Case]:
    """The queries on which a model is better (sign 1) or worse (-1) than the baseline, as cases, the most first."""
    before, after = base.measures.values[MEASURE], other.measures.values[MEASURE]
    gains = sign * (after - before)
    for query in np.argsort(-gains, kind="stable").tolist():
        if gains[query] <= 1e-9:
            return
        yield Case(
            judged.queries[query], passages_of(judged, base, other, query),
            f"{judged.query_ids[query]}: {MEASURE} {before[query]:.3f} before, {after[query]:.3f} after",
        )  # fmt: skip


def passages_of(judged: Judged, base: Result, other: Result, query: int) -> list[Passage]:
    """The relevant passages with their ranks, and what stands first by either model where that is not relevant."""
    grades = judged.qrels[judged.query_ids[query]]
    shown = []
    for passage in [key for key, grade in grades.items() if grade > 0 and key in judged.places][:RELEVANT]:
        place = judged.places[passage]
        ranks = [rank_in(result.measures.ranking[query].tolist(), place) for result in (base, other)]
        shown.append(Passage(f"positive, rank {ranks[0]} before, {ranks[1]} after", judged.passages[place]))
    for when, result in (("before", base), ("after", other)):
        first = int(result.measures.ranking[query][0])
        if first >= 0 and grades.get(judged.passage_ids[first], 0) <= 0:
            shown.append(Passage(f"first {when}, not judged relevant (negative)", judged.passages[first]))
    return shown


def rank_in(ranking: list[int], passage: int) -> str:
    """The rank of a passage, from 1."""
    return str(ranking.index(passage) + 1) if passage in ranking else f"over {len(ranking)}"
