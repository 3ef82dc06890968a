"""From rankings to negatives: pure functions over indices, seeded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Keys = Sequence[int] | npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Negatives:
    """What was taken for one row.

    Attributes:
        passages: Indices into the pool: those of the range in rank order, then those of lower ranks or the random ones.
        filled: How many of them are not of the range.
        random: How many of them are random.
        copies: Candidates that were passed over as near copies.
    """

    passages: list[int]
    filled: int = 0
    random: int = 0
    copies: int = 0


def candidates_of(
    ranking: npt.NDArray[np.int64],
    keys: Keys,
    forbidden: Collection[int],
    allowed: npt.NDArray[np.bool_] | None = None,
) -> list[int]:
    """The pool indices of a ranking that may be negatives, in rank order, no two with the same key.

    Args:
        ranking: Pool indices, best first; -1 where the pool had no more.
        keys: For each rank a number that copies of its text share.
        forbidden: Keys of the query and its positives.
        allowed: Which ranks may be taken; None for all.
    """
    taken = set(forbidden)
    found = []
    for place, index in enumerate(ranking.tolist()):
        if index >= 0 and (allowed is None or allowed[place]) and (key := int(keys[place])) not in taken:
            taken.add(key)
            found.append(index)
    return found


def taking_order(candidates: Sequence[int], how: str, generator: np.random.Generator) -> list[int]:
    """All candidates in the order in which they are to be taken.

    Args:
        candidates: In rank order.
        how: `random`; `top`, the best ranks first; `weighted`, drawn one after the other with weights 1, 1/2, 1/3 …
        generator: Source of the draws.
    """
    if how == "top":
        return list(candidates)
    # The first of exponential clocks to ring is drawn by weight (Efraimidis and Spirakis, 2006).
    rates = 1 / np.arange(1, len(candidates) + 1) if how == "weighted" else np.ones(len(candidates))
    clocks = generator.exponential(size=len(candidates)) / rates
    return [candidates[place] for place in np.argsort(clocks, kind="stable").tolist()]


def select_negatives(
    candidates: Sequence[int],
    keys: Keys,
    forbidden: Collection[int],
    wanted: int,
    generator: np.random.Generator,
    *,
    how: str = "random",
    lower: Sequence[int] = (),
    fill: str = "random",
    near: Callable[[int, Sequence[int]], bool] | None = None,
) -> Negatives:
    """Draw negatives; where they are too few, take the best of lower ranks, then random passages (SPEC §7).

    Args:
        candidates: Of the range; see `candidates_of`.
        keys: For each pool index a number that copies of its text share.
        forbidden: Keys of the query and its positives.
        wanted: Negatives to take.
        generator: Source of the draws.
        how: See `taking_order`.
        lower: Candidates of lower ranks, in rank order.
        fill: `random` takes random passages where there are still too few, `deeper` where there are none, and `none`
            never.
        near: Whether a passage is nearly a copy of the query, of a positive or of one of those given.

    Returns:
        At most `wanted` negatives, no two with the same key.
    """
    drawn: list[int] = []
    copies = 0
    for index in taking_order(candidates, how, generator):
        if len(drawn) == wanted:
            break
        if near is not None and near(index, drawn):
            copies += 1
        else:
            drawn.append(index)
    chosen = set(drawn)
    passages = [index for index in candidates if index in chosen]
    taken = {int(keys[index]) for index in passages} | set(forbidden)
    more: list[int] = []
    for index in lower:
        if len(passages) + len(more) == wanted:
            break
        if int(keys[index]) not in taken and not (near is not None and near(index, passages + more)):
            taken.add(int(keys[index]))
            more.append(index)
    found = len(passages) + len(more)
    if fill == "random" or (fill == "deeper" and not found):
        fits = None if near is None else lambda index, others: not near(index, [*passages, *more, *others])
        more += random_passages(keys, taken, wanted - len(passages) - len(more), generator, fits)
    return Negatives(passages + more, len(more), len(passages) + len(more) - found, copies)


def random_passages(
    keys: Keys, taken: Collection[int], wanted: int, generator: np.random.Generator,
    fits: Callable[[int, Sequence[int]], bool] | None = None,
) -> list[int]:  # fmt: skip
    """Up to `wanted` random pool indices with different keys, none taken, each of which fits to those before it."""
    chosen: list[int] = []
    seen = set(taken)
    if not wanted:
        return chosen
    for index in _random_order(len(keys), 4 * wanted + 16, 64 * (wanted + len(seen)), generator):
        if (key := int(keys[index])) not in seen and (fits is None or fits(index, chosen)):
            seen.add(key)
            chosen.append(index)
            if len(chosen) == wanted:
                break
    return chosen


def _random_order(size: int, few: int, large: int, generator: np.random.Generator) -> Iterator[int]:
    """All indices below `size` in random order; of a pool over `large` first some draws, which usually do."""
    if size > large:
        yield from generator.integers(size, size=few).tolist()
    yield from generator.permutation(size).tolist()
