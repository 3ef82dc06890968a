"""From token vectors to one vector a text.

Letters: N texts, L tokens, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pool(hidden_NLD: Tensor, mask_NL: Tensor, how: str) -> Tensor:
    """One vector a text.

    Args:
        hidden_NLD: Last hidden states, (N, L, D).
        mask_NL: 1 for a token, 0 for padding on either side, (N, L).
        how: `cls` (the first token), `mean` (over the tokens), `last_token`.

    Returns:
        (N, D), not normalised.
    """
    if how == "cls":
        return hidden_NLD[_rows(mask_NL), mask_NL.long().argmax(dim=1)]
    if how == "mean":
        weights = mask_NL.unsqueeze(-1).to(hidden_NLD.dtype)
        return (hidden_NLD * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    if how == "last_token":
        last = mask_NL.shape[1] - 1 - mask_NL.flip(1).long().argmax(dim=1)
        return hidden_NLD[_rows(mask_NL), last]
    raise ValueError(f"unknown pooling {how!r}")


def _rows(mask_NL: Tensor) -> Tensor:
    return torch.arange(mask_NL.shape[0], device=mask_NL.device)
