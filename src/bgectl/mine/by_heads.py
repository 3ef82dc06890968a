"""Candidates by the heads of an M3 model.

Letters: Q queries, P pairs, K ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from bgectl import console, distributed, heads
from bgectl.encode import Embedder
from bgectl.mine.found import Found, Scores, in_use, kept
from bgectl.mine.inputs import Inputs
from bgectl.topk import Best
from bgectl.work.folder import open_vault
from bgectl.work.texts import Hashes, Numbers, digest_of, hash_of, paired, read_query
from bgectl.work.vault import Values, Vault, delete, fill, wait_for
from bgectl.work.vectors import SHARD


class HeadsFinder:
    """Finds candidates by the heads of an M3 model, exhaustively.

    Piece by piece the pool is encoded and scored with all queries, so that the vectors of its tokens are never all
    held; what each piece gave is kept until the run ends.

    Args:
        embedder: One with heads.
        files: The digest of the model's files.
        inputs: Queries and pool.
        work: The work folder.
        score: `dense`, `sparse`, `colbert` or `hybrid`.
        weights: Of the three in the hybrid score.
        shard: Passages in a piece.
    """

    def __init__(
        self, embedder: Embedder, files: str, inputs: Inputs, work: Path, score: str, weights: Sequence[float],
        shard: int = SHARD,
    ) -> None:  # fmt: skip
        self.embedder, self.inputs, self._work, self._shard = embedder, inputs, work, shard
        self._score, self._weights = score, list(weights)
        self._about = heads.depends_on(embedder, files, score, weights)
        self._pairs = open_vault(work, "pairs", self._about)

    def find(self, queries: Numbers, depth: int) -> Found:
        """The best candidates of some queries; all processes call this together."""
        pool = self.inputs.pool
        asked = self.inputs.queries.hashes[queries]
        about = self._about | {"depth": depth, "asked": digest_of(asked.tobytes())}
        vault = open_vault(self._work, "found", about | {"pool": digest_of(pool.hashes.tobytes())})
        lock = in_use(vault)
        if distributed.by_first(lambda: len(vault.missing(asked))):
            pieces = [(start, min(start + self._shard, len(pool))) for start in range(0, len(pool), self._shard)]
            # Inside of what is found, so that it goes with it if this process is killed before it deletes it.
            parts = open_vault(vault.folder, "parts", about)
            names = self._search_pieces(parts, pieces, queries, depth)
            if distributed.rank() == 0:
                best = Best(len(queries), depth)
                for (start, _), name in zip(pieces, names, strict=True):
                    part = parts.get(np.array([name], dtype=np.uint64))[0]
                    numbers, scores = part[:, 0].astype(np.int64), np.ascontiguousarray(part[:, 1]).view(np.float32)
                    best.take(np.where(numbers >= 0, numbers + start, -1), scores)
                numbers, scores = best.indices, best.scores
                # Not all in one shard, which each look-up would read as a whole.
                for start in range(0, len(asked), SHARD):
                    part = slice(start, start + SHARD)
                    vault.add(asked[part], kept(numbers[part], scores[part]))
            distributed.wait()
            delete([parts])
        wait_for(vault, asked)
        return Found(vault, self.inputs.queries.hashes, lock)

    def _search_pieces(self, parts: Vault, pieces: Sequence[tuple[int, int]], queries: Numbers, depth: int) -> Hashes:
        """Search each piece of the pool; returns their names in the vault."""
        pool = self.inputs.pool
        names = np.array([hash_of(pool.hashes[start:stop].tobytes()) for start, stop in pieces], dtype=np.uint64)

        @cache
        def encoded() -> list[heads.Encoded]:
            read = [read_query(text) for text in self.inputs.queries.of(queries)]
            return heads.encode_queries(self.embedder, [query for query, _ in read], [prompt for _, prompt in read])

        def compute(places: Numbers, advance: console.Advance) -> tuple[Values, dict[str, str]]:
            start, stop = pieces[int(places[0])]
            found = heads.search_encoded(
                self.embedder, encoded(), pool[start:stop], depth, scores=[self._score], weights=self._weights,
                told=advance,
            )[self._score]  # fmt: skip
            numbers, scores = found.indices, found.scores
            short = ((0, 0), (0, depth - numbers.shape[1]))
            numbers = np.pad(numbers, short, constant_values=-1)
            return kept(numbers, np.pad(scores, short, constant_values=-np.inf))[None], {}

        fill(parts, names, 1, compute, "Encoding and scoring", "texts", sizes=[stop - start for start, stop in pieces])
        return names

    def pair_scores(self, queries: Numbers, passages: Numbers) -> Scores:
        """(P,) scores of pairs of a query and a passage; kept, so that they are computed once.

        All processes call this together.
        """
        inputs = self.inputs
        hashes = paired(inputs.queries.hashes[queries], inputs.passage_hashes[passages])

        def compute(places: Numbers, advance: console.Advance) -> tuple[Values, dict[str, str]]:
            asked = [read_query(text) for text in inputs.queries.of(queries[places])]
            texts = [inputs.passage(int(number)) for number in passages[places]]
            return heads.pair_scores(self.embedder, asked, texts, self._score, self._weights, advance), {}

        fill(self._pairs, hashes, SHARD, compute, "Scoring positives", "pairs")
        scores: Scores = self._pairs.get(hashes).astype(np.float32)
        return scores

    def forget(self) -> None:
        """Delete the scores that are kept."""
        delete([self._pairs])
