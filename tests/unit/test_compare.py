"""The comparison of two models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bgectl.evaluate.compare import compare
from bgectl.evaluate.measure import Measures

NONE = np.empty((0, 0), dtype=np.int64)


def measures(values) -> Measures:
    return Measures([f"q{number}" for number in range(len(values))], {"nDCG@10": np.array(values, dtype=float)}, NONE)


def test_counts_and_exact_p_value_by_hand():
    """Three wins of equal size: 2 of the 8 ways to place the signs are at least as extreme."""
    found = compare(measures([0, 0, 0, 0.5]), measures([0.2, 0.2, 0.2, 0.5]), "nDCG@10")
    assert found.difference == pytest.approx(0.15)
    assert found.p_value == pytest.approx(2 / 8)
    assert (found.wins, found.ties, found.losses) == (3, 1, 0)
    assert 0 <= found.low <= found.difference <= found.high <= 0.2


def test_a_model_against_itself_shows_nothing():
    found = compare(measures([0.1, 0.9, 0.5]), measures([0.1, 0.9, 0.5]), "nDCG@10")
    assert (found.difference, found.p_value, found.low, found.high) == (0, 1, 0, 0)
    assert (found.wins, found.ties, found.losses) == (0, 3, 0)


def test_rounding_is_a_tie():
    assert compare(measures([0.1 + 0.2, 0.5]), measures([0.3, 0.5]), "nDCG@10").ties == 2


def test_the_other_way_round_changes_the_sign_only():
    draw = np.random.default_rng(1)
    first, second = measures(draw.random(40)), measures(draw.random(40))
    one, other = compare(first, second, "nDCG@10"), compare(second, first, "nDCG@10")
    assert one.difference == pytest.approx(-other.difference)
    assert (one.wins, one.losses) == (other.losses, other.wins)
    assert one.p_value == pytest.approx(other.p_value, abs=0.02)


def test_a_clear_difference_is_significant_and_noise_is_not():
    draw = np.random.default_rng(2)
    first = draw.random(200)
    better = compare(measures(first), measures(first + 0.05 + draw.normal(0, 0.05, 200)), "nDCG@10")
    assert better.p_value < 0.001
    assert better.low > 0
    assert better.difference - better.low == pytest.approx(1.96 * 0.05 / math.sqrt(200), rel=0.2)
    noise = compare(measures(first), measures(first + draw.normal(0, 0.05, 200)), "nDCG@10")
    assert noise.p_value > 0.05
    assert noise.low < 0 < noise.high


def test_p_values_are_even_where_there_is_no_difference():
    """A test at 5% must be wrong about one time in 20; counted over 200 comparisons of equal models."""
    draw = np.random.default_rng(3)
    values = [
        compare(measures(draw.random(12)), measures(draw.random(12)), "nDCG@10").p_value < 0.05 for _ in range(200)
    ]
    assert 2 <= sum(values) <= 20


def test_the_same_seed_gives_the_same_numbers():
    draw = np.random.default_rng(4)
    first, second = measures(draw.random(60)), measures(draw.random(60))
    assert compare(first, second, "nDCG@10", seed=7) == compare(first, second, "nDCG@10", seed=7)


def test_one_query_has_no_interval():
    found = compare(measures([0.1]), measures([0.4]), "nDCG@10")
    assert found.p_value == 1
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_single_difference_proves_nothing():
    found = compare(measures([0.1, 0.5, 0.5]), measures([0.9, 0.5, 0.5]), "nDCG@10")
    assert (found.p_value, found.wins, found.ties) == (1, 1, 2)


def test_inputs_are_left_alone_and_other_queries_refused():
    first, second = measures([0.1 + 0.2]), measures([0.3])
    compare(first, second, "nDCG@10")
    assert first.values["nDCG@10"][0] == 0.1 + 0.2
    with pytest.raises(ValueError, match="same queries"):
        compare(measures([0.1, 0.2]), measures([0.1]), "nDCG@10")
