"""The loss of one step of an embedder with one vector a text: contrastive, distillation, Matryoshka."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bgectl.losses.candidates import block_false_negatives
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
        false_negative_margin: Leave out the passages of other groups whose similarity is above the positive's by more
            than this, in the similarity's own unit (before the temperature); None leaves none out.
    """

    temperature: float = 0.02
    normalize: bool = True
    distillation: str | None = None
    dims: Sequence[int] = ()
    false_negative_margin: float | None = None

    def __call__(
        self,
        queries_BD: Tensor,
        passages_ND: Tensor,
        group_size: int,
        *,
        blocked_BN: Tensor | None = None,
        teacher_BG: Tensor | None = None,
        first: int = 0,
    ) -> Tensor:
        """The mean over queries and prefix lengths, a scalar in float32, or float64 where the vectors are.

        Args:
            queries_BD: Pooled vectors, not normalised.
            passages_ND: Pooled vectors of the candidates, not normalised; N = B·G, times W with
                those of all processes.
            group_size: G.
            blocked_BN: See `contrastive`.
            teacher_BG: Teacher scores; a row of NaN for a query without.
            first: The group of the first query among the candidates; other processes' groups stand before it.
        """
        with torch.autocast(queries_BD.device.type, enabled=False):
            width = queries_BD.shape[1]
            losses = [
                self._at(
                    full(queries_BD[:, :dim]), full(passages_ND[:, :dim]), group_size, blocked_BN, teacher_BG, first
                )
                for dim in ([min(dim, width) for dim in self.dims] or [width])
            ]
            return torch.stack(losses).mean()

    def _at(
        self, queries_BD: Tensor, passages_ND: Tensor, group_size: int, blocked_BN: Tensor | None,
        teacher_BG: Tensor | None, first: int,
    ) -> Tensor:  # fmt: skip
        if self.normalize:
            queries_BD, passages_ND = normalize(queries_BD, dim=-1), normalize(passages_ND, dim=-1)
        scores_BN = similarity(queries_BD, passages_ND, self.temperature)
        if self.false_negative_margin is not None:
            margin = self.false_negative_margin / self.temperature
            blocked_BN = block_false_negatives(scores_BN, blocked_BN, group_size, margin, first)
        return loss_of_scores(scores_BN, group_size, blocked_BN, teacher_BG, self.distillation, first)


def loss_of_scores(
    scores_BN: Tensor, group_size: int, blocked_BN: Tensor | None = None, teacher_BG: Tensor | None = None,
    distillation: str | None = None, first: int = 0,
) -> Tensor:  # fmt: skip
    """The mean over queries, a scalar: contrastive, and what is learned from a teacher where there are its scores.

    Args:
        scores_BN: Similarities over the temperature, of vectors or of anything else.
        group_size: G.
        blocked_BN: See `contrastive`.
        teacher_BG: Teacher scores; a row of NaN for a query without.
        distillation: See `EmbeddingLoss`.
        first: See `contrastive`.
    """
    contrast_B = contrastive(scores_BN, group_size, blocked_BN, first)
    if distillation is None or teacher_BG is None:
        return contrast_B.mean()
    if distillation == "kl_div":
        return (contrast_B + kl_div(scores_BN, teacher_BG, first)).mean()
    return torch.where(scored(teacher_BG), m3_kd(scores_BN, teacher_BG, blocked_BN, first), contrast_B).mean()


def full(vectors: Tensor) -> Tensor:
    """The vectors in float32, or in float64 where they are."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()
