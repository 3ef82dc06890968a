"""Dense, sparse and ColBERT trained together, and by their sum (BGE-M3, arXiv 2402.03216 §3; SPEC §5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bgectl.losses.candidates import block_false_negatives
from bgectl.losses.contrastive import block
from bgectl.losses.embedding import loss_of_scores

HEADS = ("dense", "sparse", "colbert")
SPARSE_SHARE = 0.3
"""Of the sparse score in the sum of the scores; the others count whole."""
SPARSE_LOSS_SHARE = 0.1
"""Of the sparse loss in the sum of the losses; the others count whole."""


def ensemble(scores: Mapping[str, Tensor]) -> Tensor:
    """dense + 0.3 · sparse + colbert; the scores of each head by its name, all of one shape."""
    return scores["dense"] + SPARSE_SHARE * scores["sparse"] + scores["colbert"]


def self_distillation(scores_BN: Tensor, teacher_BN: Tensor, blocked_BN: Tensor | None = None) -> Tensor:
    """The mean over queries of -Σ_j t_j · log softmax_j(s), t the softmax of the teacher's scores, over the candidates.

    Args:
        scores_BN: A head's scores.
        teacher_BN: The ensemble's; they get no gradient.
        blocked_BN: Candidates that neither looks at.
    """
    weights_BN = torch.softmax(block(teacher_BN.detach(), blocked_BN), dim=1)
    logs_BN = torch.log_softmax(block(scores_BN, blocked_BN), dim=1)
    if blocked_BN is not None:
        # Their weight is 0 and their logarithm -inf.
        logs_BN = logs_BN.masked_fill(blocked_BN, 0.0)
    return -(weights_BN * logs_BN).sum(dim=1).mean()


@dataclass(frozen=True)
class UnifiedLoss:
    """The loss of all heads, from their scores.

    Args:
        distillation: Of a teacher's scores, by each head and the ensemble; see `EmbeddingLoss`.
        false_negative_margin: Leave out the passages of other groups whose dense score is above the positive's by more
            than this, in all heads; in the scores' unit. None leaves none out.
    """

    distillation: str | None = None
    false_negative_margin: float | None = None

    def __call__(
        self, scores: Mapping[str, Tensor], group_size: int, *, dense_loss: Tensor | None = None,
        blocked_BN: Tensor | None = None, teacher_BG: Tensor | None = None, first: int = 0, self_distill: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """(L_dense + L_ensemble + 0.1 · L_sparse + L_colbert) / 4, each the loss of that head's scores.

        With `self_distill`, half of that and half of (K_dense + 0.1 · K_sparse + K_colbert) / 3, each the
        `self_distillation` of that head from the ensemble.

        Args:
            scores: (B, N) of each head.
            group_size: G.
            dense_loss: L_dense where it is another one than that of the dense scores, such as one with the
                passages of all processes.
            blocked_BN: See `contrastive`.
            teacher_BG: A teacher's scores; see `EmbeddingLoss`.
            first: See `contrastive`.
            self_distill: Whether the heads learn from the ensemble.

        Returns:
            The loss, and those of the heads and the ensemble by name.
        """
        if self.false_negative_margin is not None:
            blocked_BN = block_false_negatives(
                scores["dense"], blocked_BN, group_size, self.false_negative_margin, first
            )

        def loss_of(scores_BN: Tensor) -> Tensor:
            return loss_of_scores(scores_BN, group_size, blocked_BN, teacher_BG, self.distillation, first)

        together_BN = ensemble(scores)
        parts = {name: loss_of(scores[name]) for name in ("sparse", "colbert")}
        parts["dense"] = loss_of(scores["dense"]) if dense_loss is None else dense_loss
        parts["ensemble"] = loss_of(together_BN)
        loss = (_weighted(parts) + parts["ensemble"]) / 4
        if self_distill:
            learned = {name: self_distillation(scores[name], together_BN, blocked_BN) for name in HEADS}
            loss = (loss + _weighted(learned) / 3) / 2
        return loss, parts


def _weighted(parts: Mapping[str, Tensor]) -> Tensor:
    return parts["dense"] + SPARSE_LOSS_SHARE * parts["sparse"] + parts["colbert"]
