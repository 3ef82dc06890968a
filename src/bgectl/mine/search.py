"""Candidates by the inner product of vectors: exactly, or by an index of faiss; and with BM25 beside.

Letters: Q queries, D dimensions, K ranks.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from bgectl import console, distributed
from bgectl.encode import Vectors
from bgectl.mine.approximate import Approximate
from bgectl.mine.found import Found, Scores, in_use, kept
from bgectl.mine.lexical import Bm25, fuse
from bgectl.mine.space import Space, search, search_device
from bgectl.work.folder import open_vault
from bgectl.work.texts import Numbers, digest_of, read_query
from bgectl.work.vault import Values, fill, unit_size
from bgectl.work.vectors import SHARD

MEASURED = 200
"""Queries that the recall of an index is measured with."""


class DenseFinder:
    """Finds candidates by the inner product of vectors.

    Args:
        space: The vectors.
        batch: Queries searched at a time.
        gpu: Search on the GPU.
        index: faiss' name of an index; None searches exactly.
        parameters: Its search parameters, as faiss writes them.
        fuse: Rank by dense and BM25 ranks together.
    """

    def __init__(
        self, space: Space, *, batch: int = 256, gpu: bool = False, index: str | None = None,
        parameters: str | None = None, fuse: bool = False,
    ) -> None:  # fmt: skip
        self.space, self.inputs = space, space.inputs
        self._batch, self._device, self._gpu = batch, search_device(gpu), gpu
        self._factory, self._parameters, self._fuse = index, parameters, fuse

    def find(self, queries: Numbers, depth: int) -> Found:
        """The best candidates of some queries; all processes call this together.

        Raises:
            UsageError: faiss knows no such index.
            RunError: faiss or bm25s is missing.
        """
        space, inputs = self.space, self.inputs
        about = {
            **space.about, "depth": depth, "index": self._factory, "parameters": self._parameters, "bm25": self._fuse,
            "pool": digest_of(inputs.pool.hashes.tobytes()),
        }  # fmt: skip
        index = self._index
        vault = open_vault(space.work, "found", about)
        lock = in_use(vault)

        def compute(places: Numbers, advance: console.Advance) -> tuple[Values, dict[str, str]]:
            vectors = space.query_vectors(queries[places])
            dense = depth if not self._fuse else min(2 * depth, len(inputs.pool))
            if index is None:
                numbers, scores = search(
                    space.pool_shards(), vectors, dense, batch=self._batch, device=self._device, advance=advance,
                    total=len(inputs.pool),
                )  # fmt: skip
            else:
                numbers, scores = index.search(vectors, dense, self._batch)
                advance(len(places))
            if self._fuse:
                numbers, scores = self._fused(queries[places], vectors, numbers, depth)
            return kept(numbers, scores), {}

        size = unit_size(len(queries), SHARD, self._batch, distributed.world())
        fill(vault, inputs.queries.hashes[queries], size, compute, "Searching", "queries")
        if index is not None and distributed.rank() == 0:
            self._tell_recall(index, queries, depth)
        return Found(vault, inputs.queries.hashes, lock)

    @cached_property
    def _index(self) -> Approximate | None:
        if self._factory is None:
            return None
        return Approximate(self.space, self._factory, self._parameters, gpu=self._gpu)

    def forget(self) -> None:
        """Delete the index that is kept."""
        if self._index is not None and distributed.rank() == 0:
            self._index.file.unlink(missing_ok=True)

    def _tell_recall(self, index: Approximate, queries: Numbers, depth: int) -> None:
        chosen = queries[np.linspace(0, len(queries) - 1, min(MEASURED, len(queries))).astype(np.int64)]
        vectors = self.space.query_vectors(chosen)
        exact, _ = search(self.space.pool_shards(), vectors, depth, batch=self._batch, device=self._device)
        near, _ = index.search(vectors, depth, self._batch)
        shares = [len(np.intersect1d(one, other)) / len(one) for one, other in zip(exact, near, strict=True)]
        console.info(
            f"--index {self._factory}: {np.mean(shares):.1%} of the {depth} best passages are found "
            f"(measured with {len(chosen)} queries)"
        )

    @cached_property
    def _bm25(self) -> Bm25:
        return Bm25(self.space.embedder.tokenizer, self.inputs.pool)

    def _fused(self, queries: Numbers, vectors: Vectors, numbers: Numbers, depth: int) -> tuple[Numbers, Scores]:
        """(Q, K) by reciprocal rank fusion with BM25; the scores are inner products."""
        texts = [read_query(text)[0] for text in self.inputs.queries.of(queries)]
        lexical = self._bm25.best(texts, numbers.shape[1])
        fused = np.full((len(queries), depth), -1, dtype=np.int64)
        for row, rankings in enumerate(zip(numbers.tolist(), lexical, strict=True)):
            chosen = fuse(rankings)[:depth]
            fused[row, : len(chosen)] = chosen
        return fused, self.space.scores_of(vectors, fused)
