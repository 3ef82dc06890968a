"""Late interaction: each token of a query with its best token of a passage (ColBERT, arXiv 2004.12832; SPEC §5).

Letters: B queries, U passages, S tokens of all queries, T tokens of all passages, D dimensions, L tokens of the longest
passage of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from bgectl.losses.tokens import Tokens

CELLS, CELLS_CPU = 1 << 26, 1 << 21
"""Similarities of tokens held at a time; a CPU's caches are small."""

QUERY_ROWS = 512
"""Query tokens of a block; on a CPU the largest that measured well."""


def maxsim(queries: Tokens, passages: Tokens) -> Tensor:
    """(B, U) the mean over a query's tokens of the largest inner product with a token of the passage.

    A passage without tokens scores 0, as does a query without. Padding takes no part: there is none.

    Neither the similarities of all tokens, (S, T), nor padded ones are held: they are computed in blocks, and of each
    only the maximum is kept, and which token had it, for the backward pass.

    Args:
        queries: (S, D) vectors of the queries' tokens.
        passages: (T, D) vectors of the passages' tokens, of the same type.
    """
    scores: Tensor = _MaxSim.apply(queries.values, passages.values, queries, passages)  # type: ignore[no-untyped-call]
    return scores


class _MaxSim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_SD: Tensor, passage_TD: Tensor, queries: Tokens, passages: Tokens) -> Tensor:
        owners = queries.owners
        total = query_SD.new_zeros(len(queries.lengths), len(passages.lengths))
        needed = query_SD.requires_grad or passage_TD.requires_grad
        # The place of the best token, among the tokens of all passages.
        best_SU = torch.zeros(
            (len(query_SD), len(passages.lengths)) if needed else (0, 0), dtype=torch.int32, device=query_SD.device
        )
        rows = QUERY_ROWS if query_SD.device.type == "cpu" else max(1, len(query_SD))
        for block in _blocks(passages.lengths, max(1, _cells(query_SD) // max(1, min(rows, len(query_SD))))):
            texts, index_UL, last_U = block.on(query_SD.device)
            vectors_ULD = passage_TD[index_UL]
            for start in range(0, len(query_SD), rows):
                part = slice(start, start + rows)
                similarities = query_SD[part] @ vectors_ULD.flatten(0, 1).T
                values, places = similarities.view(-1, *index_UL.shape).max(dim=2)
                total[:, texts] = total[:, texts].index_add(0, owners[part], values)
                if needed:
                    best_SU[part, texts] = (index_UL[:, 0] + places.clamp(max=last_U)).int()
        counts = torch.tensor(queries.lengths, device=total.device, dtype=total.dtype).clamp(min=1)
        ctx.save_for_backward(query_SD, passage_TD, best_SU, owners, counts)
        ctx.empty = [text for text, length in enumerate(passages.lengths) if not length]
        return total / counts.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, gradient_BU: Tensor) -> Any:
        query_SD, passage_TD, best_SU, owners, counts = ctx.saved_tensors
        gradient_BU = gradient_BU / counts.unsqueeze(1)
        gradient_BU[:, ctx.empty] = 0
        to_queries, to_passages = None, None
        if not best_SU.numel() or not len(passage_TD):
            return torch.zeros_like(query_SD), torch.zeros_like(passage_TD), None, None
        if ctx.needs_input_grad[0]:
            to_queries = torch.empty_like(query_SD)
            for part in _parts(best_SU):
                to_queries[part] = embedding_bag(
                    best_SU[part].long(), passage_TD, mode="sum", per_sample_weights=gradient_BU[owners[part]]
                )
        if ctx.needs_input_grad[1]:
            to_passages = torch.zeros_like(passage_TD)
            for part in _parts(best_SU):
                # Sorted by the passages' tokens, each has the query tokens that chose it in a row.
                chosen, order = best_SU[part].flatten().sort()
                tokens = torch.div(order, best_SU.shape[1], rounding_mode="floor") + part.start
                places, counted = torch.unique_consecutive(chosen, return_counts=True)
                to_passages[places.long()] += embedding_bag(
                    tokens, query_SD, counted.cumsum(0) - counted, mode="sum",
                    per_sample_weights=gradient_BU[owners[part]].flatten()[order],
                )  # fmt: skip
        return to_queries, to_passages, None, None


def _cells(tensor: Tensor) -> int:
    return CELLS_CPU if tensor.device.type == "cpu" else CELLS


def _parts(best_SU: Tensor) -> Iterator[slice]:
    """Rows whose indices and weights fit into the memory for similarities."""
    rows = max(1, _cells(best_SU) // best_SU.shape[1])
    return (slice(start, min(start + rows, len(best_SU))) for start in range(0, len(best_SU), rows))


class _Block:
    """Passages of like length; a shorter one repeats its last token, which changes no maximum."""

    def __init__(self, texts: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> None:
        self.texts = np.asarray(texts)
        self.last = np.asarray(lengths) - 1
        self.index = np.asarray(starts)[:, None] + np.minimum(np.arange(max(lengths)), self.last[:, None])

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(U,) the passages, (U, L) where their tokens stand, (U,) the place of each one's last token."""
        arrays = (self.texts, self.index, self.last)
        texts, index, last = (torch.from_numpy(array).to(device) for array in arrays)
        return texts, index, last


def _blocks(lengths: Sequence[int], most: int) -> Iterator[_Block]:
    """Blocks of at most `most` tokens, padding included; passages without tokens are left out."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    order = [text for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]) if lengths[text]]
    while order:
        count = max(1, most // lengths[order[0]])
        texts, order = order[:count], order[count:]
        yield _Block(texts, [int(starts[text]) for text in texts], [lengths[text] for text in texts])
