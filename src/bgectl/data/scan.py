"""One pass over a piece of a training file: its problems, and what is needed to compare its rows with others.

Memory: 16 bytes a row (a 64-bit hash of its texts and its line number) and the problems found.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, cast

import orjson

from bgectl import jsonl
from bgectl.data.check import (
    ARRAY_HINT,
    KNOWN_KEYS,
    Placed,
    Problem,
    column_of,
    examine_line,
    texts_if_clean,
    too_few_negatives,
)
from bgectl.data.pieces import LONGEST_LINE, Piece, open_piece, skip_line
from bgectl.data.rows import Flaw, Severity
from bgectl.errors import DataError

MOST_PROBLEMS = 100_000
"""Problems kept with all their words; further ones are counted."""

DUPLICATE_KEY_LINES = 2_000
"""Lines of a file that are searched for repeated keys, which the parser hides: they come from the program that wrote
the file, and so from its first rows on. Lines with another flaw are searched always."""

HEAD_BYTES = 1 << 16
PROGRESS_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Checks:
    """What to check for; the fields are those of `ValidateOptions`."""

    group_size: int = 8
    batch_size: int = 8
    icl: bool = False
    distill: bool = False
    strict: bool = False

    def severity(self, flaw: Flaw) -> Severity:
        """The flaw's severity; under --strict everything is an error."""
        return "error" if self.strict else flaw.severity


@dataclass(frozen=True, slots=True)
class Head:
    """What the first good row of a file says about all of them."""

    line: int
    type: str
    batch_size: int | None
    train_group_size: int | None
    negatives: int

    @classmethod
    def of(cls, raw: dict[str, Any], line: int) -> Head:
        """The head that a row makes."""
        kind = raw.get("type") or "normal"
        return cls(line, kind, raw.get("batch_size"), raw.get("train_group_size"), len(raw.get("neg") or ()))

    def negatives_needed(self, group_size: int) -> int:
        """Negatives of a group (SPEC §2)."""
        if self.train_group_size is not None:
            return self.train_group_size - 1
        if self.type == "only_1neg":
            return 1
        return min(self.negatives, group_size - 1) if self.type == "symmetric_class" else group_size - 1

    def batch(self, batch_size: int) -> int:
        """Rows of a batch (SPEC §2)."""
        if self.batch_size is not None:
            return self.batch_size
        return max(1, batch_size // 2) if "symmetric" in self.type else batch_size


@dataclass(slots=True)
class Differing:
    """Rows that differ from the file's first row in what holds for a whole file."""

    rows: int
    line: int
    column: int
    value: object


@dataclass(slots=True)
class Found:
    """What a piece holds. Lines are counted from the piece's first line.

    Attributes:
        lines: All lines.
        rows: Lines that are not blank.
        whole: The file is not one of rows at all, and was not read further.
        problems: At most MOST_PROBLEMS.
        counts: All problems by code and severity.
        hashes: Of the texts of each row without errors.
        row_lines: The lines of these rows.
        head: The first good row's.
        differing: By `type:VALUE` or by column.
        bytes: Bytes read, uncompressed.
    """

    lines: int = 0
    rows: int = 0
    whole: bool = False
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[tuple[str, Severity]] = field(default_factory=Counter)
    hashes: array[int] = field(default_factory=lambda: array("q"))
    row_lines: array[int] = field(default_factory=lambda: array("q"))
    head: Head | None = None
    differing: dict[str, Differing] = field(default_factory=dict)
    bytes: int = 0


Taker = Callable[[dict[str, Any]], object]
Advance = Callable[[int], object]


class Scan:
    """The pass over one piece.

    Args:
        piece: The piece.
        checks: What to check for.
        head: The file's head, where the piece is not its first.
        advance: Told of the bytes read, now and then.
        take: Is handed each row without errors.
    """

    def __init__(
        self, piece: Piece, checks: Checks, head: Head | None = None, *, advance: Advance | None = None,
        take: Taker | None = None,
    ) -> None:  # fmt: skip
        self.piece = piece
        self.checks = checks
        self.found = Found(head=head)
        self.file = str(piece.path).encode("utf-8", "replace").decode()
        self.negatives = head.negatives_needed(checks.group_size) if head else checks.group_size - 1
        self.advance = advance
        self.take = take

    def run(self) -> Found:
        """Read the piece; whatever is wrong with it is among the problems."""
        try:
            with open_piece(self.piece) as (stream, offset):
                flaw = whole_file_flaw(peek(stream)) if offset == 0 else None
                if flaw is not None:
                    self.found.whole = True
                    self._add(flaw, 1, 1)
                else:
                    self._read(stream, offset)
        except DataError as problem:
            code = "damaged" if problem.message.startswith("damaged") else "unreadable"
            lines = self.found.lines
            message = problem.message + (f"; read up to line {lines}" if lines else "")
            self._add(Flaw("", code, message, "copy or make the file again"), lines or None, None)
        return self.found

    def _read(self, stream: IO[bytes], offset: int) -> None:
        """The loop over all lines: what a clean row costs is paid here."""
        found, checks, take = self.found, self.checks, self.take
        end = sys.maxsize if self.piece.end is None else self.piece.end
        start, report_at = offset, offset + PROGRESS_BYTES
        readline = partial(stream.readline, LONGEST_LINE)
        loads, icl, distill = orjson.loads, checks.icl, checks.distill
        add_hash, add_line = found.hashes.append, found.row_lines.append
        search_keys = DUPLICATE_KEY_LINES if self.piece.start == 0 else 0
        negatives = self.negatives
        number = rows = 0
        plain_head = False
        try:
            while offset < end and (line := readline()):
                offset += len(line)
                number += 1
                if offset >= report_at and self.advance:
                    self.advance(offset - report_at + PROGRESS_BYTES)
                    report_at = offset + PROGRESS_BYTES
                try:
                    raw = loads(line)
                    texts = texts_if_clean(raw, icl, distill, negatives) if type(raw) is dict else None
                except orjson.JSONDecodeError:
                    raw = texts = None
                if texts and (
                    (number <= search_keys and line.count(b'":') != len(raw)) or (not plain_head and found.head is None)
                ):
                    # To be looked at closely: a key may stand twice, or this is the row that others are held against.
                    texts = None
                if texts is None:
                    found.lines = number
                    if len(line) >= LONGEST_LINE and not line.endswith(b"\n"):
                        offset += self._skip_long_line(stream, number)
                        rows += 1
                        continue
                    if not line.strip():
                        continue
                    if offset == len(line) and line.strip() == jsonl.UTF8_BOM:
                        self._bad_line(line, number)
                        continue
                    rows += 1
                    if not self._only_lacks_negatives(raw, line, number):
                        bad = self._bad_line(line, number)
                        negatives = self.negatives
                        if bad:
                            continue
                        raw = loads(line.removeprefix(jsonl.UTF8_BOM))
                    elif checks.strict:
                        continue
                    texts = [raw["query"], *raw["pos"], *(raw.get("neg") or ())]
                else:
                    rows += 1
                if len(raw) > 3 or not plain_head:
                    plain_head = self._note(raw, number, line)
                    negatives = self.negatives
                add_hash(hash((len(raw["pos"]), *texts)))
                add_line(number)
                if take is not None:
                    take(raw)
        finally:
            # Also when damaged data ends the reading.
            found.lines, found.rows, found.bytes = number, rows, offset - start
        if self.advance:
            self.advance(max(0, offset - report_at + PROGRESS_BYTES))

    def _only_lacks_negatives(self, raw: Any, line: bytes, number: int) -> bool:
        """Note a row that is good but for few negatives, as all are before mining, without the long examination."""
        if type(raw) is not dict or self.found.head is None or not KNOWN_KEYS.issuperset(raw):
            return False
        whole = raw if raw.get("neg") is not None else {**raw, "neg": []}
        if texts_if_clean(whole, self.checks.icl, self.checks.distill, 0) is None or line.count(b'":') != len(raw):
            return False
        if len(whole["neg"]) < self.negatives:
            field = "neg" if "neg" in raw else ""
            known = len(self.found.problems) < MOST_PROBLEMS
            column = column_of(line.decode("utf-8"), field) if known else None
            self._add(too_few_negatives(field, len(whole["neg"]), self.negatives), number, column)
            return True
        return False

    def _bad_line(self, line: bytes, number: int) -> bool:
        """Note a line's problems; whether there is an error among them."""
        if self.found.head is None:
            self._find_head(line, number)
        placed = problems_of(line, number, self.piece, self.checks, self.negatives)
        for item in placed:
            self._add(item.flaw, number, item.column)
        return any(self.checks.severity(item.flaw) == "error" for item in placed)

    def _find_head(self, line: bytes, number: int) -> None:
        """Take the head from a line that has warnings at most: how many negatives it needs is known after this only."""
        placed = problems_of(line, number, self.piece, self.checks, 0)
        bare = line.removeprefix(jsonl.UTF8_BOM)
        if bare.strip() and not any(item.flaw.severity == "error" for item in placed):
            self._set_head(Head.of(orjson.loads(bare), number))

    def _set_head(self, head: Head) -> None:
        self.found.head = head
        self.negatives = head.negatives_needed(self.checks.group_size)

    def _note(self, raw: dict[str, Any], number: int, line: bytes) -> bool:
        """Compare a good row with the file's head; whether rows of texts alone need no such comparison."""
        head = self.found.head
        if head is None:
            head = Head.of(raw, number)
            self._set_head(head)
        kind = raw.get("type") or "normal"
        if kind != head.type:
            self._differs(f"type:{kind}", "type", kind, number, line)
        for name, value in (("batch_size", head.batch_size), ("train_group_size", head.train_group_size)):
            if raw.get(name) != value:
                self._differs(name, name, raw.get(name), number, line)
        return head.type == "normal" and head.batch_size is None and head.train_group_size is None

    def _differs(self, key: str, name: str, value: object, number: int, line: bytes) -> None:
        if key in self.found.differing:
            self.found.differing[key].rows += 1
        else:
            column = column_of(line.decode("utf-8").replace("\ufeff", " ", 1), name)
            self.found.differing[key] = Differing(1, number, column, value)

    def _skip_long_line(self, stream: IO[bytes], number: int) -> int:
        message = f"the line is longer than {LONGEST_LINE >> 20} MiB"
        self._add(Flaw("", "line-too-long", message, "each row ends with a line end"), number, 1)
        return skip_line(stream)

    def _add(self, flaw: Flaw, line: int | None, column: int | None) -> None:
        severity = self.checks.severity(flaw)
        self.found.counts[flaw.code, severity] += 1
        if len(self.found.problems) < MOST_PROBLEMS:
            self.found.problems.append(
                Problem(self.file, line, column, flaw.field or None, flaw.code, severity, flaw.message, flaw.hint)
            )


def scan_piece(piece: Piece, *, checks: Checks, heads: dict[int, Head | None]) -> Found:
    """`Scan` for another process.

    Args:
        piece: The piece.
        checks: What to check for.
        heads: The heads of the files that were cut.
    """
    return Scan(piece, checks, heads.get(piece.file)).run()


def problems_of(line: bytes, number: int, piece: Piece, checks: Checks, negatives: int) -> list[Placed]:
    """What is wrong with a line of a piece."""
    return examine_line(
        line, first=number == 1 and piece.start == 0, cut_off=not line.endswith(b"\n"), icl=checks.icl,
        distill=checks.distill, negatives=negatives,
    )  # fmt: skip


def first_head(piece: Piece, checks: Checks) -> Head | None:
    """The head of a file, found without reading further."""
    scan = Scan(piece, checks)
    with open_piece(piece) as (stream, _):
        if whole_file_flaw(peek(stream)) is not None:
            return None
        for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE), b""), 1):
            if line.strip():
                scan._find_head(line, number)
            if scan.found.head is not None:
                return scan.found.head
    return None


def peek(stream: IO[bytes]) -> bytes:
    """The first bytes of a stream, which stay to be read."""
    return bytes(cast(Any, stream).peek(HEAD_BYTES)[:HEAD_BYTES])


FOREIGN = (
    (b"\x1f\x8b", "is compressed with gzip", "name it with the ending .gz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstandard", "name it with the ending .zst"),
    (b"PK\x03\x04", "is a zip archive", "unpack it"),
    (b"BZh", "is compressed with bzip2", "unpack it"),
    (b"\xfd7zXZ\x00", "is compressed with xz", "unpack it"),
    (b"PAR1", "is a Parquet file", "`bgectl data convert FILE OUT.jsonl` converts it"),
    (b"ARROW1", "is an Arrow file", "`bgectl data convert FOLDER OUT.jsonl --from datasets` converts it"),
    (b"\xff\xfe", "is UTF-16, not UTF-8", "convert it: `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "is UTF-16, not UTF-8", "convert it: `iconv -f UTF-16 -t UTF-8`"),
    (b"{\0", "is UTF-16, not UTF-8", "convert it: `iconv -f UTF-16LE -t UTF-8`"),
    (b"\0{", "is UTF-16, not UTF-8", "convert it: `iconv -f UTF-16BE -t UTF-8`"),
)
"""First bytes of what is often given in place of JSON lines."""


def whole_file_flaw(head: bytes) -> Flaw | None:
    """The one flaw of a file that holds no lines of JSON, to be told once and not at every line.

    Args:
        head: The first bytes.
    """
    for mark, what, hint in FOREIGN:
        if head.startswith(mark):
            return Flaw("", "wrong-encoding" if "UTF" in what else "wrong-format", f"the file {what}", hint)
    lines = [line.strip() for line in head.removeprefix(jsonl.UTF8_BOM).split(b"\n") if line.strip()]
    first, second = (*lines, b"", b"")[:2]
    if first == b"[" or (first[:1] == b"[" and first[1:].lstrip()[:1] == b"{" and not _parses(first, second)):
        return Flaw("", "json-array", "the file is one JSON array, not an object a line", ARRAY_HINT)
    if first == b"{" and second.startswith(b'"'):
        hint = "write a row a line: `jq -c . FILE > FILE.jsonl`"
        return Flaw("", "object-over-lines", "an object is spread over several lines", hint)
    return None


def _parses(*lines: bytes) -> bool:
    """Whether one of the lines is JSON."""
    for line in lines:
        try:
            orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        return True
    return False
