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
        passages: Indices into the pool: those of the range in rank order, then the random ones.
        random: How many of them were filled in at random.
    """

    passages: list[int]
    random: int


def select_negatives(
    ranking: npt.NDArray[np.int64],
    keys: Sequence[int],
    forbidden: Collection[int],
    wanted: int,
    generator: np.random.Generator,
) -> Negatives:
    """Draw negatives from the ranks given; where they are too few, fill with random passages (SPEC §7).

    Args:
        ranking: Pool indices at the ranks of the range.
        keys: For each pool index a number that copies of its text share.
        forbidden: Keys of the query and its positives.
        wanted: Negatives to take.
        generator: Source of the draws.

    Returns:
        At most `wanted` negatives, no two with the same key; fewer only where the pool has no more.
    """
    taken = set(forbidden)
    candidates = []
    for index in ranking.tolist():
        if keys[index] not in taken:
            taken.add(keys[index])
            candidates.append(index)
    if len(candidates) > wanted:
        chosen = np.sort(generator.choice(len(candidates), wanted, replace=False))
        return Negatives([candidates[position] for position in chosen], 0)
    filler = random_passages(keys, taken, wanted - len(candidates), generator)
    return Negatives(candidates + filler, len(filler))


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
