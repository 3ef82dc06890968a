"""Vectors of passages and queries on disk, and exact search among them.

Letters: Q queries, N passages, D dimensions, K ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bgectl import console
from bgectl.encode import Embedder, Vectors
from bgectl.errors import RunError
from bgectl.mine.inputs import Inputs
from bgectl.topk import Best
from bgectl.work.folder import open_vault
from bgectl.work.texts import Numbers, paired, read_query
from bgectl.work.vault import Values, delete, fill, total
from bgectl.work.vectors import SHARD, Scores, open_spaces, scores_at, shards_of


class Space:
    """The vectors of one embedder for one mining run.

    Args:
        embedder: What encodes; its weights are loaded only if a vector is missing.
        files: The digest of the model's files.
        inputs: What is encoded.
        work: The work folder.
        shard: Texts in a shard.
    """

    def __init__(self, embedder: Embedder, files: str, inputs: Inputs, work: Path, shard: int = SHARD) -> None:
        self.embedder, self.inputs, self.work, self._shard = embedder, inputs, work, shard
        self._of_passages, self._of_queries = open_spaces(embedder, files, work)
        self.passages, self.queries = self._of_passages.vault, self._of_queries.vault
        self.about = {"passages": self._of_passages.about, "queries": self._of_queries.about}
        self._pairs = open_vault(work, "pairs", self.about)

    def encode(self) -> tuple[int, int]:
        """Encode what has no vector yet; all processes call this. Returns how many queries and passages that were."""
        inputs, embedder = self.inputs, self.embedder
        numbers = inputs.used

        def of_passages(places: Numbers, advance: console.Advance) -> Vectors:
            return embedder.encode_passages([inputs.passage(n) for n in numbers[places].tolist()], advance)

        def of_queries(places: Numbers, advance: console.Advance) -> Vectors:
            read = [read_query(text) for text in inputs.queries.of(places)]
            return embedder.encode_queries([query for query, _ in read], [prompt for _, prompt in read], advance)

        wanted = inputs.passage_hashes[numbers]
        passages = self._of_passages.fill(wanted, self._shard, of_passages, "Encoding passages")
        queries = self._of_queries.fill(inputs.queries.hashes, self._shard, of_queries, "Encoding queries")
        return queries, passages

    def cut(self) -> int:
        """Texts that were cut to their length, in the shards that are used."""
        passages = self.passages.notes(self.inputs.passage_hashes[self.inputs.used], "cut")
        queries = self.queries.notes(self.inputs.queries.hashes, "cut")
        return total(passages | queries)

    def query_vectors(self, queries: Numbers) -> Vectors:
        """(Q, D) float32 vectors of some queries."""
        return np.ascontiguousarray(self.queries.get(self.inputs.queries.hashes[queries]), dtype=np.float32)

    def pool_shards(self) -> Iterator[tuple[Numbers, Vectors]]:
        """The pool, shard by shard: the passages' numbers and (S, D) their vectors."""
        yield from shards_of(self.passages, self.inputs.pool.hashes)

    def scores_of(self, vectors: Vectors, numbers: Numbers) -> Scores:
        """(Q, C) the inner products of queries with candidates of theirs; -inf where the number is -1.

        Args:
            vectors: (Q, D) of the queries.
            numbers: (Q, C) of passages of the pool.
        """
        rows, columns = np.nonzero(numbers >= 0)
        scores: Scores = np.full(numbers.shape, -np.inf, dtype=np.float32)
        hashes = self.inputs.pool.hashes[numbers[rows, columns]]
        scores[rows, columns] = scores_at(self.passages, hashes, vectors, rows)
        return scores

    def forget(self) -> None:
        """Delete the vectors and scores that are kept."""
        delete([self.passages, self.queries, self._pairs])

    def pair_scores(self, queries: Numbers, passages: Numbers) -> Scores:
        """(P,) inner products of pairs of a query and a passage; kept, so that they are computed once.

        All processes call this together.
        """
        hashes = paired(self.inputs.queries.hashes[queries], self.inputs.passage_hashes[passages])
        # Pairs of the same shard together: each shard is read for few of the pieces.
        order = np.lexsort((queries, *self.passages.locate(self.inputs.passage_hashes[passages])[::-1]))

        def compute(places: Numbers, advance: console.Advance) -> tuple[Values, dict[str, str]]:
            chosen = order[places]
            theirs, place = np.unique(queries[chosen], return_inverse=True)
            located = self.inputs.passage_hashes[passages[chosen]]
            return scores_at(self.passages, located, self.query_vectors(theirs), place, advance), {}

        fill(self._pairs, hashes[order], 1 << 17, compute, "Scoring positives", "pairs")
        scores: Scores = self._pairs.get(hashes).astype(np.float32)
        return scores


def search(
    shards: Iterator[tuple[Numbers, Vectors]], vectors: Vectors, depth: int, *, batch: int = 256,
    device: torch.device | str = "cpu", advance: console.Advance | None = None, total: int = 0,
) -> tuple[Numbers, Scores]:  # fmt: skip
    """The passages with the largest inner products, exactly; of equal ones that with the lower number first.

    Args:
        shards: Passages' numbers and (S, D) vectors; one shard is in memory at a time.
        vectors: (Q, D) of queries.
        depth: K.
        batch: Queries searched at a time.
        device: Where products are computed.
        advance: Is told of queries, a part of them with each shard.
        total: Passages in all shards, for that.

    Returns:
        (Q, K) numbers and (Q, K) inner products, best first; -1 and -inf where there are fewer passages.
    """
    best = Best(len(vectors), depth)
    asked = torch.from_numpy(vectors).to(device)
    seen = told = 0
    for numbers, values in shards:
        passages = torch.from_numpy(values).to(device)
        for start in range(0, len(vectors), batch):
            best.add(asked[start : start + batch] @ passages.T, start, numbers)
        seen += len(numbers)
        if advance and total:
            now = len(vectors) * seen // total
            advance(now - told)
            told = now
    return best.indices, best.scores


def search_device(gpu: bool) -> torch.device:
    """Where to search.

    Raises:
        RunError: A GPU is asked for and there is none.
    """
    if not gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RunError("there is no GPU", where="--use-gpu-for-searching", hint="leave it out to search on the CPU")
    return torch.device("cuda", torch.cuda.current_device())
