"""Which passages may not serve as a query's negatives."""

from __future__ import annotations

from torch import Tensor

from bgectl.losses.contrastive import group_columns


def blocked_candidates(
    passage_ids_N: Tensor, positive_ids_BP: Tensor, own_only_B: Tensor, group_size: int, *, first: int = 0,
    mask_duplicates: bool = True,
) -> Tensor:  # fmt: skip
    """(B, N) True where a passage of another group may not be the query's negative.

    A copy of one of the query's own positives is no negative, and rows whose dataset turns in-batch negatives off see
    their own group alone. The query's own group is never blocked.

    Args:
        passage_ids_N: A number for each candidate's text; equal texts have equal numbers.
        positive_ids_BP: The numbers of all positives of each query's row; rows with fewer repeat one.
        own_only_B: True where the row's dataset turns in-batch negatives off.
        group_size: G.
        first: The group of the first query among the candidates; other processes' groups stand before it.
        mask_duplicates: Whether copies of positives are blocked.
    """
    blocked_BN = own_only_B.unsqueeze(1).expand(-1, len(passage_ids_N)).clone()
    if mask_duplicates:
        for positive_B in positive_ids_BP.T:
            blocked_BN |= passage_ids_N == positive_B.unsqueeze(1)
    rows, columns = group_columns(len(blocked_BN), group_size, blocked_BN.device, first)
    blocked_BN[rows, columns] = False
    return blocked_BN


def block_false_negatives(scores_BN: Tensor, blocked_BN: Tensor | None, group_size: int, margin: float,
                          first: int = 0) -> Tensor:  # fmt: skip
    """(B, N) `blocked_BN`, and also the passages of other groups that score above the query's positive plus a margin.

    Such a passage is more likely an unlabelled positive than a negative. The query's own negatives, which were chosen
    for it, stay.

    Args:
        scores_BN: Similarities over the temperature.
        blocked_BN: See `blocked_candidates`; None where nothing is blocked.
        group_size: G.
        margin: In the scores' unit.
        first: See `blocked_candidates`.
    """
    rows, columns = group_columns(len(scores_BN), group_size, scores_BN.device, first)
    suspect_BN = scores_BN.detach() > scores_BN.detach()[rows, columns[:, :1]] + margin
    suspect_BN[rows, columns] = False
    return suspect_BN if blocked_BN is None else blocked_BN | suspect_BN
