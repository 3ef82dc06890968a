"""What a row becomes: draws, copies, prompts and scores."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgectl.data.draw import draw_group, draw_negatives, sampler, shuffle_thirds
from bgectl.data.prompts import Prompts
from bgectl.data.rows import to_row


def row(positives=3, negatives=8, **extra):
    return to_row(
        {"query": "q", "pos": [f"p{n}" for n in range(positives)], "neg": [f"n{n}" for n in range(negatives)], **extra}
    )


def group(seed=0, epoch=0, place=0, size=4, **extra):
    return draw_group(row(), size, Prompts(), sampler(seed, epoch, place), **extra)


def test_draws_depend_on_seed_epoch_and_row_and_on_nothing_before():
    first = group(1, 2, 3)
    for other in range(50):
        group(1, 2, other)
    assert group(1, 2, 3) == first, "what was drawn before has an effect"
    for number, name in enumerate(("seed", "epoch", "row")):
        keys = [[1, 2, 3] for _ in range(20)]
        for value, key in enumerate(keys):
            key[number] = value
        assert len({tuple(group(*key).passages) for key in keys}) > 5, f"the {name} has no effect"


def test_seed_epoch_and_row_are_kept_apart():
    """1/23/4 and 12/3/4 would be one number if they were only written one after another."""
    assert len({sampler(*key).random() for key in [(1, 23, 4), (12, 3, 4), (1, 2, 34)]}) == 3


def test_the_positive_comes_first_and_each_is_drawn():
    counts = Counter(group(place=place).passages[0] for place in range(600))
    assert set(counts) == {"p0", "p1", "p2"}
    assert min(counts.values()) > 140
    assert group().positives == ["p0", "p1", "p2"], "all positives have to be known, not only the drawn one"


@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 99))
def test_negatives_are_repeated_only_where_they_are_too_few_and_evenly(available, wanted, seed):
    drawn = draw_negatives(available, wanted, sampler(seed, 0, 0))
    counts = Counter(drawn)
    assert len(drawn) == wanted
    assert set(counts) <= set(range(available))
    copies = -(-wanted // available)
    assert max(counts.values(), default=0) <= max(copies, 0)


def test_scores_follow_the_passages():
    scores = {"pos_scores": [10.0, 11.0, 12.0], "neg_scores": [float(n) for n in range(8)]}
    for place in range(20):
        drawn = draw_group(row(**scores), 5, Prompts(), sampler(0, 0, place))
        assert drawn.scores == [float(text[1:]) + 10 * text.startswith("p") for text in drawn.passages]


def test_half_the_scores_are_none():
    assert draw_group(row(pos_scores=[1.0] * 3), 4, Prompts(), sampler(0, 0, 0)).scores is None


def test_a_group_of_one_needs_no_negatives():
    assert draw_group(row(negatives=0), 1, Prompts(), sampler(0, 0, 0)).passages[0].startswith("p")


PROMPTS = Prompts("Q: ", "{}{}", "P: ", "{}{}")


@pytest.mark.parametrize(
    ("symmetric", "prompt", "query", "passage"),
    [
        (False, None, "Q: q", "P: "),
        (False, "own ", "own q", "P: "),
        (True, None, "Q: q", "Q: "),
        (True, "own ", "own q", "own "),
    ],
)
def test_prompts(symmetric, prompt, query, passage):
    drawn = draw_group(row(prompt=prompt), 4, PROMPTS, sampler(0, 0, 0), symmetric=symmetric)
    assert drawn.query == query
    assert all(text.startswith(passage) for text in drawn.passages + drawn.positives)
    # The mask of duplicates compares texts as the model reads them.
    assert drawn.passages[0] in drawn.positives


@given(st.text(min_size=101, max_size=400), st.integers(0, 99))
def test_shuffling_keeps_every_character(text, seed):
    shuffled = shuffle_thirds(text, 1.0, sampler(seed, 0, 0))
    assert Counter(shuffled) == Counter(text) + Counter({" ": 2})
    third = len(text) // 3 + 1
    assert all(text[start : start + third] in shuffled for start in range(0, len(text), third))


def test_shuffling_happens_as_often_as_asked_and_to_long_texts_only():
    text = "".join(chr(256 + n) for n in range(101))
    assert shuffle_thirds(text[:100], 1.0, sampler(0, 0, 0)) == text[:100]
    assert shuffle_thirds(text, 0.0, sampler(0, 0, 0)) == text
    changed = sum(shuffle_thirds(text, 0.3, sampler(0, 0, place)) != text for place in range(1000))
    # 300 expected, standard deviation 14; the order 1 2 3 counts too, for it adds spaces.
    assert 230 < changed < 370


def test_only_the_positive_is_shuffled():
    long = [" ".join(f"{letter}{n}" for n in range(60)) for letter in "pn"]
    drawn = draw_group(
        to_row({"query": "q", "pos": [long[0]], "neg": [long[1]]}), 2, Prompts(), sampler(0, 0, 0), shuffle_ratio=1.0
    )
    assert drawn.passages[0] != long[0]
    assert drawn.passages[1] == long[1]
