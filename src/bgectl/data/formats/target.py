"""What all writers share: where rows go, and rows put by on the disk until their columns are known."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from bgectl import jsonl
from bgectl.data.formats.source import Notes, Raw
from bgectl.data.formats.tables import KINDS, kind_of
from bgectl.errors import RunError, UsageError
from bgectl.jsonl import plain_mode

TEXTS = ("query", "pos", "neg")
SCORES = ("pos_scores", "neg_scores")


@dataclass
class Target:
    """Where rows go, and how; the fields are those of `ConvertOptions`."""

    path: Path
    format: str
    notes: Notes = field(default_factory=Notes)
    shape: str = "tuple"
    negatives: int | None = None
    columns: Sequence[str] = ()
    split: str | None = None
    collection: Path | None = None
    queries: Path | None = None

    def lose(self, row: Raw, held: Iterable[str]) -> None:
        """Count the fields of a row that the format does not hold."""
        for name, value in row.items():
            if name not in held and value not in (None, []):
                self.notes.lost[f"`{name}`"] += 1


class Spool:
    """Rows on the disk, to be read again once it is known what there is in them."""

    def __init__(self, stream: IO[bytes], rows: Iterable[Raw]) -> None:
        self._stream = stream
        self.kinds: dict[str, str | None] = {}
        self.rows_with: Counter[str] = Counter()
        self.negatives: Counter[int] = Counter()
        for row in rows:
            stream.write(jsonl.dump(row) + b"\n")
            self.negatives[len(row.get("neg") or ())] += 1
            for name, value in row.items():
                if value is None or (value == [] and name not in TEXTS):
                    continue
                self.rows_with[name] += 1
                kind = KINDS.get(name) or kind_of(value)
                known = self.kinds.setdefault(name, kind)
                if kind != known:
                    self.kinds[name] = _wider(kind, known)
        stream.flush()

    def __iter__(self) -> Iterator[Raw]:
        self._stream.seek(0)
        return map(orjson.loads, self._stream)

    def __len__(self) -> int:
        return self.negatives.total()


def _wider(one: str | None, other: str | None) -> str | None:
    for numbers in ({"integer", "number"}, {"integers", "numbers"}):
        if {one, other} == numbers:
            return max(numbers)
    return None


@contextmanager
def spooled(rows: Iterable[Raw]) -> Iterator[Spool]:
    """The rows in a temporary file.

    Raises:
        RunError: There is no room for it.
    """
    try:
        with tempfile.TemporaryFile(prefix="bgectl-") as stream:
            yield Spool(stream, rows)
    except OSError as problem:
        if isinstance(problem, BrokenPipeError):
            raise
        where = problem.filename or tempfile.gettempdir()
        raise RunError(f"cannot be written: {problem.strerror or problem}", where=str(where)) from problem


class Ids:
    """Ids of texts in the order they come: `p1`, `p2`, …"""

    def __init__(self, letter: str) -> None:
        self._letter = letter
        self._of: dict[Any, str] = {}
        self._taken: set[str] = set()

    def of(self, key: Any, wanted: Any = None) -> tuple[str, bool]:
        """The id of a text, and whether it is new.

        Args:
            key: The text, or what else is one thing.
            wanted: The id it had, which it gets again if that is free.
        """
        if key in self._of:
            return self._of[key], False
        given = str(wanted) if isinstance(wanted, str | int) and not isinstance(wanted, bool) else ""
        given = given if given.strip() and not any(mark in given for mark in "\t\r\n ") else ""
        number = len(self._of) + 1
        while not given or given in self._taken:
            given = f"{self._letter}{number}"
            number += 1
        self._taken.add(given)
        self._of[key] = given
        return given, True


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that must not be written into.

    Raises:
        UsageError: It is a file, holds something, or could not be made.
    """
    if str(folder) == "-" or (folder.exists() and not folder.is_dir()):
        raise UsageError("a folder is wanted", where=str(folder))
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(
            "the folder is not empty", where=str(folder),
            hint="name another one, or --overwrite replaces the files of this command in it",
        )  # fmt: skip
    if not folder.resolve().parent.is_dir():
        raise UsageError("the directory of this folder does not exist", where=str(folder), hint="create it first")


@contextmanager
def folder_beside(folder: Path) -> Iterator[Path]:
    """A folder to fill, whose files then take their places in `folder`; on failure nothing is left behind.

    Raises:
        RunError: The disk is full, or the folder cannot be written.
    """
    try:
        place = Path(os.path.realpath(folder))
        beside = Path(tempfile.mkdtemp(prefix=f".{place.name[:100]}.", suffix=".part", dir=place.parent))
        try:
            yield beside
            beside.chmod(plain_mode(0o777))
            if place.is_dir() and any(place.iterdir()):
                for file in sorted(path for path in beside.rglob("*") if path.is_file()):
                    goal = place / file.relative_to(beside)
                    goal.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(goal)
            else:
                beside.replace(place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as problem:
        raise RunError(f"cannot be written: {problem.strerror or problem}", where=str(folder)) from problem
