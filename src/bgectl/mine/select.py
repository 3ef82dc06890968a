"""From rankings to negatives: pure functions over indices, seeded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def same_text(text: str) -> str:
    """A key that copies of a text share when they differ only in case or white space."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Negatives:
    """What was taken for one row.

    Attributes:
        passages: Indices into the pool: those of the range in rank order, then those of lower ranks or the random ones.
        filled: How many of them are not of the range.
    """

    passages: list[int]
    filled: int = 0


def candidates_of(
    ranking: npt.NDArray[np.int64],
    keys: Sequence[int],
    forbidden: Collection[int],
    allowed: npt.NDArray[np.bool_] | None = None,
) -> list[int]:
    """The pool indices of a ranking that may be negatives, in rank order, no two with the same key.

    Args:
        ranking: Pool indices, best first; -1 where the pool had no more.
        keys: For each pool index a number that copies of its text share.
        forbidden: Keys of the query and its positives.
        allowed: Which ranks may be taken; None for all.
    """
    taken = set(forbidden)
    found = []
    for place, index in enumerate(ranking.tolist()):
        if index >= 0 and keys[index] not in taken and (allowed is None or allowed[place]):
            taken.add(keys[index])
            found.append(index)
    return found


def draw(candidates: Sequence[int], wanted: int, how: str, generator: np.random.Generator) -> list[int]:
    """At most `wanted` of the candidates, in their order.

    Args:
        candidates: In rank order.
        wanted: How many.
        how: `random`; `top`, the best ranks; `weighted`, drawn with weights 1, 1/2, 1/3 …
        generator: Source of the draws.
    """
    if len(candidates) <= wanted:
        return list(candidates)
    if how == "top":
        return list(candidates[:wanted])
    weights = None
    if how == "weighted":
        weights = 1 / np.arange(1, len(candidates) + 1)
        weights /= weights.sum()
    chosen = np.sort(generator.choice(len(candidates), wanted, replace=False, p=weights))
    return [candidates[place] for place in chosen]


def select_negatives(
    candidates: Sequence[int],
    keys: Sequence[int],
    forbidden: Collection[int],
    wanted: int,
    generator: np.random.Generator,
    *,
    how: str = "random",
    lower: Sequence[int] = (),
    fill: bool = True,
) -> Negatives:
    """Draw negatives; where they are too few, take the best of lower ranks, then random passages (SPEC §7).

    Args:
        candidates: Of the range; see `candidates_of`.
        keys: For each pool index a number that copies of its text share.
        forbidden: Keys of the query and its positives.
        wanted: Negatives to take.
        generator: Source of the draws.
        how: See `draw`.
        lower: Candidates of lower ranks, in rank order.
        fill: Take random passages where there are still too few.

    Returns:
        At most `wanted` negatives, no two with the same key.
    """
    chosen = draw(candidates, wanted, how, generator)
    taken = {keys[index] for index in chosen} | set(forbidden)
    more: list[int] = []
    for index in lower:
        if len(chosen) + len(more) == wanted:
            break
        if keys[index] not in taken:
            taken.add(keys[index])
            more.append(index)
    if fill:
        more += random_passages(keys, taken, wanted - len(chosen) - len(more), generator)
    return Negatives(chosen + more, len(more))


def random_passages(
    keys: Sequence[int], taken: Collection[int], wanted: int, generator: np.random.Generator
) -> list[int]:
    """Up to `wanted` random pool indices with different keys, none of them taken."""
    chosen: list[int] = []
    seen = set(taken)
    if not wanted:
        return chosen
    for index in _random_order(len(keys), 4 * wanted + 16, 64 * (wanted + len(seen)), generator):
        if keys[index] not in seen:
            seen.add(keys[index])
            chosen.append(index)
            if len(chosen) == wanted:
                break
    return chosen


def _random_order(size: int, few: int, large: int, generator: np.random.Generator) -> Iterator[int]:
    """All indices below `size` in random order; of a pool over `large` first some draws, which usually do."""
    if size > large:
        yield from generator.integers(size, size=few).tolist()
    yield from generator.permutation(size).tolist()
