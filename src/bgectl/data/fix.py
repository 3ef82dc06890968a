"""`data validate --fix`: the good rows to one file, the others with the reasons to another."""

from __future__ import annotations

import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from bgectl import jsonl
from bgectl.data.check import row_flaws
from bgectl.data.pieces import LONGEST_LINE, Piece, lines_of
from bgectl.data.rows import Flaw
from bgectl.data.scan import DUPLICATE_KEY_LINES, Checks, Head, problems_of
from bgectl.errors import DataError, UsageError


@dataclass(frozen=True, slots=True)
class Fixed:
    """What was written."""

    out: Path
    rejected: Path
    kept_rows: int
    rejected_rows: int


def rejected_path(out: Path) -> Path:
    """Where the rows go that `out` does not get."""
    return out.with_name(out.name + ".rejected.jsonl")


def check_target(out: Path, inputs: Sequence[Path], given: Sequence[Path]) -> None:
    """Refuse to write over an input, or where the next run would read the output as one.

    Raises:
        UsageError: `out` cannot be written to.
    """
    if str(out) == "-":
        raise UsageError("stdout has the report; give a file", where="--fix")
    for target in (out, rejected_path(out)):
        if any(target.resolve() == path.resolve() for path in inputs if str(path) != "-"):
            raise UsageError("is one of the inputs", where=f"--fix {target}", hint="give another name")
        if target.is_dir():
            raise UsageError("is a directory; a file name is wanted", where=f"--fix {target}")
    folder = out.resolve().parent
    if not folder.is_dir():
        raise UsageError("the directory of this file does not exist", where=f"--fix {out}", hint="create it first")
    if out.name.endswith(jsonl.SUFFIXES) and any(path.is_dir() and path.resolve() == folder for path in given):
        hint = "write to another directory, or the rows are there twice"
        raise UsageError("lies in a directory that is an input", where=f"--fix {out}", hint=hint)


@contextmanager
def readable_twice(files: Sequence[Path]) -> Iterator[Mapping[Path, Path]]:
    """Where to read each file from: stdin and named pipes, which give their data once, are copied to the disk."""
    with tempfile.TemporaryDirectory(prefix="bgectl-") as folder:
        places = {}
        for index, path in enumerate(files):
            if path.is_file():
                places[path] = path
                continue
            places[path] = Path(folder, f"{index}.jsonl")
            with jsonl.open_binary(path) as stream, places[path].open("wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
        yield places


def one_type(files: Sequence[Path], heads: Sequence[Head | None]) -> None:
    """Refuse to put rows of several types into one file.

    Raises:
        UsageError: The files are of different types.
    """
    kinds = {head.type: path for path, head in zip(files, heads, strict=True) if head is not None}
    if len(kinds) > 1:
        told = ", ".join(f"{path} ({kind})" for kind, path in kinds.items())
        raise UsageError(
            f"one file cannot hold rows of several types: {told}", where="--fix", hint="mend them one by one"
        )


def write_fixed(
    out: Path,
    files: Sequence[Path],
    heads: Sequence[Head | None],
    whole: Sequence[bool],
    duplicates: Sequence[array[int]],
    checks: Checks,
    *,
    places: Mapping[Path, Path],
) -> Fixed:
    """Write both files; either whole or not at all.

    Args:
        out: For the good rows.
        files: As the user named them.
        heads: The head of each file.
        whole: Whether a file holds no rows at all.
        duplicates: The lines of each file that repeat an earlier row, ascending.
        checks: What makes a row bad.
        places: Where to read the files from.
    """
    kept = rejected = 0
    with jsonl.replace_file(rejected_path(out)) as bad, jsonl.replace_file(out) as good:
        for index, path in enumerate(files):
            if whole[index]:
                continue
            for number, line, reasons in _judged(places[path], heads[index], duplicates[index], checks):
                if reasons:
                    rejected += 1
                    bad.write(_rejection(str(path), number, line, reasons))
                else:
                    kept += 1
                    good.write(line + b"\n")
    return Fixed(out, rejected_path(out), kept, rejected)


def _judged(
    path: Path, head: Head | None, duplicates: array[int], checks: Checks
) -> Iterator[tuple[int, bytes, list[Flaw]]]:
    """(line number, bytes without line end and byte order mark, reasons against it) of every row."""
    piece = Piece(0, path)
    negatives = head.negatives_needed(checks.group_size) if head else checks.group_size - 1
    next_duplicate = 0
    try:
        for number, line in enumerate(lines_of(piece), 1):
            repeats = next_duplicate < len(duplicates) and duplicates[next_duplicate] == number
            next_duplicate += repeats
            bare = line.removeprefix(jsonl.UTF8_BOM) if number == 1 else line
            if not bare.strip():
                continue
            clean = _clean(line, number, checks, negatives)
            reasons = [] if clean else _errors(line, number, piece, checks, negatives)
            if repeats and not reasons:
                reasons = [Flaw("", "duplicate-row", "repeats an earlier row", "")]
            if not reasons and head is not None:
                reasons = _other_type(bare, head)
            yield number, bare.rstrip(b"\r\n"), reasons
    except DataError:
        # The damage is among the problems; the rows before it are good.
        return


def _clean(line: bytes, number: int, checks: Checks, negatives: int) -> bool:
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    simple = isinstance(raw, dict) and (number > DUPLICATE_KEY_LINES or line.count(b'":') == len(raw))
    return simple and not row_flaws(raw, icl=checks.icl, distill=checks.distill, negatives=negatives)


def _errors(line: bytes, number: int, piece: Piece, checks: Checks, negatives: int) -> list[Flaw]:
    if len(line) >= LONGEST_LINE and not line.endswith(b"\n"):
        return [Flaw("", "line-too-long", f"the line is longer than {LONGEST_LINE >> 20} MiB", "")]
    placed = problems_of(line, number, piece, checks, negatives)
    # A byte order mark at the start is left out of the output, which mends it.
    mended = {"bom"} if number == 1 else set()
    return [item.flaw for item in placed if checks.severity(item.flaw) == "error" and item.flaw.code not in mended]


def _other_type(line: bytes, head: Head) -> list[Flaw]:
    if b'"type"' not in line and head.type == "normal":
        return []
    kind = orjson.loads(line).get("type") or "normal"
    if kind == head.type:
        return []
    return [Flaw("type", "mixed-types", f"of type {kind!r} in a file of type {head.type!r}", "")]


def _rejection(file: str, number: int, line: bytes, reasons: Sequence[Flaw]) -> bytes:
    told = [f"{flaw.field}: {flaw.message}" if flaw.field else flaw.message for flaw in reasons]
    shown = os.fsencode(file).decode("utf-8", "replace")
    text = line.decode("utf-8", "backslashreplace")
    codes = [flaw.code for flaw in reasons]
    return jsonl.dump({"file": shown, "line": number, "reasons": told, "codes": codes, "raw": text}) + b"\n"
