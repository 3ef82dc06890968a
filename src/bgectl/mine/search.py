"""Exact search by inner product with faiss."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bgectl import console
from bgectl.encode import Vectors
from bgectl.errors import RunError

MISSING = "pip install 'bgectl[cpu]' (or 'bgectl[gpu]' on a machine with CUDA)"


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        RunError: It is not installed; the message has the command that installs it.
    """
    try:
        import faiss
    except ImportError as problem:
        raise RunError("mining needs faiss", hint=MISSING) from problem
    return faiss


def rank(
    queries: Vectors, passages: Vectors, depth: int, *, batch: int = 64, gpu: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The best passages of each query, best first.

    Args:
        queries: (Q, D).
        passages: (N, D).
        depth: Ranks wanted; at most N are given.
        batch: Queries searched at a time.
        gpu: Search on all GPUs.

    Returns:
        (Q, min(depth, N)) indices into `passages`, and the inner products.

    Raises:
        RunError: faiss is not installed, or is not the GPU build and `gpu` is set.
    """
    faiss = load_faiss()
    index = faiss.IndexFlatIP(passages.shape[1])
    if gpu:
        if not hasattr(faiss, "index_cpu_to_all_gpus") or faiss.get_num_gpus() == 0:
            raise RunError(
                "faiss finds no GPU", where="--use-gpu-for-searching",
                hint="install the GPU build by pip install 'bgectl[gpu]', or leave the flag out",
            )  # fmt: skip
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(passages)
    depth = min(depth, len(passages))
    found = np.empty((len(queries), depth), dtype=np.int64)
    scores = np.empty((len(queries), depth), dtype=np.float32)
    with console.progress("Searching", len(queries), "queries") as advance:
        for start in range(0, len(queries), batch):
            part = queries[start : start + batch]
            scores[start : start + batch], found[start : start + batch] = index.search(part, depth)
            advance(len(part))
    return found, scores
