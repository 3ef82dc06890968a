"""`data validate`: every defect of training files, in one go.

Memory: 16 bytes a row while reading (see `scan`), 24 where the hashes are sorted to find rows that are there twice, and
at most MOST_PROBLEMS problems.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bgectl import console, jsonl
from bgectl.data import fix
from bgectl.data.check import Problem
from bgectl.data.pieces import PIECE_BYTES, Piece, cut_file, default_workers, map_pieces, progress_of
from bgectl.data.rows import Flaw, Severity
from bgectl.data.scan import MOST_PROBLEMS, Checks, Differing, Found, Head, Scan, first_head, scan_piece
from bgectl.data.tokens import TokenCounter
from bgectl.errors import DataError
from bgectl.manifest import described, write_manifest
from bgectl.options.data import ValidateOptions

FEW_ROWS = 50_000
"""Up to here a set finds repeated rows faster than numpy is imported."""


@dataclass(slots=True)
class FileReport:
    """One file, put together from its pieces."""

    path: Path
    name: str
    lines: int = 0
    rows: int = 0
    whole: bool = False
    head: Head | None = None
    differing: dict[str, Differing] = field(default_factory=dict)
    counts: Counter[Severity] = field(default_factory=Counter)
    duplicates: array[int] = field(default_factory=lambda: array("q"))


@dataclass(slots=True)
class Part:
    """The rows of one piece: their hashes, and what makes line numbers of them."""

    file: int
    lines_before: int
    hashes: array[int]
    row_lines: array[int]


@dataclass(slots=True)
class Report:
    """All that is known about all files."""

    checks: Checks
    files: list[FileReport]
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[tuple[str, Severity]] = field(default_factory=Counter)
    parts: list[Part] = field(default_factory=list)
    tokens: dict[str, dict[str, int | float]] | None = None
    fixed: fix.Fixed | None = None

    def total(self, severity: Severity) -> int:
        """All problems of a severity."""
        return sum(count for (_, kind), count in self.counts.items() if kind == severity)

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    def add(self, file: FileReport, flaw: Flaw, line: int | None = None, column: int | None = None) -> None:
        """Note a problem that a comparison of rows or a count brought up."""
        severity = self.checks.severity(flaw)
        self.counts[flaw.code, severity] += 1
        file.counts[severity] += 1
        if len(self.problems) < MOST_PROBLEMS:
            values = (flaw.field or None, flaw.code, severity, flaw.message, flaw.hint)
            self.problems.append(Problem(file.name, line, column, *values))


def run(options: ValidateOptions) -> bool:
    """Check files and print what was found; True when there is no error.

    Raises:
        UsageError: A path does not exist, or --fix cannot be written there.
        RunError: The tokenizer cannot be loaded, or the output not be written.
    """
    files = list(dict.fromkeys(jsonl.expand_paths(options.paths)))
    checks = Checks(
        options.train_group_size, options.per_device_train_batch_size, options.icl, options.knowledge_distillation,
        options.strict,
    )  # fmt: skip
    tokens = None
    if options.tokenizer is not None:
        tokens = TokenCounter(options.tokenizer, options.query_max_len, options.passage_max_len)
    workers = options.workers or default_workers()
    if options.fix is None:
        report = check_files(files, checks, workers=workers, tokens=tokens)
    else:
        inputs = described({"paths": files})
        report = check_and_fix(options.fix, files, options.paths, checks, workers=workers, tokens=tokens)
        assert report.fixed is not None
        facts = {"rows": report.fixed.kept_rows, "rejected_rows": report.fixed.rejected_rows}
        write_manifest(options.fix, "data validate --fix", inputs, facts, options)
    if options.format == "json":
        sys.stdout.buffer.write(as_json(report))
        sys.stdout.buffer.flush()
    else:
        print_report(report, options.max_problems)
    return not report.total("error")


def check_and_fix(
    out: Path,
    files: Sequence[Path],
    given: Sequence[Path],
    checks: Checks,
    *,
    workers: int = 1,
    tokens: TokenCounter | None = None,
) -> Report:
    """Check files, then write their good rows to `out`.

    Raises:
        UsageError: `out` is one of the files, or they are of different types.
    """
    fix.check_target(out, files, given)
    with fix.readable_twice(files) as places:
        report = check_files(files, checks, workers=workers, tokens=tokens, places=places)
        heads = [file.head for file in report.files]
        fix.one_type(files, heads)
        whole = [file.whole for file in report.files]
        duplicates = [file.duplicates for file in report.files]
        report.fixed = fix.write_fixed(out, files, heads, whole, duplicates, checks, places=places)
    return report


def check_files(
    files: Sequence[Path],
    checks: Checks,
    *,
    workers: int = 1,
    piece_bytes: int = PIECE_BYTES,
    tokens: TokenCounter | None = None,
    places: Mapping[Path, Path] | None = None,
) -> Report:
    """Everything that is wrong with the files.

    Args:
        files: The files, no directories.
        checks: What to check for.
        workers: Processes; one is used where there is nothing to share out.
        piece_bytes: Bytes of a plain file for a process at a time.
        tokens: Counts the tokens of good rows.
        places: Where to read a file from, if not from where its name says.
    """
    report = Report(checks, [FileReport(path, _shown(path)) for path in files])
    read_from = places or {}
    sources = [read_from.get(path, path) for path in files]
    for piece, found in _scan_all(sources, checks, workers, piece_bytes, tokens):
        _merge(report, piece, found)
    for file in report.files:
        _file_problems(report, file)
    _duplicate_rows(report)
    order = {file.name: index for index, file in enumerate(report.files)}
    report.problems.sort(key=lambda problem: (order[problem.file], problem.line or 0, problem.column or 0))
    if tokens is not None:
        report.tokens = tokens.summary()
    return report


def _shown(path: Path) -> str:
    """A path as text that JSON can hold, whatever bytes the file system has."""
    return str(path).encode("utf-8", "replace").decode()


def _scan_all(
    files: Sequence[Path], checks: Checks, workers: int, piece_bytes: int, tokens: TokenCounter | None
) -> Iterator[tuple[Piece, Found]]:
    """(piece, what it holds) in order, read by several processes where that pays."""
    # Hashes of rows can only be compared within one pool, and stdin has one reader.
    alone = workers == 1 or tokens is not None or any(str(path) == "-" for path in files)
    sizes = [path.stat().st_size if path.is_file() else 0 for path in files]
    if alone or sum(sizes) <= piece_bytes:
        take = tokens.add if tokens is not None else None
        with progress_of("checking", files) as advance:
            for index, path in enumerate(files):
                piece = Piece(index, path)
                yield piece, Scan(piece, checks, advance=advance, take=take).run()
        return
    pieces: list[Piece] = []
    heads: dict[int, Head | None] = {}
    for index, path in enumerate(files):
        cut, heads[index] = _cut(index, path, checks, piece_bytes)
        pieces += cut
    with (
        map_pieces(partial(scan_piece, checks=checks, heads=heads), pieces, workers) as results,
        progress_of("checking", files) as advance,
    ):
        for piece, found in results:
            advance(found.bytes)
            yield piece, found


def _cut(index: int, path: Path, checks: Checks, piece_bytes: int) -> tuple[list[Piece], Head | None]:
    """A file's pieces and the head they share; one piece where the file cannot be read, or not as lines."""
    pieces = cut_file(index, path, piece_bytes)
    if len(pieces) == 1:
        return pieces, None
    try:
        head = first_head(pieces[0], checks)
    except DataError:
        head = None
    # Without a good row in all of it, its pieces would disagree on what to compare with.
    return (pieces if head else [Piece(index, path)]), head


def _merge(report: Report, piece: Piece, found: Found) -> None:
    """Add a piece; pieces come in order, so that the lines before it are known."""
    file = report.files[piece.file]
    before = file.lines
    kept = found.problems[: MOST_PROBLEMS - len(report.problems)]
    if before or (kept and kept[0].file != file.name):
        kept = [
            replace(problem, file=file.name, line=None if problem.line is None else problem.line + before)
            for problem in kept
        ]
    report.problems += kept
    report.counts += found.counts
    for (_, severity), count in found.counts.items():
        file.counts[severity] += count
    for key, other in found.differing.items():
        if key in file.differing:
            file.differing[key].rows += other.rows
        else:
            file.differing[key] = replace(other, line=other.line + before)
    file.head = file.head or found.head
    file.whole |= found.whole
    file.lines += found.lines
    file.rows += found.rows
    report.parts.append(Part(piece.file, before, found.hashes, found.row_lines))


def _file_problems(report: Report, file: FileReport) -> None:
    """What only a whole file can have."""
    head = file.head
    if not file.rows and not file.counts["error"]:
        hint = "was it written completely? Leave it out if it is meant to be empty"
        report.add(file, Flaw("", "no-rows", "the file holds no rows", hint))
    if head is None:
        return
    for key, other in file.differing.items():
        rows = f"{other.rows:,} row{'s' * (other.rows != 1)}"
        if key.startswith("type:"):
            message = f"{rows} of type {other.value!r} in a file whose first row (line {head.line}) is {head.type!r}"
            flaw = Flaw("type", "mixed-types", message, "give each type a file of its own")
            report.add(file, flaw, other.line, other.column)
        else:
            first = getattr(head, key)
            message = f"{rows} have another `{key}` than the first row (line {head.line}), which is {_or_none(first)}"
            hint = "the first row's value holds for the whole file; make them equal"
            report.add(file, Flaw(key, "mixed-columns", message, hint, "warning"), other.line, other.column)
    batch = head.batch(report.checks.batch_size)
    if file.rows < batch:
        message = f"{file.rows} row{'s' * (file.rows != 1)}, fewer than a batch of {batch}"
        hint = "in same-dataset batches its rows are left out; lower --per-device-train-batch-size or add rows"
        report.add(file, Flaw("", "small-dataset", message, hint, "warning"))


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)


def _duplicate_rows(report: Report) -> None:
    """Rows with the query, the positives and the negatives of an earlier one, in whatever file."""
    first: dict[int, tuple[int, int]] = {}
    for value, file, line in _repeated(report.parts):
        if value not in first:
            first[value] = (file, line)
            continue
        at_file, at_line = first[value]
        place = f"line {at_line}" if at_file == file else f"{report.files[at_file].name}:{at_line}"
        hint = "it counts double, and is its own false negative in a batch; take it out (--fix does)"
        report.add(report.files[file], Flaw("", "duplicate-row", f"the same row as {place}", hint, "warning"), line, 1)
        report.files[file].duplicates.append(line)


def _repeated(parts: Sequence[Part]) -> Iterator[tuple[int, int, int]]:
    """(hash, file, line) of every row whose hash is there more than once, in order."""
    rows = sum(len(part.hashes) for part in parts)
    if rows <= FEW_ROWS:
        counts = Counter(value for part in parts for value in part.hashes)
        if len(counts) == rows:
            return
        for part in parts:
            for index, value in enumerate(part.hashes):
                if counts[value] > 1:
                    yield value, part.file, part.lines_before + part.row_lines[index]
        return
    import numpy as np

    ordered = np.concatenate([np.frombuffer(part.hashes, np.int64) for part in parts if part.hashes])
    ordered.sort()
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not len(repeated):
        return
    for part in parts:
        if not part.hashes:
            continue
        hashes = np.frombuffer(part.hashes, np.int64)
        nearest = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
        for index in np.flatnonzero(repeated[nearest] == hashes).tolist():
            yield part.hashes[index], part.file, part.lines_before + part.row_lines[index]


def as_json(report: Report) -> bytes:
    """The report for machines."""
    import orjson

    summary: dict[str, Any] = {
        "errors": report.total("error"),
        "warnings": report.total("warning"),
        "codes": {
            code: {"severity": severity, "count": count}
            for (code, severity), count in sorted(report.counts.items(), key=lambda item: (item[0][1], -item[1]))
        },
        "files": [
            {
                "file": file.name, "rows": file.rows, "type": file.head.type if file.head else None,
                "errors": file.counts["error"], "warnings": file.counts["warning"],
            }
            for file in report.files
        ],
        "problems_listed": len(report.problems),
        "truncated": len(report.problems) < report.counts.total(),
    }  # fmt: skip
    if report.tokens is not None:
        summary["tokens"] = report.tokens
    if report.fixed is not None:
        summary["fixed"] = {
            "out": _shown(report.fixed.out), "rows": report.fixed.kept_rows,
            "rejected": _shown(report.fixed.rejected), "rejected_rows": report.fixed.rejected_rows,
        }  # fmt: skip
    content = {
        "files": len(report.files), "rows": report.rows, "summary": summary,
        "problems": [asdict(problem) for problem in report.problems],
    }  # fmt: skip
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def print_report(report: Report, most: int) -> None:
    """The report for people: problems by kind, errors first; files; tokens; the verdict.

    Args:
        report: What to print.
        most: Problems shown of each kind.
    """
    by_code: dict[tuple[str, Severity], list[Problem]] = {}
    for problem in report.problems:
        by_code.setdefault((problem.code, problem.severity), []).append(problem)
    for (code, severity), problems in sorted(by_code.items(), key=lambda item: item[0][1]):
        _print_kind(code, severity, problems, report.counts[code, severity], most)
    if len(report.files) > 1:
        _print_files(report)
    if report.tokens is not None:
        columns = ["tokens", "texts", "p50", "p90", "p99", "max", "limit", "cut"]
        keys = ["count", "p50", "p90", "p99", "max", "limit", "cut"]
        rows = [[side, *(f"{values[key]:,}" for key in keys)] for side, values in report.tokens.items()]
        console.table("Token lengths", columns, rows, on_stdout=True)
    if report.fixed is not None:
        fixed = report.fixed
        _say(f"wrote {fixed.kept_rows:,} rows to {fixed.out}, {fixed.rejected_rows:,} to {fixed.rejected}")
    _say(verdict(report))


def _print_kind(code: str, severity: Severity, problems: Sequence[Problem], count: int, most: int) -> None:
    from rich.text import Text

    style = "bold red" if severity == "error" else "bold yellow"
    times = f" ({count:,})" if count > 1 else ""
    _print(Text.assemble((severity, style), ": ", (code, "bold"), times))
    hints = list(dict.fromkeys(problem.hint for problem in problems[:most]))
    for problem in problems[:most]:
        named = f"`{problem.field}`: " if problem.field else ""
        _print(Text.assemble("  ", (problem.where, "cyan"), f": {named}{problem.message}"))
        if len(hints) > 1:
            _print(Text.assemble(("      hint: ", "dim"), problem.hint))
    if count > most:
        _print(Text(f"  … and {count - min(most, len(problems)):,} more"))
    if len(hints) == 1 and hints[0]:
        _print(Text.assemble(("  hint: ", "dim"), hints[0]))


def _print_files(report: Report) -> None:
    most = 50
    rows = [
        [file.name, f"{file.rows:,}", file.head.type if file.head else "-", f"{file.counts['error']:,}",
         f"{file.counts['warning']:,}"]
        for file in sorted(report.files, key=lambda file: -file.counts["error"])[:most]
    ]  # fmt: skip
    title = "Files" if len(report.files) <= most else f"Files (the first {most} of {len(report.files)}, worst first)"
    console.table(title, ["file", "rows", "type", "errors", "warnings"], rows, on_stdout=True)


def verdict(report: Report) -> str:
    """One line: what was read and what is wrong with it."""
    errors, warnings = report.total("error"), report.total("warning")

    def count(number: int, name: str) -> str:
        return f"{number:,} {name}{'s' * (number != 1)}"

    read = f"{count(len(report.files), 'file')}, {count(report.rows, 'row')}"
    if not errors and not warnings:
        return f"{read}: no problems"
    parts = [count(number, name) for number, name in ((errors, "error"), (warnings, "warning")) if number]
    return f"{read}: {', '.join(parts)}"


def _say(line: str) -> None:
    from rich.text import Text

    _print(Text(line))


def _print(text: Any) -> None:
    # Places are for copying: a line is never wrapped.
    console.stdout().print(text, soft_wrap=True)
