"""The best passages of each query, kept while scores come block by block.

Letters: Q queries, K ranks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]


class Best:
    """The k best passages of Q queries; of equal scores, that of the earlier passage comes first.

    Args:
        queries: Q.
        k: Ranks to keep.

    Attributes:
        scores: (Q, K) best first, -inf where there is no passage yet.
        indices: (Q, K) the passages, -1 where there is none yet.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.scores: Scores = np.full((queries, k), -np.inf, dtype=np.float32)
        self.indices = np.full((queries, k), -1, dtype=np.int64)

    def add(self, block: Scores, first_query: int, first_passage: int) -> None:
        """Take a block of scores in; passages must come in their order.

        Args:
            block: Scores of some queries with some passages, both next to each other.
            first_query: The number of the block's first query.
            first_passage: The number of its first passage.
        """
        k = self.scores.shape[1]
        worst = self.scores[first_query : first_query + len(block), -1]
        for row in np.flatnonzero(block.max(axis=1) > worst):
            query = first_query + int(row)
            # Later passages lose ties, so only a larger score enters; the stable sort keeps the order within.
            entering = _largest(block[row], k, self.scores[query, -1])
            merged = np.concatenate([self.scores[query], block[row, entering]])
            whose = np.concatenate([self.indices[query], entering + first_passage])
            order = np.argsort(-merged, kind="stable")[:k]
            self.scores[query], self.indices[query] = merged[order], whose[order]


def _largest(values: Scores, k: int, above: np.float32) -> npt.NDArray[np.intp]:
    """Places, in order, of the values larger than `above` that can be among the k largest, with all ties at the end."""
    places = np.flatnonzero(values > above)
    if len(places) <= k:
        return places
    candidates = values[places]
    kth = np.partition(candidates, len(places) - k)[len(places) - k]
    best: npt.NDArray[np.intp] = places[candidates >= kth]
    return best
