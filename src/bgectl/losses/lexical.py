"""Lexical matching of a sparse head: the product of the weights of the tokens that two texts share (BGE-M3, SPEC §5).

The vector of a text over the vocabulary has for each token id the largest weight of its positions. It is never written
down: only ids that occur in a query can add to a score, so the columns are those ids.

Letters: B queries, U passages, T tokens, V distinct token ids of the queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgectl.losses.tokens import Tokens


def lexical_scores(queries: Tokens, query_ids_T: Tensor, passages: Tokens, passage_ids_T: Tensor) -> Tensor:
    """(B, U) Σ_v q_v · p_v over the token ids v, where q_v and p_v are the largest weights of v in the two texts.

    The gradient of a maximum goes to the position that has it. Where several positions have it, each gets an equal
    share; the reference gives all to one of them, and which one depends on the device.

    Args:
        queries: Token weights, at least 0; those of tokens that do not count are 0.
        query_ids_T: The tokens' ids.
        passages: The same of the passages.
        passage_ids_T: The same.
    """
    vocabulary_V, columns = torch.unique(query_ids_T, return_inverse=True)
    shared = torch.isin(passage_ids_T, vocabulary_V)
    places = torch.searchsorted(vocabulary_V, passage_ids_T[shared])
    query_BV = _strongest(queries.values, queries.owners, columns, len(queries.lengths), len(vocabulary_V))
    passage_UV = _strongest(
        passages.values[shared], passages.owners[shared], places, len(passages.lengths), len(vocabulary_V)
    )
    return query_BV @ passage_UV.T


def _strongest(weights_T: Tensor, rows_T: Tensor, columns_T: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns) the largest weight of each cell, 0 where there is none."""
    cells = weights_T.new_zeros(rows * columns)
    return cells.scatter_reduce(0, rows_T * columns + columns_T, weights_T, "amax").view(rows, columns)
