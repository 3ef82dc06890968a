"""Toy training rows for the commands, and tiny models that score."""

import pytest
from forked import make_cross_encoder, make_m3, quick_collections


@pytest.fixture(scope="module")
def quick_runs():
    """For files of many short runs."""
    with quick_collections():
        yield


@pytest.fixture(scope="session")
def judge(tiny_bert, tmp_path_factory):
    """A cross-encoder."""
    return make_cross_encoder(tiny_bert, tmp_path_factory.mktemp("cross") / "judge")


@pytest.fixture(scope="session")
def m3(tiny_xlmr, tmp_path_factory):
    """A model with the heads of M3."""
    return make_m3(tiny_xlmr, tmp_path_factory.mktemp("m3") / "model")


@pytest.fixture
def toy_rows(tiny_words):
    """Rows of a task that only training solves: which of the words belongs to which was decided by a shuffle."""

    def make(count=24, *, negatives=3, **extra):
        words = tiny_words
        partner = dict(zip(words, words[7:] + words[:7], strict=True))
        rows = []
        for index in range(count):
            word = words[index % len(words)]
            others = [words[(index * 3 + step * 5 + 1) % len(words)] for step in range(len(words))]
            negs = list(dict.fromkeys(f"{other} a" for other in others if other != partner[word]))[:negatives]
            query = word if index < len(words) else f"{word} {index}"
            rows.append({"query": query, "pos": [f"{partner[word]} a"], "neg": negs, **extra})
        return rows

    return make
