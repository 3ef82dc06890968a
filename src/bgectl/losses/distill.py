"""Learning a teacher's scores of a group (reference, SPEC §4).

A query without teacher scores has a row of NaN; its value here is 0, and the caller decides what it trains on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgectl.losses.contrastive import block, group_columns, own_group


def scored(teacher_BG: Tensor) -> Tensor:
    """(B,) True where a query has teacher scores."""
    return ~teacher_BG.isnan().any(dim=1)


def _weights(teacher_BG: Tensor) -> Tensor:
    """softmax(teacher); zeros where there are no scores."""
    weights_BG = torch.softmax(teacher_BG.nan_to_num(0.0), dim=1)
    return weights_BG * scored(teacher_BG).unsqueeze(1)


def kl_div(scores_BN: Tensor, teacher_BG: Tensor, first: int = 0) -> Tensor:
    """(B,) cross-entropy between the teacher's and the student's distribution over the group.

    -Σ_j t_j · log softmax_j(s), where t = softmax(teacher) and s are the scores of the query's own passages.
    """
    student_BG = own_group(scores_BN, teacher_BG.shape[1], first)
    return -(_weights(teacher_BG) * torch.log_softmax(student_BG, dim=1)).sum(dim=1)


def m3_kd(scores_BN: Tensor, teacher_BG: Tensor, blocked_BN: Tensor | None = None, first: int = 0) -> Tensor:
    """(B,) Σ_j t_j · CE(s with the group's passages 0 … j-1 left out, target passage j).

    The loss of BGE-M3 for teacher scores (reference, SPEC §4); candidates are all N passages that are not blocked.
    """
    queries, group_size = teacher_BG.shape
    weights_BG = _weights(teacher_BG)
    student_BG = own_group(scores_BN, group_size, first)
    rows, columns = group_columns(queries, group_size, scores_BN.device, first)
    candidates_BN = block(scores_BN, blocked_BN)
    total_B = torch.zeros_like(student_BG[:, 0])
    for j in range(group_size):
        if j:
            earlier = torch.zeros_like(candidates_BN, dtype=torch.bool)
            earlier[rows, columns[:, :j]] = True
            kept_BN = candidates_BN.masked_fill(earlier, float("-inf"))
        else:
            kept_BN = candidates_BN
        total_B = total_B + weights_BG[:, j] * (torch.logsumexp(kept_BN, dim=1) - student_BG[:, j])
    return total_B
