"""Reading and writing files of one JSON object a line, plain, gzip or zstandard.

Lines end at `\\n` only: other Unicode line separators may stand inside a text. Outputs are written beside their
target and renamed into place, so a reader never sees half a file and a failure leaves what was there.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import orjson

from bgectl.atomic import sweep_parts, written_beside
from bgectl.errors import DataError, RunError, UsageError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst")
"""Endings of the files a directory contributes."""

MANIFEST = ".manifest.json"
"""Ending of what bgectl writes beside an output; it is no data file."""

UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file: its number counted from 1 and its bytes without the line end."""

    number: int
    data: bytes


def dataset_stem(path: Path) -> str:
    """The file's name without any of SUFFIXES."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def is_data(path: Path) -> bool:
    """Whether a file of a directory is one of data, by its name."""
    return path.name.endswith(SUFFIXES) and not path.name.endswith(MANIFEST)


def expand_paths(paths: Iterable[Path]) -> list[Path]:
    """The data files that `paths` name, directories standing for the files in them in sorted order.

    Raises:
        UsageError: A path does not exist, or a directory holds no data file.
    """
    files: list[Path] = []
    for path in paths:
        if str(path) == "-":
            files.append(path)
        elif path.is_dir():
            try:
                inside = sorted(entry for entry in path.iterdir() if entry.is_file() and is_data(entry))
            except OSError as problem:
                raise UsageError(f"cannot be read: {problem.strerror or problem}", where=str(path)) from problem
            if not inside:
                raise UsageError(
                    "the directory holds no data file", where=str(path), hint=f"data files end in {', '.join(SUFFIXES)}"
                )
            files.extend(inside)
        elif path.exists():
            files.append(path)
        else:
            raise UsageError("no such file or directory", where=str(path))
    return files


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressing by its name; `-` is stdin.

    Raises:
        DataError: The file cannot be read, or its compressed data is damaged.
    """
    try:
        if str(path) == "-":
            yield sys.stdin.buffer
        elif path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                yield cast("IO[bytes]", stream)
        elif path.suffix == ".zst":
            import zstandard

            with path.open("rb", buffering=0) as raw:
                try:
                    yield io.BufferedReader(_ZstdReader(raw), 1 << 20)
                except zstandard.ZstdError as problem:
                    raise DataError(f"damaged zstandard data: {problem}", where=str(path)) from problem
        else:
            with path.open("rb", buffering=1 << 20) as stream:
                yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise DataError(f"damaged gzip data: {problem}", where=str(path)) from problem
    except OSError as problem:
        raise DataError(f"cannot be read: {problem.strerror or problem}", where=str(path)) from problem


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of a zstandard file, frame after frame.

    The library's own stream_reader takes a file that was cut short for a whole one, and stops after the first frame,
    of which `cat a.zst b.zst` and pzstd make several.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: Any = None
        self._unread = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._ready:
            data = self._unread or self._raw.read(1 << 15)
            if not data:
                if self._frame is not None:
                    raise zstandard.ZstdError("the data ends too soon")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready, self._unread = memoryview(self._frame.decompress(data)), b""
            if self._frame.eof:
                self._unread, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file in order, blank ones left out, a byte order mark at the start left out."""
    with open_binary(path) as stream:
        for number, data in enumerate(stream, 1):
            if number == 1 and data.startswith(UTF8_BOM):
                data = data[len(UTF8_BOM) :]
            data = data.rstrip(b"\r\n")
            if data.strip():
                yield Line(number, data)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for every line.

    Raises:
        DataError: A line is not a JSON object; the message names file, line and column.
    """
    for line in read_lines(path):
        try:
            value = orjson.loads(line.data)
        except orjson.JSONDecodeError as problem:
            raise DataError(
                f"not valid JSON: {problem.msg}",
                where=f"{path}:{line.number}:{problem.colno}",
                hint=f"`bgectl data validate {path}` lists every such line",
            ) from problem
        if not isinstance(value, dict):
            raise DataError(
                f"expected a JSON object, found {json_type(value)}", where=f"{path}:{line.number}:1",
                hint='each line is one object such as {"query": "...", "pos": ["..."], "neg": ["..."]}',
            )  # fmt: skip
        yield line.number, value


def json_type(value: object) -> str:
    """What JSON calls the type of a parsed value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def dump(value: object) -> bytes:
    """One line of JSON without its line end, keys in the order they have."""
    return orjson.dumps(value)


@contextmanager
def replace_file(target: Path) -> Iterator[IO[bytes]]:
    """Write a file beside `target` and rename it into place on success; on failure nothing is left behind.

    The stream compresses by the target's name. `-` writes to stdout.

    Raises:
        UsageError: The target's directory does not exist or the target is a directory.
        RunError: The disk is full or the file cannot be written.
    """
    check_target(target)
    if str(target) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if target.exists() and not target.is_file():
        # A pipe or a device such as /dev/null is written to; a rename would take its place.
        with target.open("wb") as device, _compressed(device, target) as stream:
            yield stream
        return
    place = Path(os.path.realpath(target))
    sweep_parts(place.parent, place.name)
    try:
        with written_beside(place) as temporary:
            with temporary.open("wb", buffering=1 << 20) as raw, _compressed(raw, target) as stream:
                yield stream
            temporary.chmod(_default_mode(target))
    except OSError as problem:
        raise RunError(f"cannot be written: {problem.strerror or problem}", where=str(target)) from problem


def check_target(target: Path) -> None:
    """Refuse an output file that could not be written; long runs ask this first.

    Raises:
        UsageError: It is a directory, or its directory does not exist or may not be written to.
    """
    if str(target) == "-":
        return
    try:
        if stat.S_ISDIR(target.stat().st_mode):
            raise UsageError("is a directory; a file name is wanted", where=str(target))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as problem:
        raise UsageError(f"cannot be written: {problem.strerror or problem}", where=str(target)) from problem
    directory = Path(os.path.realpath(target)).parent
    if not directory.is_dir():
        raise UsageError("the directory of this file does not exist", where=str(target), hint="create it first")
    if not os.access(directory, os.W_OK):
        raise UsageError("the directory of this file may not be written to", where=str(target))


def _default_mode(target: Path) -> int:
    """The mode the target has, or the one a plain `open` would give; mkstemp's 0600 would surprise."""
    return target.stat().st_mode & 0o777 if target.exists() else plain_mode()


def plain_mode(most: int = 0o666) -> int:
    """The mode that a file made by a plain `open` gets; with 0o777, a folder."""
    mask = os.umask(0)
    os.umask(mask)
    return most & ~mask


@contextmanager
def _compressed(raw: IO[bytes], target: Path) -> Iterator[IO[bytes]]:
    if target.suffix == ".gz":
        # mtime 0: the same rows give the same bytes.
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream:
            yield cast("IO[bytes]", stream)
    elif target.suffix == ".zst":
        import zstandard

        with zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as stream:
            yield cast("IO[bytes]", stream)
    else:
        yield raw


def write_objects(target: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one object a line; returns how many. See `replace_file`."""
    count = 0
    with replace_file(target) as stream:
        for row in rows:
            stream.write(dump(row) + b"\n")
            count += 1
    return count
