"""Which pool texts become negatives: laws over random pools."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgectl.data.copies import near_copies, same_text, shingles
from bgectl.mine.rule import Rule
from bgectl.mine.run import Ranked
from bgectl.mine.select import (
    candidates_of,
    random_passages,
    select_negatives,
    taking_order,
)


@st.composite
def cases(draw):
    """(ranking, keys, forbidden, wanted, seed): pools with copies, rankings of distinct texts."""
    size = draw(st.integers(1, 60))
    keys = draw(st.lists(st.integers(0, draw(st.integers(0, 60))), min_size=size, max_size=size))
    ranking = draw(st.permutations(range(size)))[: draw(st.integers(0, size))]
    forbidden = draw(st.sets(st.sampled_from(keys), max_size=5))
    return np.array(ranking, dtype=np.int64), keys, forbidden, draw(st.integers(1, 30)), draw(st.integers(0, 99))


def chosen_of(ranking, keys, forbidden, wanted, generator, **how):
    candidates = candidates_of(ranking, [keys[index] for index in ranking], forbidden)
    return select_negatives(candidates, keys, forbidden, wanted, generator, **how)


@given(cases())
def test_laws(case):
    ranking, keys, forbidden, wanted, seed = case
    chosen = chosen_of(ranking, keys, forbidden, wanted, np.random.default_rng(seed))
    taken = [keys[index] for index in chosen.passages]
    assert not set(taken) & forbidden, "a positive, the query or a copy of one is a negative"
    assert len(set(taken)) == len(taken), "a text is taken twice"
    assert len(taken) == min(wanted, len(set(keys) - forbidden)), "fewer than the pool has"
    inside = {keys[index] for index in ranking} - forbidden
    assert chosen.filled == max(0, len(taken) - len(inside)), "random texts though the range has enough"
    from_range = chosen.passages[: len(chosen.passages) - chosen.filled]
    positions = [ranking.tolist().index(index) for index in from_range]
    assert positions == sorted(positions), "not in the order of their ranks"
    again = chosen_of(ranking, keys, forbidden, wanted, np.random.default_rng(seed))
    assert again == chosen


@given(st.integers(0, 10**6), st.integers(1, 20))
def test_fill_from_a_large_pool_of_copies(seed, wanted):
    """The quick way draws with replacement; where that misses, fewer would be given than there are."""
    keys = [0] * 5000 + list(range(1, wanted + 1))
    chosen = random_passages(keys, {0}, wanted, np.random.default_rng(seed))
    assert sorted(keys[index] for index in chosen) == list(range(1, wanted + 1))


def test_all_ranks_are_drawn_evenly():
    counts = np.zeros(40)
    keys = list(range(100))
    for seed in range(2000):
        chosen = chosen_of(np.arange(10, 50), keys, {12}, 10, np.random.default_rng([1, seed]))
        counts[np.array(chosen.passages) - 10] += 1
    assert counts[2] == 0
    assert (np.abs(np.delete(counts, 2) / 2000 - 10 / 39) < 0.05).all()


def test_copies():
    assert same_text("  Straße\t\n X ") == same_text("STRASSE x")
    assert same_text("a b") != same_text("ab")


@given(cases(), st.lists(st.integers(0, 59), max_size=20))
def test_lower_ranks_come_before_random_texts(case, lower):
    ranking, keys, forbidden, wanted, seed = case
    lower = np.array([index for index in lower if index < len(keys)], dtype=np.int64)
    below = candidates_of(lower, [keys[index] for index in lower], forbidden)
    chosen = chosen_of(ranking, keys, forbidden, wanted, np.random.default_rng(seed), lower=below, fill="none")
    taken = [keys[index] for index in chosen.passages]
    assert not set(taken) & forbidden
    assert len(set(taken)) == len(taken)
    inside = candidates_of(ranking, [keys[index] for index in ranking], forbidden)
    reachable = {keys[index] for index in [*inside, *below]}
    assert len(taken) == min(wanted, len(reachable)), "fewer than there are, or random ones"
    assert chosen.filled == max(0, len(taken) - len(inside))


def test_ways_of_drawing():
    candidates = list(range(100, 160))
    assert taking_order(candidates, "top", np.random.default_rng(0)) == candidates
    means, firsts = {}, {}
    for how in ("random", "weighted"):
        drawn = [taking_order(candidates, how, np.random.default_rng([seed])) for seed in range(2000)]
        assert all(sorted(part) == candidates for part in drawn)
        means[how] = np.mean([part[:10] for part in drawn]) - 100
        firsts[how] = np.bincount([part[0] - 100 for part in drawn], minlength=60) / len(drawn)
    assert means["weighted"] < 20 < 28 < means["random"] < 31
    weights = 1 / np.arange(1, 61)
    assert np.abs(firsts["weighted"] - weights / weights.sum()).max() < 0.03, "not drawn by 1, 1/2, 1/3 …"


def test_near_copies():
    """Character 5-grams: a changed word in a long text is a near copy, in a short one not."""
    text = "find all files in the current directory that are larger than one megabyte and print them"
    assert near_copies(shingles(text), shingles(f"  {text.upper()}\n"))
    assert near_copies(shingles(text), shingles(text.replace("print", "list")))
    assert not near_copies(shingles(text), shingles(text.replace("find", "delete").replace("larger", "smaller")))
    assert near_copies(shingles("ab"), shingles("AB"))
    assert not near_copies(shingles("ab"), shingles("ac"))


@given(st.text(max_size=40), st.text(max_size=40))
def test_nearness_by_its_definition(one, other):
    a, b = shingles(one), shingles(other)
    assert near_copies(a, b) == near_copies(b, a) == (5 * len(a & b) >= 4 * len(a | b))


def test_near_copies_are_passed_over():
    """Neither of the query or a positive, nor of one another, in whatever order they are drawn."""

    def near(index, others):
        return index % 10 == 0 or any(index // 2 == other // 2 for other in others)

    for seed in range(50):
        chosen = select_negatives(
            list(range(60)), list(range(100)), set(), 30, np.random.default_rng(seed), lower=range(60, 90), near=near
        )  # fmt: skip
        assert len(chosen.passages) == 30
        assert not [index for index in chosen.passages if index % 10 == 0]
        assert len({index // 2 for index in chosen.passages}) == 30, "two near copies"
        assert chosen.copies + len(chosen.passages) - chosen.filled <= 60


@pytest.mark.parametrize(("rule", "positive", "kept", "reasons"), [
    (Rule(), 0.5, [0.9, 0.5, 0.475, 0.4, -0.1], {}),
    (Rule(percent=0.95), 0.5, [0.4, -0.1], {"near the positive": 3}),
    (Rule(percent=0.95), -0.1, [], {"near the positive": 5}),
    (Rule(percent=1.0), 0.5, [0.475, 0.4, -0.1], {"near the positive": 2}),
    (Rule(margin=0.1), 0.5, [0.4, -0.1], {"near the positive": 3}),
    (Rule(most=0.5), 0.0, [0.5, 0.475, 0.4, -0.1], {"above --max-score": 1}),
    (Rule(least=0.4, most=0.48), 0.0, [0.475, 0.4], {"above --max-score": 2, "below --min-score": 1}),
    (Rule(percent=0.9, least=0.0), 0.5, [0.4], {"near the positive": 3, "below --min-score": 1}),
])  # fmt: skip
def test_rules(rule, positive, kept, reasons):
    scores = np.array([0.9, 0.5, 0.475, 0.4, -0.1], dtype=np.float32)
    left_out = Counter()
    assert scores[rule.allowed(scores, positive, left_out)].tolist() == np.float32(kept).tolist()
    assert left_out == {reason: count for reason, count in reasons.items() if count}
    assert rule.active == bool(reasons)


def test_the_least_positive_counts():
    ranked = Ranked(np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1), dtype=np.float32), [np.float32([0.9, 0.3])])
    assert ranked.positive(0) == pytest.approx(0.3)
