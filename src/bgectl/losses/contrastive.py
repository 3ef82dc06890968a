"""Contrastive loss over in-batch candidates (InfoNCE; reference, SPEC §4)."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity(queries_BD: Tensor, passages_ND: Tensor, temperature: float) -> Tensor:
    """(B, N) inner products divided by the temperature."""
    return queries_BD @ passages_ND.T / temperature


def block(scores_BN: Tensor, blocked_BN: Tensor | None) -> Tensor:
    """Scores with -inf where a candidate may not serve as the query's negative."""
    return scores_BN if blocked_BN is None else scores_BN.masked_fill(blocked_BN, float("-inf"))


def contrastive(scores_BN: Tensor, group_size: int, blocked_BN: Tensor | None = None, first: int = 0) -> Tensor:
    """(B,) cross-entropy of each query's positive against its candidates.

    Args:
        scores_BN: Similarities over the temperature.
        group_size: G; the positive of query i is candidate (first + i)·G.
        blocked_BN: True where a candidate is left out: a copy of a positive, or any passage of another group
            where in-batch negatives are off.
        first: The group of the first query: candidates of other processes may stand before it.
    """
    targets_B = (first + torch.arange(scores_BN.shape[0], device=scores_BN.device)) * group_size
    return torch.nn.functional.cross_entropy(block(scores_BN, blocked_BN), targets_B, reduction="none")


def own_group(scores_BN: Tensor, group_size: int, first: int = 0) -> Tensor:
    """(B, G) scores of each query with its own passages."""
    rows, columns = group_columns(scores_BN.shape[0], group_size, scores_BN.device, first)
    return scores_BN[rows, columns]


def group_columns(queries: int, group_size: int, device: torch.device, first: int = 0) -> tuple[Tensor, Tensor]:
    """Row and column indices, (B, 1) and (B, G), of each query's own passages."""
    rows = torch.arange(queries, device=device).unsqueeze(1)
    return rows, (first + rows) * group_size + torch.arange(group_size, device=device)
