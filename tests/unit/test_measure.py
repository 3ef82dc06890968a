"""Ranking and its measures, against values computed by hand and by plain numpy."""

from __future__ import annotations

from math import log2
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgectl.data.prompts import Prompts
from bgectl.errors import RunError
from bgectl.evaluate import measure as measuring
from bgectl.evaluate.judged import Judged
from bgectl.evaluate.measure import evaluate, evaluate_embedder, evaluate_vectors, measure, rank


def judged(qrels: dict[str, dict[str, int]], size: int, **changes) -> Judged:
    queries = list(qrels)
    values = {
        "name": "made up",
        "query_ids": queries,
        "queries": [f"query {query}" for query in queries],
        "passage_ids": [f"p{number}" for number in range(size)],
        "passages": [f"passage {number}" for number in range(size)],
        "qrels": qrels,
        "prompts": [None] * len(queries),
    }
    return Judged(**(values | changes))


def test_graded_judgments_by_hand():
    data = judged({"a": {"p1": 3, "p2": 1}}, 4)
    values = measure(data, np.array([[3, 1, 2, 0]]), [1, 2, 10]).means
    assert values["nDCG@10"] == pytest.approx((3 / log2(3) + 1 / log2(4)) / (3 / log2(2) + 1 / log2(3)))
    assert values["MRR@10"] == pytest.approx(1 / 2)
    assert values["MAP@100"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert [values[f"Recall@{k}"] for k in (1, 2, 10)] == pytest.approx([0, 1 / 2, 1])


def test_fewer_relevant_passages_than_ranks_can_still_be_perfect():
    values = measure(judged({"a": {"p5": 1}}, 30), np.array([[5, *range(5), *range(6, 30)]]), [10]).means
    assert values == pytest.approx({"nDCG@10": 1, "MRR@10": 1, "MAP@100": 1, "Recall@10": 1})


@pytest.mark.parametrize(("place", "mrr", "average_precision"), [
    (10, 1 / 10, 1 / 10), (11, 0, 1 / 11), (100, 0, 1 / 100), (101, 0, 0),
])  # fmt: skip
def test_cutoffs_of_mrr_and_map(place, mrr, average_precision):
    data = judged({"a": {f"p{place - 1}": 1}}, 150)
    values = measure(data, np.arange(150)[None], [100]).means
    assert values["MRR@10"] == pytest.approx(mrr)
    assert values["MAP@100"] == pytest.approx(average_precision)


def test_means_are_over_queries_and_values_keep_their_order():
    data = judged({"b": {"p0": 1}, "a": {"p1": 1}, "c": {"p2": 1}}, 3)
    found = measure(data, np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2]]), [1])
    assert found.query_ids == ["b", "a", "c"]
    assert found.values["MRR@10"] == pytest.approx([1, 1 / 2, 1 / 3])
    assert found.means["MRR@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_zero_and_negative_grades_are_not_relevant():
    data = judged({"a": {"p0": 0, "p1": -1, "p2": 1}}, 3)
    assert measure(data, np.array([[0, 1, 2]]), [2]).means["Recall@2"] == 0


def test_a_relevant_passage_outside_the_corpus_counts_as_not_found():
    data = judged({"a": {"p0": 1, "elsewhere": 1}}, 2)
    assert measure(data, np.array([[0, 1]]), [10]).means["Recall@10"] == pytest.approx(0.5)


def test_our_order_stands_whatever_the_ids_are():
    """trec_eval breaks ties by id: equal scores handed to it would put p9 before p0."""
    data = judged({"a": {"p0": 1}}, 10)
    vectors = np.ones((10, 2), dtype=np.float32)
    assert evaluate_vectors(data, vectors[:1], vectors, [1]).means["MRR@10"] == 1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 45))
def test_rank_is_an_exhaustive_sort(seed, passages, k):
    """Small whole numbers give exact scores with many ties, within and across the blocks."""
    draw = np.random.default_rng(seed)
    p = draw.integers(-2, 3, (passages, 3)).astype(np.float32)
    q = draw.integers(-2, 3, (5, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "PASSAGE_BLOCK", 7)
        patch.setattr(measuring, "QUERY_BLOCK", 2)
        scores, indices = rank(q, p, k)
    expected = np.argsort(-(q @ p.T), axis=1, kind="stable")[:, :k]
    assert np.array_equal(indices, expected)
    assert np.array_equal(scores, np.take_along_axis(q @ p.T, expected, axis=1))


def test_more_passages_than_one_block():
    draw = np.random.default_rng(0)
    p = draw.standard_normal((20_000, 8), dtype=np.float32)
    q = draw.standard_normal((300, 8), dtype=np.float32)
    scores, indices = rank(q, p, 10)
    every = q @ p.T
    assert np.allclose(scores, -np.sort(-every, axis=1)[:, :10], atol=1e-5)
    assert np.allclose(np.take_along_axis(every, indices, axis=1), scores, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(bad):
    p = np.ones((3, 2), dtype=np.float32)
    p[1, 0] = bad
    with pytest.raises(RunError, match="not finite"):
        rank(p[:1], p, 2)


def plain_ndcg(grades: list[int], ranking: list[int]) -> float:
    discount = 1 / np.log2(np.arange(2, 12))
    gains = np.array([grades[passage] for passage in ranking[:10]], dtype=float)
    ideal = np.sort(np.array(grades, dtype=float))[::-1][:10]
    return float((gains * discount[: len(gains)]).sum() / (ideal * discount[: len(ideal)]).sum())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40).filter(any), st.randoms(use_true_random=False))
def test_ndcg_is_the_textbook_formula(grades, random):
    ranking = list(range(len(grades)))
    random.shuffle(ranking)
    data = judged({"a": {f"p{number}": grade for number, grade in enumerate(grades)}}, len(grades))
    found = measure(data, np.array([ranking]), [10]).means["nDCG@10"]
    assert found == pytest.approx(plain_ndcg(grades, ranking))


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(25)), st.integers(0, 1000))
def test_the_order_of_the_corpus_means_nothing_without_ties(order, seed):
    draw = np.random.default_rng(seed)
    # One coordinate, all different: exact scores, no ties.
    p = draw.permutation(25).astype(np.float32)[:, None] + 1
    q = np.array([[1.0], [-1.0]], dtype=np.float32)
    data = judged({"a": {"p3": 2, "p7": 1}, "b": {"p3": 1}}, 25)
    moved = judged(data.qrels, 25, passage_ids=[data.passage_ids[number] for number in order])
    assert evaluate_vectors(data, q, p, [5]).means == evaluate_vectors(moved, q, p[list(order)], [5]).means


def test_the_query_itself_among_the_passages_is_passed_over():
    p = np.array([[1.0], [0.9], [0.8]], dtype=np.float32)
    q = np.array([[1.0], [1.0]], dtype=np.float32)
    data = judged({"a": {"p1": 1}, "b": {"p2": 1}}, 3, itself={0: 0})
    found = evaluate_vectors(data, q, p, [1]).values
    assert found["MRR@10"] == pytest.approx([1, 1 / 3])
    assert found["Recall@1"] == pytest.approx([1, 0])


def test_passing_over_the_query_itself_does_not_cost_the_last_rank():
    p = np.linspace(2, 1, 150, dtype=np.float32)[:, None]
    data = judged({"a": {"p100": 1}}, 150, itself={0: 3})
    assert evaluate_vectors(data, np.ones((1, 1), dtype=np.float32), p, [100]).means["Recall@100"] == 1


def letters(texts: list[str]) -> np.ndarray:
    """A stand-in for an encoder: how often each letter stands in a text."""
    return np.array([[text.count(chr(letter)) for letter in range(97, 123)] for text in texts], dtype=np.float32)


def test_evaluate_hands_each_text_to_its_own_encoder():
    data = judged({"a": {"p0": 1}}, 2, queries=["zebra"], passages=["zzz", "xxx"])
    assert evaluate(data, letters, letters, [1]).means["Recall@1"] == 1
    assert evaluate(data, letters, lambda texts: -letters(texts), [1]).means["Recall@1"] == 0


def test_a_row_prompt_replaces_the_instruction():
    """Training puts a row's `prompt` before its query; an evaluation without it would measure another task."""
    seen: list[str] = []

    def encode_queries(texts, prompts):
        instructions = Prompts(query_instruction="usual: ")
        seen.extend(instructions.query(text, prompt) for text, prompt in zip(texts, prompts, strict=True))
        return letters(texts)

    embedder = SimpleNamespace(encode_queries=encode_queries, encode_passages=letters)
    data = judged({"a": {"p0": 1}, "b": {"p1": 1}}, 2, prompts=["own: ", None])
    evaluate_embedder(data, embedder, [1])
    assert seen == ["own: query a", "usual: query b"]
