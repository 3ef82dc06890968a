"""Search, fusion and BM25 against their definitions, ties included."""

import math
import multiprocessing
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgectl.mine.found import Found, in_use, kept
from bgectl.mine.lexical import Bm25, fuse
from bgectl.mine.space import search
from bgectl.report import SUSPICIOUS, Report, Worst, rank_groups
from bgectl.topk import Best
from bgectl.work.vault import Vault


def ranked(scores, depth):
    """(Q, K) numbers and scores by definition: best first, of equals the lower number, then -1 and -inf."""
    numbers = np.full((len(scores), depth), -1)
    best = np.full((len(scores), depth), -np.inf, dtype=np.float32)
    for row, line in enumerate(scores):
        order = sorted(range(len(line)), key=lambda number: (-line[number], number))[:depth]
        numbers[row, : len(order)] = order
        best[row, : len(order)] = line[order]
    return numbers, best


def check(found, scores, depth):
    numbers, best = ranked(scores, depth)
    assert np.array_equal(found[0], numbers), (found[0], numbers, scores)
    assert np.array_equal(found[1], best)


@st.composite
def tables(draw):
    """(Q, N) scores of few values, so that many are equal."""
    queries, passages = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    values = draw(st.integers(1, 8))
    return generator.integers(-values, values + 1, (queries, passages)).astype(np.float32)


def cuts(draw, size):
    """(start, stop) pieces of `size` things, in any order."""
    ends = sorted(draw(st.sets(st.integers(1, size), max_size=6)) | {size})
    return draw(st.permutations(list(zip([0, *ends[:-1]], ends, strict=True))))


@settings(deadline=None)
@given(tables(), st.data())
def test_best_keeps_the_best(scores, data):
    """Whatever the blocks, their order, and whether their passages follow each other."""
    depth = data.draw(st.integers(1, scores.shape[1] + 3))
    best = Best(len(scores), depth)
    shuffled = data.draw(st.booleans())
    order = np.random.default_rng(0).permutation(scores.shape[1]) if shuffled else np.arange(scores.shape[1])
    for start, stop in cuts(data.draw, scores.shape[1]):
        numbers = order[start:stop]
        for first, last in cuts(data.draw, len(scores)):
            block = np.ascontiguousarray(scores[first:last, numbers])
            as_tensor = data.draw(st.booleans())
            best.add(torch.from_numpy(block) if as_tensor else block, first, numbers if shuffled else start)
        if data.draw(st.booleans()):
            # To look at it between two blocks changes nothing.
            assert (best.scores[:, :1] >= best.scores[:, -1:]).all()
    check((best.indices, best.scores), scores, depth)


@settings(deadline=None)
@given(tables(), st.data())
def test_best_takes_what_was_found_elsewhere(scores, data):
    depth = data.draw(st.integers(1, scores.shape[1] + 3))
    best = Best(len(scores), depth)
    for start, stop in cuts(data.draw, scores.shape[1]):
        numbers, theirs = ranked(scores[:, start:stop], depth)
        best.take(np.where(numbers >= 0, numbers + start, -1), theirs)
    check((best.indices, best.scores), scores, depth)


def test_best_of_nothing():
    best = Best(2, 3)
    best.add(np.zeros((0, 4), dtype=np.float32), 0, 0)
    best.add(np.zeros((2, 0), dtype=np.float32), 0, 0)
    best.take(np.full((2, 3), -1), np.full((2, 3), -np.inf, dtype=np.float32))
    assert (best.indices == -1).all()
    assert (best.scores == -np.inf).all()


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 60), st.integers(1, 10), st.integers(0, 2**31), st.data())
def test_search_is_exact(queries, passages, batch, seed, data):
    """The same ranks wherever shards are cut and in whatever order they come, and whatever the batch."""
    generator = np.random.default_rng(seed)
    # Small whole numbers: their products are exact, and many of them equal.
    asked = generator.integers(-2, 3, (queries, 4)).astype(np.float32)
    pool = generator.integers(-2, 3, (passages, 4)).astype(np.float32)
    depth = data.draw(st.integers(1, passages + 2))
    order = generator.permutation(passages)
    shards = [np.sort(order[start:stop]) for start, stop in cuts(data.draw, passages)]
    told = []
    found = search(
        ((numbers, pool[numbers]) for numbers in shards), asked, depth, batch=batch, advance=told.append, total=passages
    )  # fmt: skip
    check(found, asked @ pool.T, depth)
    assert sum(told) == queries, "progress does not end at the number of queries"


def test_search_without_passages():
    numbers, scores = search(iter(()), np.ones((3, 4), dtype=np.float32), 2)
    assert (numbers == -1).all()
    assert (scores == -np.inf).all()


# What was found


@given(tables())
@settings(deadline=None, max_examples=20)
def test_found_comes_back_as_it_was(scores):
    """Ranks and scores to the bit, also where there are no more."""
    numbers, best = ranked(scores + np.float32(1 / 3), scores.shape[1] + 2)
    hashes = np.arange(len(scores), dtype=np.uint64) + 7
    with tempfile.TemporaryDirectory() as folder:
        vault = Vault(Path(folder) / "found", {})
        vault.add(hashes, kept(numbers, best))
        vault.refresh()
        order = np.arange(len(scores))[::-1]
        got = Found(vault, hashes, None).of(order)
    assert np.array_equal(got[0], numbers[order])
    assert np.array_equal(got[1], best[order])


def test_what_another_run_uses_is_not_deleted(tmp_path):
    """Two runs that ask the same share what is found; the one that ends first leaves it to the other."""
    vault = Vault(tmp_path / "found", {})
    vault.add(np.ones(1, dtype=np.uint64), np.zeros((1, 2, 3), dtype=np.int32))
    here, there = multiprocessing.Pipe()

    def other():
        found = Found(vault, vault.hashes, in_use(vault))
        there.send("in use")
        there.recv()
        found.forget()

    process = multiprocessing.get_context("fork").Process(target=other)
    process.start()
    try:
        assert here.poll(30)
        Found(vault, vault.hashes, in_use(vault)).forget()
        assert list(vault.folder.glob("*.safetensors")), "what the other needs is gone"
        here.send("go on")
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert not vault.folder.exists(), "nobody deletes it"


# Fusion


def test_fuse_by_hand():
    # 7: 1/61 + 1/63; 5: 1/62 + 1/61; 2 and 3: 1/63 and 1/62; 9: 1/64.
    assert fuse([[7, 5, 2], [5, 3, 7, 9]]) == [5, 7, 3, 2, 9]
    assert fuse([[4, 1], [1, 4]]) == [1, 4], "of equal sums the lower number comes first"
    assert fuse([[4, -1, -1], [2, -1]]) == [2, 4]
    assert fuse([[], []]) == []
    # Two second places beat one first: 2/62 > 1/61.
    assert fuse([[0, 8], [1, 8]]) == [8, 0, 1]


@given(st.lists(st.permutations(range(8)), min_size=1, max_size=3))
def test_fusing_by_definition(rankings):
    sums = {number: sum(1 / (61 + ranking.index(number)) for ranking in rankings) for number in range(8)}
    order = fuse(rankings)
    assert sorted(order) == list(range(8))
    assert [sums[number] for number in order] == pytest.approx(sorted(sums.values(), reverse=True), abs=1e-12)


# BM25


def bm25(tokenizer, pool, query, k1=1.5, b=0.75):
    """Lucene's: the sum over the query's different tokens of idf · tf / (tf + k1 · (1 - b + b · length / mean))."""
    tokens = [tokenizer(text.lower(), add_special_tokens=False)["input_ids"] for text in pool]
    mean = sum(map(len, tokens)) / len(tokens)
    scores = [0.0] * len(pool)
    for token in set(tokenizer(query.lower(), add_special_tokens=False)["input_ids"]):
        holding = sum(token in text for text in tokens)
        idf = math.log(1 + (len(pool) - holding + 0.5) / (holding + 0.5))
        for number, text in enumerate(tokens):
            count = Counter(text)[token]
            scores[number] += idf * count / (count + k1 * (1 - b + b * len(text) / mean))
    return scores


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


def test_bm25_by_definition(tokenizer, tiny_words):
    generator = np.random.default_rng(1)
    pool = [" ".join(generator.choice(tiny_words, size)) for size in generator.integers(1, 12, 60)]
    pool += [pool[3], pool[3].upper(), "", "検索"]
    index = Bm25(tokenizer, pool)
    queries = [
        *(" ".join(generator.choice(tiny_words, size)) for size in (1, 2, 3, 8)),
        pool[3].title(),
        "kaban kaban lodor",
    ]
    for query in queries:
        scores = bm25(tokenizer, pool, query)
        (found,) = index.best([query], len(pool))
        assert sorted(found) == [number for number, score in enumerate(scores) if score > 0], "what shares a token"
        np.testing.assert_allclose(
            [scores[n] for n in found], sorted((s for s in scores if s > 0), reverse=True), rtol=1e-5
        )
        assert index.best([query], 5)[0] == found[:5]
    (found,) = index.best([pool[3]], len(pool))
    assert found[:3] == [3, 60, 61], "copies, of which the lower number comes first"


def test_bm25_where_nothing_is_shared(tokenizer):
    index = Bm25(tokenizer, ["kaban lodor", "mifel"])
    # A token that no passage has, tokens beyond all those of the pool, and no token at all.
    assert index.best(["rugus", "z {} ?", "", " "], 5) == [[], [], [], []]
    assert index.best(["rugus mifel"], 5) == [[1]]


def test_bm25_of_pools_of_pieces(tokenizer, monkeypatch, tiny_words):
    pool = [f"{word} {other}" for word, other in zip(tiny_words[1:], tiny_words[:-1], strict=True)]
    whole = Bm25(tokenizer, pool).best(tiny_words, 9)
    monkeypatch.setattr("bgectl.mine.lexical.CHUNK", 7)
    assert Bm25(tokenizer, pool).best(tiny_words, 9) == whole


@pytest.mark.parametrize("pool", [["kaban"], [""], ["", "?"], ["kaban", "kaban"]])
def test_bm25_of_the_smallest_pools(pool, tokenizer):
    found = Bm25(tokenizer, pool).best(["kaban", "mifel"], 3)
    assert found == [[number for number, text in enumerate(pool) if "kaban" in text], []]


# What the report sums up


def test_rank_groups():
    ranks = np.array([0, 0, 1, 2, 3, 4, 5, 9, 10, 199, 200, 5000, -1, -1])
    assert rank_groups(ranks) == {
        "1": 2, "2": 1, "3": 1, "4 to 5": 2, "6 to 10": 2, "11 to 20": 1, "101 to 200": 1, "201 or more": 2,
        "not among those searched": 2,
    }  # fmt: skip
    assert rank_groups(np.array([3])) == {"4 to 5": 1}


def test_the_most_suspicious_are_kept():
    """The twenty largest, the largest first, whatever the order in which rows come."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(200):
        scores = [float(score) for score in generator.normal(size=4).astype(np.float32)]
        if number % 3 == 0:
            scores[1] = float("nan")  # a random text's
        rows.append((number + 1, generator.normal(size=2).astype(np.float32), scores))
    report = Report()
    for number, own, theirs in rows:
        report.suspect(number, f"q{number}", ["p0", "p1"], own, [f"n{place}" for place in range(4)], theirs)
    report.suspect(201, "no positive is known", ["p"], np.empty(0, dtype=np.float32), ["n"], [9.0])
    report.suspect(202, "random texts alone", ["p"], np.zeros(1, dtype=np.float32), ["n"], [float("nan")])
    report.suspect(203, "no negative", ["p"], np.zeros(1, dtype=np.float32), [], [])
    above = sorted(((np.nanmax(theirs) - own.max(), number) for number, own, theirs in rows), reverse=True)[:20]
    below = sorted(((np.nanmean(theirs) - own.min(), number) for number, own, theirs in rows), reverse=True)[:20]
    assert SUSPICIOUS == 20
    for worst, expected in ((report.false_negatives.all, above), (report.wrong_positives.all, below)):
        assert [suspect.row for suspect in worst] == [number for _, number in expected]
        assert [suspect.excess for suspect in worst] == pytest.approx([excess for excess, _ in expected], abs=1e-6)
    for suspect in report.false_negatives.all:
        _, own, theirs = rows[suspect.row - 1]
        assert suspect.query == f"q{suspect.row}"
        assert suspect.positive == (f"p{int(own.argmax())}", float(own.max()))
        assert suspect.negative == (f"n{int(np.nanargmax(theirs))}", pytest.approx(np.nanmax(theirs)))
    for suspect in report.wrong_positives.all:
        own = rows[suspect.row - 1][1]
        assert suspect.positive == (f"p{int(own.argmin())}", float(own.min()))


def test_worst_knows_what_would_enter():
    worst = Worst()
    report = Report(false_negatives=worst)
    for row, score in enumerate([5.0, *([1.0] * 19)]):
        assert worst.enters(-9.0), "there is room"
        report.suspect(row, "q", ["p"], np.zeros(1, dtype=np.float32), ["n"], [score])
    assert not worst.enters(1.0)
    assert worst.enters(1.1)
