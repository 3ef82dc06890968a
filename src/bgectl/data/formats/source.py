"""What all readers share: where a record came from, what was wrong with it, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from bgectl import console, jsonl
from bgectl.errors import DataError, RunError, UsageError

Raw = dict[str, Any]
Placed = tuple[str, Raw]
"""Where a record stands, `file:line`, and the record."""


@dataclass
class Problems:
    """Defective records. All of a file are told in one error, or they are left out and counted.

    Args:
        most: How many are told with all their words.
        skip: They are left out.
    """

    most: int = 20
    skip: bool = False
    records: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, where: str, message: str, hint: str | None = None) -> None:
        """Note a record that cannot be used."""
        self.records += 1
        if len(self.shown) < self.most:
            self.shown.append(f"{where}: {message}" + (f" ({hint})" if hint else ""))

    def settle(self) -> None:
        """Tell of all of them.

        Raises:
            DataError: There are some and they are not to be left out.
        """
        if not self.records:
            return
        more = self.records - len(self.shown)
        told = "\n".join([*self.shown, *([f"and {more:,} more"] if more else [])])
        if self.skip:
            console.warn(f"{counted(self.records, 'defective record')} left out:\n{told}")
        else:
            raise DataError(told, hint="`--skip-bad` leaves such records out and writes the rest")


def counted(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


@dataclass
class Notes:
    """What the user should know of a conversion, counted."""

    counts: Counter[str] = field(default_factory=Counter)
    """By a phrase that the number is put after."""
    lost: Counter[str] = field(default_factory=Counter)
    """Rows whose field the output's format cannot hold."""
    said: list[str] = field(default_factory=list)

    def tell(self, format: str) -> None:
        """Say all on stderr."""
        for message in dict.fromkeys(self.said):
            console.info(message)
        for phrase, number in self.counts.items():
            console.warn(f"{phrase}: {number:,}")
        if self.lost:
            fields = ", ".join(f"{name} (in {counted(number, 'row')})" for name, number in self.lost.items())
            console.warn(f"the format {format} does not hold, so these are lost: {fields}")


@dataclass
class Source:
    """What is read, and how; the fields are those of `ConvertOptions`."""

    path: Path
    name: str
    problems: Problems = field(default_factory=Problems)
    notes: Notes = field(default_factory=Notes)
    columns: Sequence[str] = ()
    keep: Sequence[str] = ()
    split: str | None = None
    subset: str | None = None
    collection: Path | None = None
    queries: Path | None = None
    positive_from: float | None = None


def files_of(path: Path, endings: Sequence[str]) -> list[Path]:
    """The file, or the files with such endings in a folder, sorted.

    Raises:
        UsageError: There is none.
    """
    if str(path) == "-":
        return [path]
    if path.is_dir():

        def fits(name: str) -> bool:
            return name.endswith(tuple(endings)) and not name.endswith(jsonl.MANIFEST)

        found = sorted(entry for entry in path.iterdir() if entry.is_file() and fits(entry.name))
        if not found:
            raise UsageError("the folder holds no such file", where=str(path), hint=f"wanted is {', '.join(endings)}")
        return found
    if not path.exists():
        raise UsageError("no such file or directory", where=str(path))
    return [path]


def compressed(*endings: str) -> list[str]:
    """Endings, plain and compressed."""
    return [ending + packed for ending in endings for packed in ("", ".gz", ".zst")]


def read_objects(source: Source) -> Iterator[Placed]:
    """The objects of JSON lines, or of files that are one JSON array each (which are read whole)."""
    for path in files_of(source.path, jsonl.SUFFIXES):
        first = True
        for line in jsonl.read_lines(path):
            if first and line.data.lstrip().startswith(b"["):
                yield from _array(path, source.problems)
                break
            first = False
            try:
                value = orjson.loads(line.data)
            except orjson.JSONDecodeError as problem:
                source.problems.add(f"{path}:{line.number}:{problem.colno}", f"not valid JSON: {problem.msg}")
                continue
            if isinstance(value, dict):
                yield f"{path}:{line.number}", value
            else:
                found = jsonl.json_type(value)
                source.problems.add(f"{path}:{line.number}", f"expected a JSON object, found {found}")


def _array(path: Path, problems: Problems) -> Iterator[Placed]:
    if str(path) == "-":
        raise DataError("is a JSON array, which cannot be read from a pipe", where="-", hint="give the file")
    with jsonl.open_binary(path) as stream:
        data = stream.read()
    try:
        values = orjson.loads(data.removeprefix(jsonl.UTF8_BOM))
    except orjson.JSONDecodeError as problem:
        where = f"{path}:{problem.lineno}:{problem.colno}"
        raise DataError(f"not valid JSON: {problem.msg}", where=where) from problem
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            yield f"{path}: item {number}", value
        else:
            problems.add(f"{path}: item {number}", f"expected a JSON object, found {jsonl.json_type(value)}")


def text_lines(path: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """(`file:line`, text) of a file."""
    for line in jsonl.read_lines(path):
        where = f"{path}:{line.number}"
        try:
            text = line.data.decode("utf-8")
        except UnicodeDecodeError as problem:
            problems.add(where, f"is not UTF-8 (byte {problem.start + 1})")
            continue
        yield where, text


def needed(load: Callable[[], Any], what: str, extra: str) -> Any:
    """What `load` imports.

    Raises:
        RunError: Its package is not installed.
    """
    try:
        return load()
    except ImportError as problem:
        raise RunError(f"{what} is not installed", hint=f"pip install 'bgectl[{extra}]'") from problem
