"""Texts on disk, read by number: what is held of a million of them is sixteen bytes each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

CHUNK = 65_536
"""Texts looked at together while copies are found."""


def encoded(text: str) -> bytes:
    """UTF-8 of any string, halves of surrogate pairs too."""
    return text.encode("utf-8", "surrogatepass")


def hash_of(data: bytes) -> int:
    """64 bits of BLAKE2b. Among ten million texts the odds that any two share them are one in 400,000."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def read_at(file: int, count: int, place: int) -> bytes:
    """Bytes of an open file; Linux reads 2 GiB at a time at most."""
    parts = [os.pread(file, count, place)]
    while (got := sum(map(len, parts))) < count and parts[-1]:
        parts.append(os.pread(file, count - got, place + got))
    return b"".join(parts)


def hashes_of(texts: Iterable[str]) -> Hashes:
    """(N,) the hash of each text."""
    return np.fromiter((hash_of(encoded(text)) for text in texts), dtype=np.uint64)


def digest_of(*parts: bytes) -> str:
    """A name for some data, the same on every machine."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class Seen:
    """Which hashes came before. They are kept in sorted runs, the shorter ones merged as they grow."""

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def first(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Whether each hash is new, to this and to those before it; from then on it is known."""
        new = np.zeros(len(hashes), dtype=np.bool_)
        _, places = np.unique(hashes, return_index=True)
        new[places] = True
        for run in self._runs:
            near = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            new &= run[near] != hashes
        if new.any():
            self._runs.append(np.sort(hashes[new]))
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]))
        return new


class Texts(Sequence[str]):
    """N different texts in a file.

    Attributes:
        hashes: (N,) the hash of each.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self.hashes: Hashes = np.load(path.with_suffix(".hashes.npy"))
        self._ends: Numbers = np.load(path.with_suffix(".ends.npy"))

    def __len__(self) -> int:
        return len(self.hashes)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        if isinstance(number, slice):
            return self._between(*number.indices(len(self))[:2])
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._between(number, number + 1)[0]

    def of(self, numbers: Iterable[int]) -> list[str]:
        """Some texts, in the order asked for."""
        return [self[int(number)] for number in numbers]

    def _between(self, start: int, stop: int) -> list[str]:
        if stop <= start:
            return []
        ends = self._ends[start:stop].tolist()
        first = int(self._ends[start - 1]) if start else 0
        data = read_at(self._file, ends[-1] - first, first)
        starts = [first, *ends[:-1]]
        return [
            data[begin - first : end - first].decode("utf-8", "surrogatepass")
            for begin, end in zip(starts, ends, strict=True)
        ]

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)


class TextsWriter:
    """Writes texts to a file, each once, in the order in which they first come.

    Args:
        path: The file; what else there is to know goes beside it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("wb")
        self._seen = Seen()
        self._chunk: list[bytes] = []
        self._theirs: list[int] = []
        self._hashes = [np.empty(0, dtype=np.uint64)]
        self._lengths = [np.empty(0, dtype=np.int64)]

    def add(self, text: str) -> int:
        """Take a text; returns its hash."""
        data = encoded(text)
        own = hash_of(data)
        self._chunk.append(data)
        self._theirs.append(own)
        if len(self._chunk) == CHUNK:
            self._flush()
        return own

    def _flush(self) -> None:
        theirs = np.array(self._theirs, dtype=np.uint64)
        new = self._seen.first(theirs)
        kept = [data for data, is_new in zip(self._chunk, new.tolist(), strict=True) if is_new]
        self._stream.writelines(kept)
        self._hashes.append(theirs[new])
        self._lengths.append(np.fromiter(map(len, kept), dtype=np.int64, count=len(kept)))
        self._chunk, self._theirs = [], []

    def close(self) -> Texts:
        """What was written."""
        self._flush()
        self._stream.close()
        np.save(self._path.with_suffix(".hashes.npy"), np.concatenate(self._hashes))
        np.save(self._path.with_suffix(".ends.npy"), np.cumsum(np.concatenate(self._lengths)))
        return Texts(self._path)


class Places:
    """Where each of N hashes stands: from hash to number."""

    def __init__(self, hashes: Hashes) -> None:
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def find(self, hashes: Hashes) -> Numbers:
        """The number of each hash, the first of those that share it; -1 where there is none."""
        if not len(self._sorted):
            return np.full(len(hashes), -1, dtype=np.int64)
        near = np.searchsorted(self._sorted, hashes)
        near = np.minimum(near, len(self._sorted) - 1)
        found: Numbers = np.where(self._sorted[near] == hashes, self._order[near], -1)
        return found


def paired(first: Hashes, second: Hashes) -> Hashes:
    """(N,) the hash of each pair of hashes, by the finaliser of MurmurHash3."""
    with np.errstate(over="ignore"):
        mixed = first * np.uint64(0x9E3779B97F4A7C15) + second
        for factor in (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)):
            mixed ^= mixed >> np.uint64(33)
            mixed *= factor
        mixed ^= mixed >> np.uint64(33)
    result: Hashes = mixed
    return result


def spoken(query: str, prompt: str | None) -> bytes:
    """A query and its row's prompt, as they are kept."""
    return encoded(orjson.dumps([query, prompt]).decode())


def read_query(kept: str) -> tuple[str, str | None]:
    """The query and its prompt; the inverse of `spoken`."""
    query, prompt = orjson.loads(kept)
    return query, prompt
