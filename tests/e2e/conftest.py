"""Toy training rows for the commands."""

import pytest


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
