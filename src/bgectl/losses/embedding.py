"""The loss of one step of an embedder with one vector a text: contrastive, distillation, Matryoshka."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bgectl.losses.contrastive import contrastive, similarity
from bgectl.losses.distill import kl_div, m3_kd, scored


@dataclass(frozen=True)
class EmbeddingLoss:
    """What the loss is made of.

    Args:
        temperature: Similarities are divided by it.
        normalize: Vectors are scaled to length 1 first.
        distillation: `kl_div` (added to the contrastive term), `m3_kd_loss` (in its place), or None.
        dims: Prefix lengths of the vectors to train, averaged (Matryoshka, arXiv 2205.13147); empty for the whole.
    """

    temperature: float = 0.02
    normalize: bool = True
    distillation: str | None = None
    dims: Sequence[int] = ()

    def __call__(
        self,
        queries_BD: Tensor,
        passages_ND: Tensor,
        group_size: int,
        *,
        blocked_BN: Tensor | None = None,
        teacher_BG: Tensor | None = None,
    ) -> Tensor:
        """The mean over queries and prefix lengths, a scalar in float32.

        Args:
            queries_BD: Pooled vectors, not normalised.
            passages_ND: Pooled vectors of the candidates, not normalised; N = B·G.
            group_size: G.
            blocked_BN: See `contrastive`.
            teacher_BG: Teacher scores; a row of NaN for a query without.
        """
        with torch.autocast(queries_BD.device.type, enabled=False):
            width = queries_BD.shape[1]
            losses = [
                self._at(queries_BD[:, :dim].float(), passages_ND[:, :dim].float(), group_size, blocked_BN, teacher_BG)
                for dim in ([min(dim, width) for dim in self.dims] or [width])
            ]
            return torch.stack(losses).mean()

    def _at(
        self, queries_BD: Tensor, passages_ND: Tensor, group_size: int, blocked_BN: Tensor | None,
        teacher_BG: Tensor | None,
    ) -> Tensor:  # fmt: skip
        if self.normalize:
            queries_BD, passages_ND = normalize(queries_BD, dim=-1), normalize(passages_ND, dim=-1)
        scores_BN = similarity(queries_BD, passages_ND, self.temperature)
        contrast_B = contrastive(scores_BN, group_size, blocked_BN)
        if self.distillation is None or teacher_BG is None:
            return contrast_B.mean()
        if self.distillation == "kl_div":
            return (contrast_B + kl_div(scores_BN, teacher_BG)).mean()
        return torch.where(scored(teacher_BG), m3_kd(scores_BN, teacher_BG, blocked_BN), contrast_B).mean()
