"""BM25 over the pool, and one ranking from several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bgectl import console
from bgectl.errors import RunError

MISSING = "pip install 'bgectl[bm25]'"
SMOOTHING = 60
"""The constant of reciprocal rank fusion (Cormack et al., SIGIR 2009)."""
CHUNK = 8192
"""Texts tokenised at a time."""


def fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    """One ranking from several by the sum of 1 / (60 + rank), ranks counted from 1; of equals the lower number first.

    Args:
        rankings: Numbers, best first; -1 is passed over.
    """
    sums: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking, 1):
            if number >= 0:
                sums[number] = sums.get(number, 0.0) + 1 / (SMOOTHING + rank)
    return sorted(sums, key=lambda number: (-sums[number], number))


class Bm25:
    """BM25 over the pool, by bm25s, with the embedder's own tokens: they know every language that the model knows.

    The whole index is in memory.

    Args:
        tokenizer: The embedder's.
        pool: N passages.

    Raises:
        RunError: bm25s is not installed.
    """

    def __init__(self, tokenizer: Any, pool: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError as problem:
            raise RunError("--fuse needs bm25s", hint=MISSING) from problem
        self._tokenizer = tokenizer
        self._index = bm25s.BM25()
        ids: list[list[int]] = []
        with console.progress("Indexing for BM25", len(pool), "passages") as advance:
            for start in range(0, len(pool), CHUNK):
                ids += self._tokens(pool[start : start + CHUNK])
                advance(min(CHUNK, len(pool) - start))
        vocabulary = {str(token): token for token in range(len(tokenizer))}
        with console.working("Indexing for BM25"):
            self._index.index(bm25s.tokenization.Tokenized(ids, vocabulary), show_progress=False)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        # Lower case, as words are looked up without regard to it.
        encoded = self._tokenizer([text.lower() for text in texts], add_special_tokens=False)
        tokens: list[list[int]] = encoded["input_ids"]
        return tokens

    def best(self, texts: Sequence[str], depth: int) -> list[list[int]]:
        """For each text the numbers of at most `depth` passages that share a token with it, best first."""
        result = []
        for tokens in self._tokens(texts):
            known = list(dict.fromkeys(tokens))
            scores = self._index.get_scores_from_ids(known) if known else np.empty(0, dtype=np.float32)
            hits = np.flatnonzero(scores > 0)
            if len(hits) > depth:
                hits = hits[scores[hits] >= np.partition(scores[hits], -depth)[-depth]]
            result.append(hits[np.argsort(-scores[hits], kind="stable")][:depth].tolist())
        return result
