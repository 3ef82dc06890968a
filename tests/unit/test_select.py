"""Which pool texts become negatives: laws over random pools."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bgectl.mine.select import random_passages, same_text, select_negatives


@st.composite
def cases(draw):
    """(ranking, keys, forbidden, wanted, seed): pools with copies, rankings of distinct texts."""
    size = draw(st.integers(1, 60))
    keys = draw(st.lists(st.integers(0, draw(st.integers(0, 60))), min_size=size, max_size=size))
    ranking = draw(st.permutations(range(size)))[: draw(st.integers(0, size))]
    forbidden = draw(st.sets(st.sampled_from(keys), max_size=5))
    return np.array(ranking, dtype=np.int64), keys, forbidden, draw(st.integers(1, 30)), draw(st.integers(0, 99))


@given(cases())
def test_laws(case):
    ranking, keys, forbidden, wanted, seed = case
    chosen = select_negatives(ranking, keys, forbidden, wanted, np.random.default_rng(seed))
    taken = [keys[index] for index in chosen.passages]
    assert not set(taken) & forbidden, "a positive, the query or a copy of one is a negative"
    assert len(set(taken)) == len(taken), "a text is taken twice"
    assert len(taken) == min(wanted, len(set(keys) - forbidden)), "fewer than the pool has"
    inside = {keys[index] for index in ranking} - forbidden
    assert chosen.random == max(0, len(taken) - len(inside)), "random texts though the range has enough"
    from_range = chosen.passages[: len(chosen.passages) - chosen.random]
    positions = [ranking.tolist().index(index) for index in from_range]
    assert positions == sorted(positions), "not in the order of their ranks"
    again = select_negatives(ranking, keys, forbidden, wanted, np.random.default_rng(seed))
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
        chosen = select_negatives(np.arange(10, 50), keys, {12}, 10, np.random.default_rng([1, seed]))
        counts[np.array(chosen.passages) - 10] += 1
    assert counts[2] == 0
    assert (np.abs(np.delete(counts, 2) / 2000 - 10 / 39) < 0.05).all()


def test_copies():
    assert same_text("  Straße\t\n X ") == same_text("STRASSE x")
    assert same_text("a b") != same_text("ab")
