"""What is mined from and for: rows, queries and pool, read once and kept on disk, so that memory does not grow with the
length of texts.

Letters: R rows, Q different queries, N passages of the pool, M known (query, positive) pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bgectl import console, jsonl
from bgectl.data.copies import same_text
from bgectl.data.rows import Row, read_rows
from bgectl.errors import DataError
from bgectl.evaluate.judged import load_judged
from bgectl.work.texts import (
    CHUNK,
    Hashes,
    Numbers,
    Places,
    Texts,
    TextsWriter,
    encoded,
    hash_of,
    hashes_of,
    read_query,
    spoken,
)

ARRAYS = "arrays.npz"


@dataclass
class Inputs:
    """Rows, queries and passages.

    Attributes:
        source: The rows, to be read again.
        row_hash: (R,) the hash of each row.
        row_query: (R,) the number of each row's query.
        queries: Q different pairs of query and prompt; see `read_query`.
        pool: N different texts.
        others: Positives, of which some are not of the pool; empty where the pool is made of the rows.
        keys: (N,) a number that texts share which differ only in case and white space.
        pair_query: (M,) the query of each known positive, ordered by row.
        pair_passage: (M,) its number: in the pool, or N + that among `others`.
        pair_key: (M,) its key.
        row_pairs: (R + 1,) where the pairs of each row begin.
        normalize: Whether case and white space do not count in keys.
    """

    source: Path
    row_hash: Hashes
    row_query: Numbers
    queries: Texts
    pool: Texts
    others: Texts
    keys: Hashes
    pair_query: Numbers
    pair_passage: Numbers
    pair_key: Hashes
    row_pairs: Numbers
    normalize: bool

    def __post_init__(self) -> None:
        self.rows = len(self.row_query)
        self.passage_hashes: Hashes = np.concatenate([self.pool.hashes, self.others.hashes])
        """Of the pool, then of `others`."""
        order = np.argsort(self.pair_query, kind="stable")
        self._known = self.pair_key[order]
        self._starts = np.searchsorted(self.pair_query[order], np.arange(len(self.queries) + 1))

    @property
    def used(self) -> Numbers:
        """Numbers of the passages that need vectors: the pool, and positives that are not of it."""
        beyond = np.unique(self.pair_passage[self.pair_passage >= len(self.pool)])
        return np.concatenate([np.arange(len(self.pool)), beyond])

    def passage(self, number: int) -> str:
        """A passage of the pool or, behind it, of `others`."""
        text: str = self.pool[number] if number < len(self.pool) else self.others[number - len(self.pool)]
        return text

    def known_keys(self, query: int) -> set[int]:
        """Keys of what is no negative for a query: itself, and the positives of all rows that ask it."""
        text = read_query(self.queries[query])[0]
        own = hash_of(encoded(same_text(text) if self.normalize else text))
        return {own, *self._known[self._starts[query] : self._starts[query + 1]].tolist()}

    def read_again(self) -> Iterator[Row]:
        """The rows, once more.

        Raises:
            DataError: The file is no longer the same.
        """
        number = -1
        for number, (_, row) in enumerate(read_rows(self.source)):
            if number >= self.rows or hash_of(jsonl.dump(row.raw)) != int(self.row_hash[number]):
                raise self._changed()
            yield row
        if number + 1 != self.rows:
            raise self._changed()

    def _changed(self) -> DataError:
        return DataError("has changed while it was being mined for", where=str(self.source))


def read_inputs(rows: Path, pool: Path | None, folder: Path, *, normalize: bool = True) -> Inputs:
    """Read rows and pool into a folder.

    Args:
        rows: Training rows; `-` is stdin.
        pool: File of texts to mine from; None for all positives and negatives of the rows.
        folder: Where texts go.
        normalize: Texts that differ only in case and white space have the same key.

    Raises:
        DataError: A row or a text of the pool cannot be used; the message names file and line.
    """
    source = rows
    if str(rows) == "-":
        source = folder / "rows.jsonl"
        with source.open("wb") as spool:
            _collect(rows, pool, folder, spool, normalize)
    else:
        _collect(rows, pool, folder, None, normalize)
    return open_inputs(source, folder)


def _collect(rows: Path, pool: Path | None, folder: Path, spool: Any, normalize: bool) -> None:
    queries, passages, others = (TextsWriter(folder / name) for name in ("queries", "pool", "others"))
    read: list[int] = []
    asked: list[int] = []
    owners: list[int] = []
    hashes: list[int] = []
    keys: list[int] = []
    ends = [0]
    for number, (_, row) in enumerate(console.counted(read_rows(rows), "Reading rows", "rows")):
        data = jsonl.dump(row.raw)
        read.append(hash_of(data))
        if spool is not None:
            spool.write(data + b"\n")
        asked.append(queries.add(spoken(row.query, row.prompt).decode()))
        for text in row.pos:
            hashes.append((passages if pool is None else others).add(text))
            keys.append(hash_of(encoded(same_text(text))) if normalize else hashes[-1])
            owners.append(number)
        if pool is None:
            for text in row.neg:
                passages.add(text)
        ends.append(len(hashes))
    if not asked:
        raise DataError("holds no rows", where=str(rows))
    if pool is not None:
        for text in console.counted(read_pool(pool), "Reading the pool", "passages"):
            passages.add(text)
    kept = {"queries": queries.close(), "pool": passages.close(), "others": others.close()}
    row_query = Places(kept["queries"].hashes).find(np.array(asked, dtype=np.uint64))
    wanted = np.array(hashes, dtype=np.uint64)
    place = Places(kept["pool"].hashes).find(wanted)
    beyond = Places(kept["others"].hashes).find(wanted) + len(kept["pool"])
    np.savez(
        folder / ARRAYS, row_hash=np.array(read, dtype=np.uint64), row_query=row_query,
        keys=keys_of(kept["pool"]) if normalize else kept["pool"].hashes,
        pair_query=row_query[np.array(owners, dtype=np.int64)], pair_passage=np.where(place >= 0, place, beyond),
        pair_key=np.array(keys, dtype=np.uint64), row_pairs=np.array(ends, dtype=np.int64),
        normalize=np.array(normalize),
    )  # fmt: skip
    for texts in kept.values():
        texts.close()


def open_inputs(source: Path, folder: Path) -> Inputs:
    """What `read_inputs` put into a folder."""
    with np.load(folder / ARRAYS) as arrays:
        return Inputs(
            source, queries=Texts(folder / "queries"), pool=Texts(folder / "pool"), others=Texts(folder / "others"),
            **(dict(arrays) | {"normalize": bool(arrays["normalize"])}),
        )  # fmt: skip


def keys_of(texts: Texts) -> Hashes:
    """(N,) the key of each text; see `Inputs.keys`."""
    parts = [
        hashes_of(map(same_text, texts[start : start + CHUNK])) for start in range(0, len(texts), CHUNK)
    ]  # fmt: skip
    return np.concatenate([np.empty(0, dtype=np.uint64), *parts])


def read_pool(path: Path) -> Iterator[str]:
    """The texts of a candidate pool; a `title` is put before its `text`.

    Raises:
        DataError: A line has no text, named with file and line; or there is none.
    """
    number = 0
    for number, entry in jsonl.read_objects(path):
        text, title = entry.get("text"), entry.get("title") or ""
        if not isinstance(text, str) or not isinstance(title, str) or not (title + text).strip():
            raise DataError(
                "a text is missing", where=f"{path}:{number}: `text`", hint='a line of the pool is {"text": "..."}'
            )
        yield f"{title} {text}".strip() if title else text
    if not number:
        raise DataError("the candidate pool is empty", where=str(path))


def read_relevant(path: Path, *, normalize: bool = True) -> dict[int, set[int]]:
    """Judgments to respect: from the hash of a query to the keys of its relevant passages.

    Args:
        path: A folder in BEIR layout, of which all splits count, or training rows, whose positives do.
        normalize: See `Inputs.normalize`.

    Raises:
        UsageError: Nothing is there.
        DataError: It cannot be used; the message names file and line.
    """
    relevant: dict[int, set[int]] = {}
    splits = sorted({file.name.split(".tsv")[0] for file in path.glob("qrels/*.tsv*")}) or ["test"]
    for split in splits:
        judged = load_judged(path, split)
        texts = dict(zip(judged.passage_ids, judged.passages, strict=True))
        for name, query in zip(judged.query_ids, judged.queries, strict=True):
            found = relevant.setdefault(hash_of(encoded(query)), set())
            grades = judged.qrels[name].items()
            known = (texts[key] for key, grade in grades if grade > 0 and key in texts)
            found |= {hash_of(encoded(same_text(text) if normalize else text)) for text in known}
    return relevant
