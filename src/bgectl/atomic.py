"""Files that are there whole or not at all: written beside and renamed into place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bgectl.signals import half_written

PART = ".part"
"""The ending of what is being written."""


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A file to write that is then renamed to `path`; nothing is left where that fails.

    It is locked as long, so that `sweep_parts` can tell what a process that was killed left.
    """
    while True:
        # Not the process's number: on several machines, or in containers, it repeats.
        beside = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}{PART}")
        stream = beside.open("xb")
        fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:
            break
        # Swept between the two.
        stream.close()
    with stream, half_written(beside):
        try:
            yield beside
            os.fsync(stream.fileno())
            beside.replace(path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()


def put(path: Path, data: bytes) -> None:
    """Write a file beside and rename it into place; nothing is left where that fails."""
    with written_beside(path) as beside:
        beside.write_bytes(data)


def sweep_parts(folder: Path, name: str | None = None) -> None:
    """Delete what processes that were killed had not written to the end: nobody holds its lock.

    Args:
        folder: Where.
        name: Of the file that they wrote; None for any.
    """
    start = "." if name is None else f".{name[:200]}."
    with contextlib.suppress(OSError):
        for left in folder.iterdir():
            if left.name.startswith(start) and left.name.endswith(PART):
                with contextlib.suppress(OSError), left.open("rb") as stream:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()
