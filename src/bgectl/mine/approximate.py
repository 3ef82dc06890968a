"""An index of faiss over the pool, whose candidates are scored exactly.

Letters: Q queries, C candidates, D dimensions, K ranks.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bgectl import console, distributed
from bgectl.atomic import written_beside
from bgectl.encode import Vectors
from bgectl.errors import RunError, UsageError
from bgectl.mine.found import Scores
from bgectl.mine.space import Space
from bgectl.models.encoder import load_config
from bgectl.models.hub import Hub
from bgectl.work.texts import Numbers, digest_of
from bgectl.work.vault import unusable

MISSING = "pip install 'bgectl[cpu]' (or 'bgectl[gpu]' on a machine with CUDA)"
TRAINED_ON = 262_144
"""Vectors that an index is trained on at most."""
WIDER = 4
"""Candidates taken from an index for each rank wanted."""


class Approximate:
    """The index: built by the first process, kept in the work folder, read by all, which make it together.

    Args:
        space: The vectors.
        factory: faiss' name of the index.
        parameters: Its search parameters, as faiss writes them; None for defaults of ours.
        gpu: Search on the GPUs, where faiss is built for them.

    Raises:
        UsageError: faiss knows no such index or parameter.
        RunError: faiss is missing, or cannot build it from these vectors.
    """

    def __init__(self, space: Space, factory: str, parameters: str | None, *, gpu: bool) -> None:
        self._space, self._factory, self._parameters = space, factory, parameters
        faiss = load_faiss()
        path = self.file
        if distributed.rank() == 0 and not path.is_file():
            index = self._built(faiss)
            try:
                with written_beside(path) as beside:
                    faiss.write_index(index, str(beside))
            except (OSError, RuntimeError) as problem:
                told = problem if isinstance(problem, OSError) else OSError(first_line(problem))
                raise unusable(path, told) from problem
        distributed.wait()
        self._index = faiss.read_index(str(path))
        try:
            if parameters is not None:
                faiss.ParameterSpace().set_index_parameters(self._index, parameters)
            elif hasattr(faiss.try_extract_index_ivf(self._index), "nlist"):
                lists = faiss.extract_index_ivf(self._index)
                lists.nprobe = max(8, lists.nlist // 16)
        except RuntimeError as problem:
            raise UsageError(first_line(problem), where="--index-parameters") from problem
        if gpu and hasattr(faiss, "index_cpu_to_all_gpus") and faiss.get_num_gpus():
            self._index = faiss.index_cpu_to_all_gpus(self._index)

    @cached_property
    def file(self) -> Path:
        """Where it is kept."""
        space = self._space
        # It numbers the passages by their order in the shards, which another run may have cut elsewhere.
        order = space.inputs.pool.hashes[self._order]
        name = digest_of(str(space.about).encode(), order.tobytes(), self._factory.encode())
        return space.work / f"index-{name}.faiss"

    @cached_property
    def _order(self) -> Numbers:
        """The pool's numbers in the order in which the index gets them."""
        shards, _ = self._space.passages.locate(self._space.inputs.pool.hashes)
        order: Numbers = np.argsort(shards, kind="stable")
        return order

    def _built(self, faiss: Any) -> Any:
        count = len(self._space.inputs.pool)
        index = None
        sample: list[Vectors] = []
        for numbers, values in self._space.pool_shards():
            index = index or new_index(faiss, values.shape[1], self._factory)
            if index.is_trained:
                break
            share = max(1, round(len(numbers) * min(1.0, TRAINED_ON / count)))
            sample.append(values[np.linspace(0, len(values) - 1, share).astype(np.int64)])
        if index is None:
            raise RunError("the pool is empty")
        try:
            if not index.is_trained:
                with console.working("Training the index"):
                    index.train(np.concatenate(sample))
            with console.progress("Indexing", count, "passages") as advance:
                for _, values in self._space.pool_shards():
                    index.add(values)
                    advance(len(values))
        except RuntimeError as problem:
            raise RunError(
                f"faiss cannot build the index: {first_line(problem)}", where=f"--index {self._factory}",
                hint="an IVF index needs some forty passages for each of its lists",
            ) from problem  # fmt: skip
        return index

    def search(self, vectors: Vectors, depth: int, batch: int) -> tuple[Numbers, Scores]:
        """(Q, K) numbers and exact scores of the best of the index's candidates.

        Args:
            vectors: (Q, D) of queries.
            depth: K.
            batch: Queries searched at a time.
        """
        wider = min(WIDER * depth, len(self._space.inputs.pool))
        if hasattr(self._index, "hnsw") and self._parameters is None:
            self._index.hnsw.efSearch = max(2 * wider, 64)
        places = np.concatenate([
            self._index.search(vectors[start : start + batch], wider)[1] for start in range(0, len(vectors), batch)
        ])  # fmt: skip
        numbers = np.where(places >= 0, self._order[np.maximum(places, 0)], -1)
        scores = self._space.scores_of(vectors, numbers)
        order = np.lexsort((numbers, -scores))[:, :depth]
        return np.take_along_axis(numbers, order, axis=1), np.take_along_axis(scores, order, axis=1)


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        RunError: It is not installed; the message has the command that installs it.
    """
    try:
        import faiss
    except ImportError as problem:
        raise RunError("--index needs faiss", hint=MISSING) from problem
    return faiss


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
