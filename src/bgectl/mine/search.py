"""How candidates are found for queries: exactly, by an index of faiss, with BM25 beside, or by the heads of M3.

What was found lies in the work folder until the run ends, so that a run that was killed searches what is left.
Letters: Q queries, N passages, C candidates, D dimensions, K ranks.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from bgectl import console, distributed, heads
from bgectl.encode import Embedder, Vectors
from bgectl.errors import RunError, UsageError
from bgectl.mine.inputs import Inputs, read_query
from bgectl.mine.space import SHARD, Scores, Space, scores_at, search, search_device
from bgectl.models.encoder import load_config
from bgectl.models.hub import Hub
from bgectl.topk import Best
from bgectl.work.folder import LOCK, open_vault
from bgectl.work.texts import Hashes, Numbers, digest_of, hash_of, paired
from bgectl.work.vault import Values, Vault, delete, fill, units_of, unusable, wait_for, written_beside

MISSING_FAISS = "pip install 'bgectl[cpu]' (or 'bgectl[gpu]' on a machine with CUDA)"
MISSING_BM25 = "pip install 'bgectl[bm25]'"
SMOOTHING = 60
"""The constant of reciprocal rank fusion (Cormack et al., SIGIR 2009)."""
TRAINED_ON = 262_144
"""Vectors that an index is trained on at most."""
WIDER = 4
"""Candidates taken from an index for each rank wanted; they are scored exactly."""
MEASURED = 200
"""Queries that the recall of an index is measured with."""


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        RunError: It is not installed; the message has the command that installs it.
    """
    try:
        import faiss
    except ImportError as problem:
        raise RunError("--index needs faiss", hint=MISSING_FAISS) from problem
    return faiss


@dataclass(frozen=True)
class Found:
    """(Q, K) numbers and scores of passages, best first, by query; -1 and -inf where there are no more."""

    vault: Vault
    hashes: Hashes
    """Of all queries."""
    lock: IO[bytes] | None
    """What tells other runs that it is in use."""

    def of(self, queries: Numbers) -> tuple[Numbers, Scores]:
        """Those of some queries."""
        pair = self.vault.get(self.hashes[queries])
        scores: Scores = np.ascontiguousarray(pair[:, 1]).view(np.float32)
        return pair[:, 0].astype(np.int64), scores

    def forget(self) -> None:
        """Delete what was found, unless another run uses it; the vectors stay."""
        if self.lock is not None:
            with contextlib.suppress(OSError), self.lock:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self.vault.folder, ignore_errors=True)


def in_use(vault: Vault) -> IO[bytes] | None:
    """Hold a vault for this run, by its first process."""
    if distributed.rank():
        return None
    lock = (vault.folder / LOCK).open("a+b")
    fcntl.lockf(lock, fcntl.LOCK_SH)
    return lock


def kept(numbers: Numbers, scores: Scores) -> Values:
    """(Q, 2, K): both as they lie on disk, as 32-bit integers."""
    return np.stack([numbers.astype(np.int32), scores.astype(np.float32).view(np.int32)], axis=1)


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
        vault = open_vault(space.work, "found", about)
        lock = in_use(vault)
        index = None if self._factory is None else self._index(self._factory)

        def compute(places: Numbers, advance: console.Advance) -> tuple[Values, dict[str, str]]:
            vectors = space.query_vectors(queries[places])
            dense = depth if not self._fuse else min(2 * depth, len(inputs.pool))
            if index is None:
                numbers, scores = search(
                    space.pool_shards(), vectors, dense, batch=self._batch, device=self._device, advance=advance,
                    total=len(inputs.pool),
                )  # fmt: skip
            else:
                numbers, scores = self._approximate(index, vectors, dense)
                advance(len(places))
            if self._fuse:
                numbers, scores = self._fused(queries[places], vectors, numbers, scores, depth)
            return kept(numbers, scores), {}

        hashes = inputs.queries.hashes[queries]
        size = max(1, max((stop - start for start, stop in self._units(len(queries))), default=1))
        fill(vault, hashes, size, compute, "Searching", "queries")
        if index is not None:
            self._tell_recall(queries, depth, index)
        return Found(vault, inputs.queries.hashes, lock)

    def forget(self) -> None:
        """Delete the index that is kept."""
        if self._factory is not None and distributed.rank() == 0:
            self._index_file(self._factory).unlink(missing_ok=True)

    def _index_file(self, factory: str) -> Path:
        space = self.space
        # It numbers the passages by their order in the shards, which another run may have cut elsewhere.
        order = self.inputs.pool.hashes[self._order]
        return space.work / f"index-{digest_of(str(space.about).encode(), order.tobytes(), factory.encode())}.faiss"

    def _units(self, count: int) -> Sequence[tuple[int, int]]:
        return units_of(count, SHARD, self._batch, distributed.world())

    # -- an index of faiss

    def _index(self, factory: str) -> Any:
        """The index over the pool: built by the first process, and kept in the work folder."""
        faiss = load_faiss()
        path = self._index_file(factory)
        if distributed.rank() == 0 and not path.is_file():
            index = self._built(faiss, factory)
            try:
                with written_beside(path) as beside:
                    faiss.write_index(index, str(beside))
            except (OSError, RuntimeError) as problem:
                told = problem if isinstance(problem, OSError) else OSError(first_line(problem))
                raise unusable(path, told) from problem
        distributed.wait()
        index = faiss.read_index(str(path))
        try:
            if self._parameters is not None:
                faiss.ParameterSpace().set_index_parameters(index, self._parameters)
            elif hasattr(faiss.try_extract_index_ivf(index), "nlist"):
                inner = faiss.extract_index_ivf(index)
                inner.nprobe = max(8, inner.nlist // 16)
        except RuntimeError as problem:
            raise UsageError(first_line(problem), where="--index-parameters") from problem
        if self._gpu and hasattr(faiss, "index_cpu_to_all_gpus") and faiss.get_num_gpus():
            index = faiss.index_cpu_to_all_gpus(index)
        return index

    def _built(self, faiss: Any, factory: str) -> Any:
        count = len(self.inputs.pool)
        index = None
        sample: list[Vectors] = []
        for numbers, values in self.space.pool_shards():
            index = index or new_index(faiss, values.shape[1], factory)
            if index.is_trained:
                break
            share = max(1, round(len(numbers) * min(1.0, TRAINED_ON / count)))
            sample.append(values[np.linspace(0, len(values) - 1, share).astype(np.int64)])
        if index is None:
            raise RunError("the pool is empty")
        try:
            if not index.is_trained:
                index.train(np.concatenate(sample))
            with console.progress("Indexing", count, "passages") as advance:
                for _, values in self.space.pool_shards():
                    index.add(values)
                    advance(len(values))
        except RuntimeError as problem:
            raise RunError(
                f"faiss cannot build the index: {first_line(problem)}", where=f"--index {factory}",
                hint="an IVF index needs some forty passages for each of its lists",
            ) from problem  # fmt: skip
        return index

    @cached_property
    def _order(self) -> Numbers:
        """The pool's numbers in the order in which an index got them."""
        shards, _ = self.space.passages.locate(self.inputs.pool.hashes)
        order: Numbers = np.argsort(shards, kind="stable")
        return order

    def _approximate(self, index: Any, vectors: Vectors, depth: int) -> tuple[Numbers, Scores]:
        """(Q, K) of the index's candidates, scored exactly."""
        wider = min(WIDER * depth, len(self.inputs.pool))
        if hasattr(index, "hnsw") and self._parameters is None:
            index.hnsw.efSearch = max(2 * wider, 64)
        places = np.concatenate([
            index.search(vectors[start : start + self._batch], wider)[1]
            for start in range(0, len(vectors), self._batch)
        ])  # fmt: skip
        numbers = np.where(places >= 0, self._order[np.maximum(places, 0)], -1)
        scores = self._scores(vectors, numbers)
        order = np.lexsort((numbers, -scores))[:, :depth]
        return np.take_along_axis(numbers, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _scores(self, vectors: Vectors, numbers: Numbers) -> Scores:
        """(Q, C) the exact scores of candidates; -inf where there is none."""
        rows, columns = np.nonzero(numbers >= 0)
        scores: Scores = np.full(numbers.shape, -np.inf, dtype=np.float32)
        hashes = self.inputs.pool.hashes[numbers[rows, columns]]
        scores[rows, columns] = scores_at(self.space.passages, hashes, vectors, rows)
        return scores

    def _tell_recall(self, queries: Numbers, depth: int, index: Any) -> None:
        if distributed.rank():
            return
        chosen = queries[np.linspace(0, len(queries) - 1, min(MEASURED, len(queries))).astype(np.int64)]
        vectors = self.space.query_vectors(chosen)
        exact, _ = search(self.space.pool_shards(), vectors, depth, batch=self._batch, device=self._device)
        near, _ = self._approximate(index, vectors, depth)
        shares = [len(np.intersect1d(one, other)) / len(one) for one, other in zip(exact, near, strict=True)]
        console.info(
            f"--index {self._factory}: {np.mean(shares):.1%} of the {depth} best passages are found "
            f"(measured with {len(chosen)} queries)"
        )

    # -- BM25

    @cached_property
    def _bm25(self) -> Bm25:
        return Bm25(self.space.embedder.tokenizer, self.inputs.pool)

    def _fused(
        self, queries: Numbers, vectors: Vectors, numbers: Numbers, scores: Scores, depth: int
    ) -> tuple[Numbers, Scores]:
        """(Q, K) by reciprocal rank fusion with BM25; the scores are inner products."""
        texts = [read_query(text)[0] for text in self.inputs.queries.of(queries)]
        lexical = self._bm25.best(texts, numbers.shape[1])
        fused = np.full((len(queries), depth), -1, dtype=np.int64)
        for row, rankings in enumerate(zip(numbers.tolist(), lexical, strict=True)):
            chosen = fuse(rankings)[:depth]
            fused[row, : len(chosen)] = chosen
        return fused, self._scores(vectors, fused)


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
            raise RunError("--fuse needs bm25s", hint=MISSING_BM25) from problem
        self._tokenizer = tokenizer
        self._index = bm25s.BM25()
        ids: list[list[int]] = []
        for start in range(0, len(pool), SHARD):
            ids += self._tokens(pool[start : start + SHARD])
        vocabulary = {str(token): token for token in range(len(tokenizer))}
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


def new_index(faiss: Any, dimension: int, factory: str) -> Any:
    """An empty index of faiss.

    Raises:
        UsageError: faiss knows no such index for vectors of this size.
    """
    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as problem:
        raise UsageError(
            f"faiss makes no such index for {dimension} dimensions: {first_line(problem)}", where=f"--index {factory}",
            hint="such as IVF4096,Flat or IVF4096,PQ64 or HNSW32",
        ) from problem  # fmt: skip


def check_factory(factory: str, name: str, hub: Hub) -> None:
    """Refuse an index that cannot be made, before anything is encoded.

    Raises:
        UsageError: faiss knows no such index for the model's vectors.
        RunError: faiss is missing.
    """
    new_index(load_faiss(), int(load_config(name, hub).hidden_size), factory)


def first_line(problem: Exception) -> str:
    """What an error of faiss says, without the place in its sources."""
    text = str(problem).strip().split("\n")[-1]
    return text.split("Error: ", 1)[-1][:200]


def heads_about(embedder: Embedder, files: str, score: str, weights: Sequence[float]) -> dict[str, Any]:
    """What the scores of an M3 model depend on besides the texts."""
    return {
        "files": files, "version": 1, "score": score, "weights": list(weights),
        "passages": embedder.space(queries=False), "queries": embedder.space(queries=True),
    }  # fmt: skip


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
        self._about = heads_about(embedder, files, score, weights)
        self._pairs = open_vault(work, "pairs", self._about)

    def find(self, queries: Numbers, depth: int) -> Found:
        """The best candidates of some queries; all processes call this together."""
        pool = self.inputs.pool
        asked = self.inputs.queries.hashes[queries]
        about = self._about | {"depth": depth, "asked": digest_of(asked.tobytes())}
        vault = open_vault(self._work, "found", about | {"pool": digest_of(pool.hashes.tobytes())})
        lock = in_use(vault)
        missing = len(vault.missing(asked))
        distributed.wait()
        if missing:
            pieces = [(start, min(start + self._shard, len(pool))) for start in range(0, len(pool), self._shard)]
            parts = open_vault(self._work, "parts", about)
            names = self._search_pieces(parts, pieces, queries, depth)
            if distributed.rank() == 0:
                best = Best(len(queries), depth)
                for (start, _), name in zip(pieces, names, strict=True):
                    part = parts.get(np.array([name], dtype=np.uint64))[0]
                    numbers, scores = part[:, 0].astype(np.int64), np.ascontiguousarray(part[:, 1]).view(np.float32)
                    best.take(np.where(numbers >= 0, numbers + start, -1), scores)
                vault.add(asked, kept(best.indices, best.scores))
            distributed.wait()
            wait_for(vault, asked)
            delete([parts])
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
        vault = self._pairs
        hashes = paired(inputs.queries.hashes[queries], inputs.passage_hashes[passages])

        def compute(places: Numbers, advance: console.Advance) -> tuple[Values, dict[str, str]]:
            asked = [read_query(text) for text in inputs.queries.of(queries[places])]
            texts = [inputs.passage(int(number)) for number in passages[places]]
            return heads.pair_scores(self.embedder, asked, texts, self._score, self._weights, advance), {}

        fill(vault, hashes, SHARD, compute, "Scoring positives", "pairs")
        scores: Scores = vault.get(hashes).astype(np.float32)
        return scores

    def forget(self) -> None:
        """Delete the scores that are kept."""
        delete([self._pairs])
