"""The best passages of each query, kept while scores come block by block.

Letters: Q queries, K ranks, U passages of a block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Scores = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


class Best:
    """The k best passages of Q queries; of equal scores, that of the passage with the lower number comes first.

    Args:
        queries: Q.
        k: Ranks to keep.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._scores: Scores = np.full((queries, k), -np.inf, dtype=np.float32)
        self._indices: Numbers = np.full((queries, k), -1, dtype=np.int64)
        # Sorting costs most, so what comes in waits until it is as much as is kept.
        self._waiting: list[tuple[Numbers, Scores, Numbers]] = []
        self._count = 0

    @property
    def scores(self) -> Scores:
        """(Q, K) best first, -inf where there is no passage yet."""
        self._merge()
        return self._scores

    @property
    def indices(self) -> Numbers:
        """(Q, K) the passages, -1 where there is none yet."""
        self._merge()
        return self._indices

    def add(self, block: Scores | Tensor, first_query: int, passages: int | Numbers) -> None:
        """Take a block of scores in; blocks may come in any order.

        Args:
            block: (B, U) scores of some queries next to each other, on any device.
            first_query: The number of the block's first query.
            passages: (U,) the numbers of its passages, or that of the first where the others follow it.
        """
        scores = torch.from_numpy(block) if isinstance(block, np.ndarray) else block
        count, width = scores.shape
        k = self._scores.shape[1]
        if not count or not width or not k:
            return
        least = torch.from_numpy(self._scores[first_query : first_query + count, -1]).to(scores.device)
        if width > k and bool((least == -torch.inf).any()):
            least = torch.maximum(least, torch.topk(scores, k).values[:, -1])
        # As good as the last one kept: of equals the lower number stays, and it may be the new one.
        rows, columns = torch.nonzero(scores >= least[:, None], as_tuple=True)
        values: Scores = scores[rows, columns].cpu().numpy()
        places = columns.cpu().numpy()
        numbers = places + passages if isinstance(passages, int) else passages[places]
        self._waiting.append((first_query + rows.cpu().numpy(), values, numbers))
        self._count += len(values)
        if self._count >= self._scores.size:
            self._merge()

    def take(self, indices: Numbers, scores: Scores) -> None:
        """Take in what was found for all queries elsewhere.

        Args:
            indices: (Q, U) passages; -1 is passed over.
            scores: (Q, U).
        """
        rows, columns = np.nonzero(indices >= 0)
        self._waiting.append((rows, scores[rows, columns], indices[rows, columns]))
        self._count += len(rows)
        self._merge()

    def _merge(self) -> None:
        """Let what waits in among what is kept."""
        if not self._count:
            self._waiting.clear()
            return
        queries, values, numbers = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self._count = 0
        k = self._scores.shape[1]
        touched, place = np.unique(queries, return_inverse=True)
        groups = np.concatenate([np.repeat(np.arange(len(touched)), k), place])
        scores = np.concatenate([self._scores[touched].ravel(), values])
        passages = np.concatenate([self._indices[touched].ravel(), numbers])
        order = np.lexsort((passages, -scores, groups))
        sizes = k + np.bincount(place, minlength=len(touched))
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        kept = order[(starts[:, None] + np.arange(k)).ravel()]
        self._scores[touched] = scores[kept].reshape(-1, k)
        self._indices[touched] = passages[kept].reshape(-1, k)
