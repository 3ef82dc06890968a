"""What is wrong with a row, and that the quick way out agrees with the long one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgectl.data.check import _flaws, column_of, examine_line, meant_by, row_flaws, texts_if_clean
from bgectl.data.rows import TYPES, to_row
from bgectl.data.scan import Head, whole_file_flaw

ROW = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}


def codes(raw, **changes):
    return [(flaw.field, flaw.code, flaw.severity) for flaw in row_flaws(raw, **changes)]


@pytest.mark.parametrize(
    "extra",
    [
        {}, {"prompt": None}, {"prompt": ""}, {"prompt": "Find:"}, {"type": None}, {"category": None}, {"neg": None},
        {"neg": []}, {"batch_size": 4, "train_group_size": 2}, {"batch_size": None}, {"id": 7, "meta": {"a": [1]}},
        {"pos_scores": [1], "neg_scores": [0.5, -2]}, {"pos_scores": None, "neg_scores": None}, {"text": "x"},
        {"pos_scores": [1], "neg": [], "neg_scores": []}, {"pos_scores": [1.5], "neg": []},
        *({"type": kind} for kind in TYPES),
    ],
)  # fmt: skip
def test_good_rows(extra):
    """A row that training accepts must not be refused."""
    assert codes(ROW | extra) == []
    to_row(ROW | extra)


def test_missing_negatives_are_told_only_where_they_are_needed():
    assert codes({"query": "q", "pos": ["p"]}) == []
    assert codes(ROW, negatives=2) == []
    assert codes(ROW, negatives=3) == [("neg", "few-negatives", "warning")]
    assert codes({"query": "q", "pos": ["p"]}, negatives=1) == [("", "no-negatives", "warning")]


def test_category_is_wanted_for_icl_clustering_only():
    clustering = ROW | {"type": "symmetric_clustering"}
    assert codes(clustering) == []
    assert codes(ROW, icl=True) == []
    assert codes(clustering | {"category": "c"}, icl=True) == []
    assert codes(clustering, icl=True) == [("", "missing-category", "error")]
    assert codes(clustering | {"category": None, "prompt": None}, icl=True) == [
        ("category", "missing-category", "error")
    ]


def test_all_flaws_of_a_row_are_found_at_once():
    raw = {
        "query": " ", "pos": ["a", 1, "a"], "neg": ["a", "b", "b"], "pos_scores": [1, "2", float("-inf")],
        "neg_scores": [1], "prompt": 3, "type": "nromal", "batch_size": 0, "train_group_size": 1.5,
    }  # fmt: skip
    assert codes(raw) == [
        ("query", "empty-text", "error"),
        ("pos[1]", "wrong-type", "error"),
        ("pos[2]", "duplicate-positive", "warning"),
        ("neg[0]", "positive-is-negative", "error"),
        ("neg[2]", "duplicate-negative", "warning"),
        ("pos_scores[1]", "wrong-type", "error"),
        ("pos_scores[2]", "non-finite", "error"),
        ("neg_scores", "score-count", "error"),
        ("prompt", "wrong-type", "error"),
        ("type", "unknown-type", "error"),
        ("batch_size", "out-of-range", "error"),
        ("train_group_size", "wrong-type", "error"),
    ]


def test_hints_name_the_likely_word():
    flaws = row_flaws({"query": "q", "positives": ["p"], "type": "symetric_sts"})
    assert [flaw.hint for flaw in flaws] == [
        "rename `positives` to `pos`?", "did you mean `symmetric_sts`?", "did you mean `pos`?",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("postive", "pos"), ("negs", "neg"), ("passages", "pos"), ("Query", "query"), ("qurey", "query"),
        ("pos_score", "pos_scores"), ("train-group-size", "train_group_size"), ("prompts", "prompt"), ("id", None),
        ("title", None), ("lang", None), ("source", None), ("metadata", None), ("url", None),
    ],
)  # fmt: skip
def test_misspelt_keys(key, known):
    assert meant_by(key) == known


def test_a_look_alike_of_a_key_that_is_there_is_no_misspelling():
    assert codes(ROW | {"negatives": ["x"], "passages": ["y"], "question": "z"}) == []


texts = st.sampled_from(["a", "b", "c", "d", "e", " ", "", "\0x"])
side = st.lists(texts, max_size=3) | st.none() | st.just("a")
scores = st.none() | st.lists(st.sampled_from([1, 0.5, True, "1", float("nan"), 10**400]), max_size=3)
optional = {
    "pos_scores": scores, "neg_scores": scores, "prompt": st.sampled_from([None, "a", 1, "\0"]),
    "type": st.sampled_from([None, *TYPES, "x", 1, ["normal"]]), "category": st.sampled_from([None, "", "c", 1]),
    "batch_size": st.sampled_from([None, 0, 1, True, 1.0, "1"]),
    "train_group_size": st.sampled_from([None, 0, 2, False]),
    "negs": st.just(1), "other": st.just(1), "neg": side,
}  # fmt: skip


@given(
    st.fixed_dictionaries({"query": texts | st.none(), "pos": side}, optional=optional),
    st.booleans(), st.booleans(), st.integers(0, 3),
)  # fmt: skip
def test_the_quick_way_out_agrees_with_the_long_way(raw, icl, distill, negatives):
    """A row passed quickly that has a flaw would never be reported."""
    if texts_if_clean(raw, icl, distill, negatives) is not None:
        assert list(_flaws(raw, icl, distill, negatives)) == []


def test_columns():
    line = ' {"é" : "日本", "neg":["a" , "b\\"]", {"neg": 1}], "x": null}'
    assert column_of(line, "é") == line.index('"日本"') + 1
    assert column_of(line, "é", key=True) == 3
    assert column_of(line, "neg") == line.index("[") + 1
    assert column_of(line, "neg[1]") == line.index('"b') + 1
    assert column_of(line, "neg[2]") == line.index('{"neg"') + 1
    assert column_of(line, "neg[9]") == line.index("[") + 1
    assert column_of(line, "x") == line.index("null") + 1
    assert column_of(line, "absent") == column_of(line, "") == 2


@given(
    st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=5), max_size=3), min_size=1, max_size=4), st.data()
)
def test_column_is_where_the_value_stands(raw, data):
    field = data.draw(st.sampled_from(sorted(raw)))
    if "[" in field or not field:
        return
    line = json.dumps(raw, ensure_ascii=False)
    assert line[column_of(line, field) - 1 :].startswith(json.dumps(raw[field], ensure_ascii=False))


def test_examine_line_takes_clean_lines():
    assert examine_line(json.dumps(ROW).encode() + b"\r\n") == []
    assert examine_line(b"  \r\n") == []


def test_group_and_batch_of_a_file():
    """SPEC §2: types and columns change group and batch."""
    head = Head.of(ROW | {"type": "symmetric_class"}, 1)
    assert (head.negatives_needed(8), head.batch(8)) == (2, 4)
    assert Head.of(ROW | {"type": "symmetric_sts"}, 1).batch(1) == 1
    assert Head.of(ROW | {"type": "only_1neg"}, 1).negatives_needed(8) == 1
    head = Head.of(ROW | {"type": "only_1neg", "batch_size": 3, "train_group_size": 5}, 1)
    assert (head.negatives_needed(8), head.batch(8)) == (4, 3)


def test_a_broken_first_line_is_not_taken_for_a_foreign_format():
    good = json.dumps(ROW).encode()
    assert whole_file_flaw(b"{\n" + good + b"\n") is None
    assert whole_file_flaw(b"[" + good[:10] + b"\n" + good + b"\n") is None
    assert whole_file_flaw(b'["a"]\n' + good) is None
    assert whole_file_flaw(b"") is None
