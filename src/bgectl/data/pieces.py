"""Files cut into pieces at line ends, so that several processes can read one file."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from bgectl import console, jsonl
from bgectl.errors import RunError

PIECE_BYTES = 32 << 20
"""Long enough that starting on a piece costs nothing beside reading it, short enough that processes end together."""

LONGEST_LINE = 64 << 20
"""Bytes of a line; what is longer has lost its line ends and is not taken into memory."""

LONG_MEGABYTES = 64
"""What is shorter is read in a moment."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Piece:
    """The lines of a file that start at the offsets `start` to `end` (excluded; None: the end of the file).

    Attributes:
        file: Position of the file among the files.
        path: The file; `-` is stdin.
        start: In bytes.
        end: In bytes.
    """

    file: int
    path: Path
    start: int = 0
    end: int | None = None


def default_workers() -> int:
    """One process for each core this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def cut_file(file: int, path: Path, piece_bytes: int) -> list[Piece]:
    """The pieces of a file: one, unless it is a plain file longer than `piece_bytes`."""
    size = path.stat().st_size if cuttable(path) else 0
    if size <= piece_bytes:
        return [Piece(file, path)]
    starts = range(0, size, piece_bytes)
    return [Piece(file, path, start, start + piece_bytes if start != starts[-1] else None) for start in starts]


def cuttable(path: Path) -> bool:
    """Whether the file can be read from any offset: not stdin, a named pipe or compressed."""
    return path.suffix not in {".gz", ".zst"} and path.is_file()


@contextmanager
def open_piece(piece: Piece) -> Iterator[tuple[IO[bytes], int]]:
    """The stream at the start of the piece's first line, and the offset of that line.

    Raises:
        DataError: The file cannot be read, or its compressed data is damaged.
    """
    with jsonl.open_binary(piece.path) as stream:
        offset = piece.start
        if offset:
            # From one byte before: at a line's start this reads the line end only.
            stream.seek(offset - 1)
            offset += len(stream.readline()) - 1
        yield stream, offset


def lines_of(piece: Piece) -> Iterator[bytes]:
    """The lines of a piece with their line ends, blank ones too; of too long a line LONGEST_LINE bytes.

    Raises:
        DataError: As `open_piece`; lines before the damage come first.
    """
    with open_piece(piece) as (stream, offset):
        end = sys.maxsize if piece.end is None else piece.end
        while offset < end and (line := stream.readline(LONGEST_LINE)):
            offset += len(line)
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                offset += skip_line(stream)
            yield line


def skip_line(stream: IO[bytes]) -> int:
    """Read to the next line end; returns how many bytes that was."""
    skipped = 0
    while part := stream.readline(1 << 20):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


@contextmanager
def map_pieces(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], workers: int
) -> Iterator[Iterator[tuple[Piece, Result]]]:
    """An iterator over `function` of every piece, in order, made by `workers` processes.

    The function must be picklable. Within one call `hash` gives the same values in all processes.

    Raises:
        RunError: A process died.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with _shared_hash_seed(), ProcessPoolExecutor(workers, context, initializer=_ignore_interrupt) as pool:
        # Handed in at once, so that processes are forked before a progress display starts its thread.
        waiting = deque((piece, pool.submit(function, piece)) for piece in pieces)
        try:
            yield _in_order(waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_order(waiting: deque[tuple[Piece, Future[Result]]]) -> Iterator[tuple[Piece, Result]]:
    while waiting:
        piece, future = waiting.popleft()
        try:
            yield piece, future.result()
        except BrokenProcessPool as problem:
            hint = "`--workers 1` reads in one process"
            raise RunError("a reading process died, perhaps for want of memory", hint=hint) from problem


def _ignore_interrupt() -> None:
    # Ctrl-C reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _shared_hash_seed() -> Iterator[None]:
    """Let spawned processes agree on the hashes of strings; forked ones do anyway."""
    given = os.environ.get("PYTHONHASHSEED")
    if given is None:
        os.environ["PYTHONHASHSEED"] = str(secrets.randbelow(2**32))
    try:
        yield
    finally:
        if given is None:
            del os.environ["PYTHONHASHSEED"]


@contextmanager
def progress_of(description: str, files: Sequence[Path]) -> Iterator[console.Advance]:
    """Progress in megabytes for what takes longer than a moment; of compressed files the length is not known.

    Args:
        description: What is being done.
        files: What is read.

    Yields:
        To be told of bytes.
    """
    known = all(cuttable(path) for path in files)
    megabytes = sum(path.stat().st_size for path in files) >> 20 if known else 0
    if known and megabytes < LONG_MEGABYTES:
        yield lambda amount=1: None
        return
    with console.progress(description, megabytes if known else None, "MB") as advance:
        rest = 0

        def advance_bytes(amount: int = 1) -> None:
            nonlocal rest
            whole, rest = divmod(rest + amount, 1 << 20)
            if whole:
                advance(whole)

        yield advance_bytes
