"""From a row to a training group, by draws that depend on (seed, epoch, row) and on nothing else."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from bgectl.data.prompts import Prompts
from bgectl.data.rows import Row

T = TypeVar("T")

SYMMETRIC_TEXTS = ("symmetric_sts", "symmetric_clustering")
"""Types whose passages get the query's instruction."""


class Sampler(Protocol):
    """The draws a group needs; `random.Random` has them, and a test can script them."""

    def random(self) -> float: ...

    def choice(self, seq: Sequence[T], /) -> T: ...

    def sample(self, population: Sequence[T], k: int, /) -> list[T]: ...

    def shuffle(self, x: list[Any], /) -> None: ...


def sampler(seed: int, epoch: int, row: int, *what: str) -> random.Random:
    """The generator of one row in one epoch: the same whatever was drawn before, in whichever process.

    `what` is drawn, where a row has draws of several kinds at different times.
    """
    return random.Random("/".join(map(str, (seed, epoch, row, *what))))


@dataclass(frozen=True, slots=True)
class Group:
    """A query with its passages as the model reads them, the positive first.

    `scores` are the teacher's, one for each passage, or None. `positives` are all positives of the row as the
    model reads them: none of them may serve as the query's negative. `answer` is what answers the query where the row
    serves as an example (icl): the positive, or the category of a row that is to be clustered.
    """

    query: str
    passages: list[str]
    scores: list[float] | None
    positives: list[str]
    own_negatives_only: bool = False
    type: str = "normal"
    answer: str = ""


def draw_group(
    row: Row,
    group_size: int,
    prompts: Prompts,
    draws: Sampler,
    *,
    shuffle_ratio: float = 0.0,
    symmetric: bool = False,
    own_negatives_only: bool = False,
) -> Group:
    """Draw one positive and `group_size` - 1 negatives (reference, SPEC §2).

    Args:
        row: The row; `neg` may be empty only when `group_size` is 1.
        group_size: G, passages in the group.
        prompts: The instructions of the run.
        draws: Where the randomness comes from.
        shuffle_ratio: Probability that a positive longer than 100 characters is cut in three and shuffled.
        symmetric: Passages are of the query's kind and get its instruction.
        own_negatives_only: The row's dataset turns in-batch negatives off.
    """

    def passage(text: str) -> str:
        return prompts.query(text, row.prompt) if symmetric else prompts.passage(text)

    chosen = draws.choice(range(len(row.pos)))
    positive = shuffle_thirds(row.pos[chosen], shuffle_ratio, draws)
    negatives = draw_negatives(len(row.neg), group_size - 1, draws)
    scores = None
    if row.pos_scores is not None and row.neg_scores is not None:
        scores = [row.pos_scores[chosen], *(row.neg_scores[index] for index in negatives)]
    return Group(
        query=prompts.query(row.query, row.prompt),
        passages=[passage(positive), *(passage(row.neg[index]) for index in negatives)],
        scores=scores,
        positives=[passage(text) for text in row.pos],
        own_negatives_only=own_negatives_only,
        type=row.type,
        answer=positive if row.type != "symmetric_clustering" or row.category is None else row.category,
    )


def draw_negatives(available: int, wanted: int, draws: Sampler) -> list[int]:
    """Indices of the negatives, without replacement; where there are too few, from as many copies as it takes."""
    if wanted == 0:
        return []
    copies = math.ceil(wanted / available) if available < wanted else 1
    return draws.sample(list(range(available)) * copies, wanted)


def shuffle_thirds(text: str, ratio: float, draws: Sampler) -> str:
    """With probability `ratio`, cut a text longer than 100 characters in thirds and join them in another order."""
    if ratio <= 0 or len(text) <= 100 or draws.random() >= ratio:
        return text
    third = len(text) // 3 + 1
    parts = [text[start : start + third] for start in range(0, len(text), third)]
    draws.shuffle(parts)
    return " ".join(parts)
