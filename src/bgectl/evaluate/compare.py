"""Whether one model is better than another on the same queries, or only luckier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bgectl.evaluate.measure import Measures

COMPARED = ("nDCG@10", "MRR@10")
RESAMPLES = 9_999
"""Of the test and of the interval; the smallest p value that it can give is 2/10,000."""
CELLS = 4_000_000
"""Resampled values held at a time: 32 MiB."""


@dataclass(frozen=True)
class Comparison:
    """The second model against the first in one measure.

    Args:
        measure: Its name.
        difference: Mean of second - first over the queries.
        low: Lower end of the 95% interval of the difference; NaN for a single query.
        high: Upper end.
        p_value: Two-sided: how often a difference at least as large arises when it is chance which model gets which
            of a query's two values.
        wins: Queries on which the second is better.
        ties: Queries without a difference.
        losses: Queries on which the first is better.
    """

    measure: str
    difference: float
    low: float
    high: float
    p_value: float
    wins: int
    ties: int
    losses: int


def compare(first: Measures, second: Measures, measure: str, *, seed: int = 0) -> Comparison:
    """Paired randomisation test and percentile bootstrap (Smucker, Allan and Carterette, CIKM 2007).

    Args:
        first: The baseline.
        second: The model compared with it, on the same queries.
        measure: A key of both `values`.
        seed: Of both resamplings.

    Raises:
        ValueError: The queries differ.
    """
    if first.query_ids != second.query_ids:
        raise ValueError("two models can only be compared on the same queries")
    differences = second.values[measure] - first.values[measure]
    # The same ranking can give sums that differ in the last bit.
    differences[np.abs(differences) < 1e-9] = 0.0
    low, high = _interval(differences, seed)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(
        measure=measure,
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=_p_value(differences[differences != 0], seed),
        wins=wins,
        ties=len(differences) - wins - losses,
        losses=losses,
    )


def _p_value(differences: np.ndarray[tuple[int], np.dtype[np.float64]], seed: int) -> float:
    """Signs are drawn at random, or all tried where there are few; ties cannot change the sum and are left out."""
    if len(differences) < 2:
        # scipy wants two; with one difference both signs are equally extreme.
        return 1.0
    from scipy.stats import permutation_test

    result = permutation_test(
        (differences,), np.sum, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES,
        batch=max(1, CELLS // len(differences)), random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def _interval(differences: np.ndarray[tuple[int], np.dtype[np.float64]], seed: int) -> tuple[float, float]:
    if len(differences) < 2:
        return float("nan"), float("nan")
    from scipy.stats import bootstrap

    interval = bootstrap(
        (differences,), np.mean, method="percentile", vectorized=True, n_resamples=RESAMPLES,
        batch=max(1, CELLS // len(differences)), random_state=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)
