"""Which labels a teacher's scores change: laws over random scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgectl.relabel.run import judge

scores = st.lists(st.integers(-5, 5).map(float), max_size=8).map(lambda values: np.array(values, dtype=np.float32))


@given(scores.filter(len), scores, st.booleans(), st.integers(-3, 3), st.none() | st.integers(-5, 5),
       st.none() | st.integers(-5, 6))  # fmt: skip
def test_laws(positives, negatives, best, margin, least, least_positive):
    found = judge(positives, negatives, best=best, margin=margin, least=least, least_positive=least_positive)
    assert sorted(found.neg + found.false) == list(range(len(negatives))), "a negative is lost"
    right = [place for place, score in enumerate(positives) if least_positive is None or score >= least_positive]
    assert found.pos == right
    if not right:
        assert not found.false, "nothing to compare with"
        return
    bar = (max if best else min)(positives[place] for place in right) + margin
    for place, score in enumerate(negatives):
        assert (place in found.false) == (score > bar and (least is None or score >= least))


@pytest.mark.parametrize(("options", "false"), [
    ({}, [2]),
    ({"best": False}, [0, 2]),
    ({"margin": 0.5}, []),
    ({"margin": -0.5}, [0, 2]),
    ({"best": False, "least": 3}, [2]),
])  # fmt: skip
def test_by_hand(options, false):
    """Of a negative as high as the positive nothing is known."""
    found = judge(np.float32([3, 1]), np.float32([2.75, 1, 3.25, -1]), **options)
    assert found.false == false
