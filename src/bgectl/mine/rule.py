"""Which candidates may be negatives, by their scores: what is nearer to the query than its positive is likely relevant.

The rule by a share of the positive's score is that of NV-Retriever (arXiv 2407.15831, "TopK-PercPos").
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rule:
    """Bounds for the score of a negative.

    Args:
        percent: Below this share of the score of the row's least similar positive.
        margin: Below that score by at least this much.
        least: At least this.
        most: At most this.
    """

    percent: float | None = None
    margin: float | None = None
    least: float | None = None
    most: float | None = None

    @property
    def by_positive(self) -> bool:
        """Whether the positives' scores are needed."""
        return self.percent is not None or self.margin is not None

    @property
    def active(self) -> bool:
        """Whether any candidate can be left out."""
        return self.by_positive or self.least is not None or self.most is not None

    def allowed(self, scores: Scores, positive: float, left_out: Counter[str]) -> npt.NDArray[np.bool_]:
        """Which candidates stay.

        Args:
            scores: Of a row's candidates.
            positive: The least score of the row's positives; not looked at where the rule does not need it.
            left_out: Gets how many were left out, by reason.
        """
        bounds: list[tuple[str, npt.NDArray[np.bool_]]] = []
        if self.percent is not None:
            # Of a negative score a share would be a higher one.
            bounds.append(("near the positive", scores < positive - (1 - self.percent) * abs(positive)))
        if self.margin is not None:
            bounds.append(("near the positive", scores <= positive - self.margin))
        if self.most is not None:
            bounds.append(("above --max-score", scores <= self.most))
        if self.least is not None:
            bounds.append(("below --min-score", scores >= self.least))
        keep = np.ones(len(scores), dtype=np.bool_)
        for reason, fine in bounds:
            left_out[reason] += int((keep & ~fine).sum())
            keep &= fine
        return keep
