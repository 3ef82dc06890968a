"""What was measured of a model, and what it is called beside others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from bgectl.evaluate.judged import Judged
from bgectl.evaluate.measure import Measures


@dataclass(frozen=True)
class Result:
    """One model's measures by one kind of score, how it was run, and the seconds of encoding and searching."""

    model: str
    score: str
    measures: Measures
    description: str
    seconds: float


def describe(judged: Judged) -> str:
    """One line about the data."""
    parts = [f"{len(judged.queries):,} queries, {len(judged.passages):,} passages, {judged.judgments:,} relevant pairs"]
    if judged.left_out:
        parts.append(f"{judged.left_out:,} queries without a relevant passage left out")
    if judged.itself:
        parts.append(f"{len(judged.itself):,} queries are passages too and do not count as their own results")
    return f"{judged.name}: {'; '.join(parts)}"


def short_names(models: list[str]) -> list[str]:
    """The ends of the models' names, as long as it takes to tell them apart; a folder's whole path fills a table."""
    parts = [PurePath(model).parts for model in models]
    for length in range(2, max(map(len, parts)) + 1):
        names = [str(PurePath(*part[-length:])) for part in parts]
        if len(set(names)) == len(set(models)):
            return names
    return models


def labels(results: Sequence[Result]) -> list[str]:
    """What each result is called in a table: a short name of its model, and its kind of score if there are others."""
    models = [result.model for result in results]
    names = dict(zip(models, short_names(models), strict=True))
    plain = all(result.score == "dense" for result in results)
    return [names[result.model] if plain else f"{names[result.model]} {result.score}" for result in results]
