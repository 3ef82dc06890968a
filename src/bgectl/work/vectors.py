"""Vectors of texts in the work folder: those of mining, and of scoring by an embedder.

Letters: Q queries, P pairs, S texts of a shard, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bgectl import console
from bgectl.encode import Embedder, Vectors
from bgectl.work.folder import open_vault
from bgectl.work.texts import Hashes, Numbers
from bgectl.work.vault import Values, Vault, fill

Scores = npt.NDArray[np.float32]
Encode = Callable[[Numbers, console.Advance], Vectors]
"""From places of texts to their vectors; it tells how far it is."""

SHARD = 8192
"""Texts in a shard: what a killed run loses at most, and what is in memory while searching."""


@dataclass(frozen=True)
class Kept:
    """The vectors of one kind of text.

    Attributes:
        about: What they depend on besides the text.
        vault: Where they are.
        embedder: What makes them.
    """

    about: dict[str, Any]
    vault: Vault
    embedder: Embedder

    def fill(self, hashes: Hashes, shard: int, encode: Encode, label: str) -> int:
        """Encode what has no vector yet; all processes call this. Returns how many texts that were.

        Vectors take half of the bytes where the model's precision is no more.

        Args:
            hashes: (N,) of the texts wanted.
            shard: Texts in a shard.
            encode: From places in `hashes` to vectors.
            label: What the progress display says.
        """
        embedder = self.embedder

        def compute(places: Numbers, advance: console.Advance) -> tuple[Values, dict[str, str]]:
            before = embedder.cut
            vectors = encode(places, advance)
            note = {"cut": str(embedder.cut - before)}
            if embedder.dtype != "float32" and np.abs(vectors).max(initial=0) < np.finfo(np.float16).max:
                return vectors.astype(np.float16), note
            return vectors, note

        return fill(self.vault, hashes, shard, compute, label, "texts")


def open_spaces(embedder: Embedder, files: str, work: Path) -> tuple[Kept, Kept]:
    """The vectors of passages and of queries.

    Args:
        embedder: What encodes; its weights are loaded only if a vector is missing.
        files: The digest of the model's files.
        work: The work folder.
    """
    about = {"files": files, "version": 1}
    kinds = (("passages", about | embedder.space(queries=False)), ("queries", about | embedder.space(queries=True)))
    passages, queries = (
        Kept(parts, open_vault(work, kind, parts, model=embedder.name), embedder) for kind, parts in kinds
    )
    return passages, queries


def shards_of(vault: Vault, hashes: Hashes) -> Iterator[tuple[Numbers, Vectors]]:
    """Values by shard: the places in `hashes`, rising, and (S, D) their values as float32."""
    shards, rows = vault.locate(hashes)
    order = np.argsort(shards, kind="stable")
    names, starts = np.unique(shards[order], return_index=True)
    for shard, start, stop in zip(names.tolist(), starts, [*starts, len(order)][1:], strict=True):
        places = order[start:stop]
        values = vault.read(shard)
        chosen = rows[places]
        if len(chosen) != len(values) or not (chosen == np.arange(len(values))).all():
            values = values[chosen]
        yield places, np.ascontiguousarray(values, dtype=np.float32)


def scores_at(
    vault: Vault, passages: Hashes, vectors: Vectors, queries: npt.NDArray[Any], advance: console.Advance | None = None
) -> Scores:
    """(P,) inner products of pairs.

    Args:
        vault: Where the passages' vectors are.
        passages: (P,) hashes.
        vectors: (Q, D) of queries.
        queries: (P,) the query of each pair.
        advance: Is told of pairs.
    """
    scores = np.empty(len(passages), dtype=np.float32)
    for places, values in shards_of(vault, passages):
        for start in range(0, len(places), SHARD):
            part = places[start : start + SHARD]
            scores[part] = np.einsum("pd,pd->p", vectors[queries[part]], values[start : start + SHARD])
        if advance:
            advance(len(places))
    return scores
