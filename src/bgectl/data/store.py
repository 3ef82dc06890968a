"""Rows of a file read on demand by byte offset, so that memory holds 8 bytes a row and not the text."""

from __future__ import annotations

import hashlib
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from bgectl import jsonl
from bgectl.data.check import row_flaws
from bgectl.data.pieces import progress_of
from bgectl.data.rows import Row, to_row
from bgectl.errors import DataError, UsageError

SHOWN_ERRORS = 10
"""Rows named in one error message."""


@dataclass
class RowFile:
    """One file of rows: where each row starts, and what the rows have in common.

    Attributes:
        path: The file as the user named it.
        plain: The same data uncompressed: `path`, or a copy of it.
        offsets: Byte offset of each row.
        lines: Line number of each row.
        types: How many rows of each `type`, and the line of the first.
        scored: Rows with teacher scores.
        prompts: Rows by `prompt`; at most 100 different ones are told apart.
        no_negatives: Lines of rows without negatives (the first few) and how many there are.
        batch_size: The column `batch_size` of the first row.
        train_group_size: The column `train_group_size` of the first row.
        first_negatives: Negatives of the first row; it sets the group of `symmetric_class`.
    """

    path: Path
    plain: Path
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    types: Counter[str] = field(default_factory=Counter)
    type_lines: dict[str, int] = field(default_factory=dict)
    scored: int = 0
    prompts: Counter[str | None] = field(default_factory=Counter)
    no_negatives: int = 0
    no_negative_lines: list[int] = field(default_factory=list)
    batch_size: int | None = None
    train_group_size: int | None = None
    first_negatives: int = 0
    _handle: int | None = None
    _process: int = -1

    def __len__(self) -> int:
        return len(self.offsets)

    def size(self, index: int) -> int:
        """Bytes from the start of a row to the start of the next one."""
        end = self.offsets[index + 1] if index + 1 < len(self.offsets) else self.plain.stat().st_size
        return end - self.offsets[index]

    def read(self, index: int) -> Row:
        """The row at a position; safe in several processes at once (positioned reads on an own descriptor)."""
        start = self.offsets[index]
        end = self.offsets[index + 1] if index + 1 < len(self.offsets) else None
        if self._handle is None or self._process != os.getpid():
            self._handle, self._process = os.open(self.plain, os.O_RDONLY), os.getpid()
        size = (end if end is not None else os.fstat(self._handle).st_size) - start
        # The next row's offset may lie behind blank lines, which are not part of this row.
        data = os.pread(self._handle, size, start).split(b"\n", 1)[0]
        try:
            return to_row(orjson.loads(data))
        except (orjson.JSONDecodeError, KeyError, TypeError) as problem:
            raise DataError(
                "the file has changed since training started", where=f"{self.path}:{self.lines[index]}"
            ) from problem


def open_rows(path: Path, unpack_to: Path) -> RowFile:
    """Index a file, checking every row.

    Args:
        path: The file; compressed ones are unpacked once.
        unpack_to: Folder for the unpacked copies; one that is there already is taken.

    Raises:
        UsageError: It is stdin.
        DataError: Rows have errors; the first ones are named with line and field.
    """
    if str(path) == "-":
        raise UsageError("training reads its rows again and again, which stdin does not allow", where="--train-data -",
                         hint="write them to a file first")  # fmt: skip
    file = RowFile(path, _plain(path, unpack_to))
    errors: list[str] = []
    count = 0
    offset = 0
    reading = progress_of(f"Reading {path.name}", [file.plain])
    with reading as advance, file.plain.open("rb", buffering=1 << 20) as stream:
        for number, data in enumerate(stream, 1):
            advance(len(data))
            start, offset = offset, offset + len(data)
            if number == 1 and data.startswith(jsonl.UTF8_BOM):
                start, data = start + len(jsonl.UTF8_BOM), data[len(jsonl.UTF8_BOM) :]
            if not data.strip():
                continue
            problems = _problems(path, number, data, lambda row, n=number, s=start: _note(file, row, n, s))  # type: ignore[misc]
            count += len(problems)
            errors.extend(problems[: SHOWN_ERRORS - len(errors)])
    if errors:
        more = f"\n       and {count - len(errors)} more" if count > len(errors) else ""
        hint = f"`bgectl data validate {path}` lists them all; its --fix OUT writes the good rows"
        raise DataError("\n       ".join(errors) + more, hint=hint)
    if not len(file):
        raise DataError("holds no rows", where=str(path))
    return file


def _plain(path: Path, unpack_to: Path) -> Path:
    if path.suffix not in {".gz", ".zst"}:
        return path
    unpack_to.mkdir(parents=True, exist_ok=True)
    seen = path.stat()
    # Another process, or an earlier run, may have unpacked the same file.
    version = hashlib.blake2b(f"{path.resolve()} {seen.st_size} {seen.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    copy = unpack_to / f"{path.stem}.{version}"
    if not copy.is_file():
        with jsonl.replace_file(copy) as target, jsonl.open_binary(path) as stream:
            shutil.copyfileobj(stream, target, 1 << 20)
    return copy


def _problems(path: Path, number: int, data: bytes, keep: Callable[[Row], None]) -> list[str]:
    """What is wrong with a line, as text; a good row is handed to `keep`."""
    try:
        raw = orjson.loads(data)
    except orjson.JSONDecodeError as problem:
        return [f"{path}:{number}:{problem.colno}: not valid JSON: {problem.msg}"]
    if not isinstance(raw, dict):
        return [f"{path}:{number}: expected a JSON object, found {jsonl.json_type(raw)}"]
    flaws = [flaw for flaw in row_flaws(raw) if flaw.severity == "error"]
    if flaws:
        return [f"{path}:{number}: `{flaw.field}`: {flaw.message}" for flaw in flaws]
    keep(to_row(raw))
    return []


def _note(file: RowFile, row: Row, number: int, start: int) -> None:
    """Add a good row to the index."""
    if not file.offsets:
        file.batch_size, file.train_group_size = row.batch_size, row.train_group_size
        file.first_negatives = len(row.neg)
    file.offsets.append(start)
    file.lines.append(number)
    file.types[row.type] += 1
    file.type_lines.setdefault(row.type, number)
    file.scored += row.pos_scores is not None and row.neg_scores is not None
    if len(file.prompts) < 100 or row.prompt in file.prompts:
        file.prompts[row.prompt] += 1
    if not row.neg:
        file.no_negatives += 1
        if len(file.no_negative_lines) < SHOWN_ERRORS:
            file.no_negative_lines.append(number)
