"""What the user sees on stderr: messages, tables, progress. stdout is left to data that a pipe can use.

How it is said is set by two environment variables, which processes that this one starts inherit: BGECTL_LOG_FORMAT,
`text` or `json`, and BGECTL_VERBOSITY, `quiet`, `normal` or `verbose`. The flags `--log-format`, `--quiet` and
`--verbose` set them. docs/terminal.md has the form of the JSON lines.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

from bgectl.meter import Meter, duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Thing = TypeVar("Thing")

LOG_FORMAT, VERBOSITY = "BGECTL_LOG_FORMAT", "BGECTL_VERBOSITY"
FORMATS = ("text", "json")
VERBOSITIES = ("quiet", "normal", "verbose")

SECONDS_TO_FIRST_LINE, SECONDS_TO_NEXT_LINE = 30.0, 60.0
"""When a long stage says how far it is, where there is no terminal to draw a bar on."""
SECONDS_TO_NEXT_RECORD = 1.0
"""The same where messages are JSON."""

LEAST_NAME, COLUMN_GAP = 16, 3
"""Columns of the terminal that a table's first column gets at least, and those between two."""


def as_json() -> bool:
    """Whether messages are JSON, one object a line."""
    return os.environ.get(LOG_FORMAT) == "json"


def quiet() -> bool:
    """Whether only warnings and errors are shown."""
    return os.environ.get(VERBOSITY) == "quiet"


def verbose() -> bool:
    """Whether details are shown, and what the libraries say themselves."""
    return os.environ.get(VERBOSITY) == "verbose"


@cache
def stderr() -> Console:
    """The one console for messages; rich is imported when something is first shown."""
    return _console(to_stderr=True)


@cache
def stdout() -> Console:
    """A console for results that a person asked to see; plain text when piped."""
    return _console(to_stderr=False)


def _console(*, to_stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    # Not a terminal: nobody's lines wrap there, so cells need no folding.
    width = None if stream.isatty() or "COLUMNS" in os.environ else 160
    return Console(stderr=to_stderr, highlight=False, emoji=False, soft_wrap=to_stderr, width=width)


_one_of_several = False


def be_quiet() -> None:
    """Say nothing but errors: of several processes that do the same, one speaks."""
    global _one_of_several
    _one_of_several = True


def _told() -> bool:
    """Whether what is neither a warning nor an error is shown."""
    return not _one_of_several and not quiet()


def info(message: str, *, measures: Mapping[str, float] | None = None) -> None:
    """One line about what the command does or found.

    Args:
        message: What is said.
        measures: Held-out measures that it tells of, by name; JSON has them as numbers.
    """
    if not _told():
        return
    if as_json():
        record("info", message=message, **({"measures": dict(measures)} if measures is not None else {}))
        return
    if measures is not None:
        message += ": " + "  ".join(f"{name} {value:.4f}" for name, value in measures.items())
    _say(message)


def detail(message: str) -> None:
    """One line that only `--verbose` shows."""
    if verbose():
        info(message)


def warn(message: str) -> None:
    """Something the user should know though the command goes on."""
    if _one_of_several:
        return
    if as_json():
        record("warning", message=message)
        return
    _say(message, ("warning: ", "bold yellow"))


def error(message: str, *, hint: str | None = None) -> None:
    """The message of the error that ends the command."""
    if as_json():
        record("error", message=message, **({"hint": hint} if hint else {}))
        return
    if "bgectl.bar" in sys.modules:
        from bgectl.bar import close_all

        close_all()
    _say(message, ("error: ", "bold red"))
    if hint:
        _say(hint, ("hint: ", "bold cyan"))


def _say(message: str, label: tuple[str, str] = ("", "")) -> None:
    """Show a message, on a terminal in whole words; a path that is longer than the line stays whole, to be copied."""
    import textwrap

    from rich.text import Text

    said = label[0] + message
    if stderr().is_terminal:
        said = "\n".join(
            textwrap.fill(line, stderr().width, break_long_words=False, break_on_hyphens=False)
            for line in said.split("\n")
        )  # fmt: skip
    stderr().print(Text.assemble(label, said[len(label[0]) :]))


def clear_line() -> None:
    """Take the `^C` off the terminal that it writes for the key."""
    if live():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def table(title: str, columns: list[str], rows: list[list[str]], *, on_stdout: bool = False) -> None:
    """Show rows under column heads; columns whose every cell is a number are set flush right.

    Args:
        title: Stands above.
        columns: The heads.
        rows: The cells.
        on_stdout: It is a result, which `--quiet` and JSON messages leave as it is.
    """
    if _one_of_several or (not on_stdout and quiet()):
        return
    if not on_stdout and as_json():
        record("info", table={"title": title, "columns": columns, "rows": rows})
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown: Table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    needed = LEAST_NAME
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        # The first column holds names, which may be long paths; the others' words are not cut for them.
        word = (
            0
            if index == 0
            else max(len(part) for cell in (name, *(row[index] for row in rows)) for part in cell.split() or [""])
        )
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold", min_width=word)
        needed += word + COLUMN_GAP if index else 0
    for row in rows:
        # As Text: a file name such as `rows[v2].jsonl` is no markup.
        shown.add_row(*map(Text, row))
    console = stdout() if on_stdout else stderr()
    if console.is_terminal and needed > console.width:
        _say_rows(console, title, columns, rows)
        return
    console.print(shown)


def _say_rows(console: Console, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on a terminal that is too narrow for it: a few lines for each row."""
    from rich.text import Text

    console.print(Text(title, "bold"), soft_wrap=True)
    for first, *cells in rows:
        console.print(Text(first), soft_wrap=True)
        for name, cell in zip(columns[1:], cells, strict=True):
            console.print(Text(f"  {name}: {cell}"), soft_wrap=True)


def _is_number(cell: str) -> bool:
    return not cell or cell in {"-", "–"} or cell.lstrip("+-~").replace(",", "").replace(".", "").rstrip("%").isdigit()


# -- JSON lines --


def json_line(level: str, **fields: object) -> bytes:
    """A message as a line of JSON."""
    import json
    from datetime import datetime, timezone

    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    # Pure ASCII, so that no terminal's encoding can spoil it.
    return json.dumps({"time": now, "level": level, **fields}, default=str).encode() + b"\n"


def record(level: str, **fields: object) -> None:
    """Write a message as a line of JSON, at once and in one piece."""
    stream = sys.stderr.stream if isinstance(sys.stderr, Recorded) else sys.stderr
    with _writing:
        stream.write(json_line(level, **fields).decode())
        stream.flush()


_writing = threading.RLock()


class Recorded(io.TextIOBase):
    """Stands for stderr where messages are JSON: what libraries write there becomes messages too.

    Args:
        stream: The real one.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        """Make a message of each line that is whole."""
        with _writing:
            *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
            for line in lines:
                if line.strip():
                    record("warning", message=line.rstrip())
        return len(text)

    def flush(self) -> None:
        """Nothing is kept but a line that is not whole."""
        self.stream.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self.stream.fileno()


@contextmanager
def streams() -> Iterator[None]:
    """Make stderr ready for what the environment asks for, and stdout for what is written there."""
    if not sys.stdout.isatty():
        # What a pipe or a file gets is data, and that is UTF-8 whatever the locale says.
        _reconfigure(sys.stdout, encoding="utf-8", errors="surrogateescape")
    elif "utf" not in (sys.stdout.encoding or "").lower():
        _reconfigure(sys.stdout, errors="replace")
    before = sys.stderr
    if as_json() and not isinstance(before, Recorded):
        sys.stderr = Recorded(before)
    try:
        yield
    finally:
        sys.stderr = before


def _reconfigure(stream: Any, **how: str) -> None:
    # Where tests or notebooks put something else in its place there is nothing to set.
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(**how)


# -- Progress --


class Advance(Protocol):
    """Tell the progress display that `amount` more units are done."""

    def __call__(self, amount: int = 1) -> None: ...


def live() -> bool:
    """Whether stderr is a terminal on which a line can be drawn again."""
    # FORCE_COLOR makes a console of rich's a terminal, and in the log of a CI run bars would be many lines.
    return not as_json() and sys.stderr.isatty() and stderr().is_interactive


@contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Progress of a stage: a bar on a terminal, elsewhere a line now and then if it takes long, or JSON.

    Args:
        description: What is being done.
        total: How many units there are; None when not known.
        unit: The name of a unit, such as `texts`.
    """
    meter = Meter(total)
    if not _told():
        yield meter.add
        return
    if as_json():
        yield from _records(meter, description, unit)
    elif live():
        from bgectl.bar import shown

        with shown(description, unit, meter):
            yield meter.add
    else:
        yield from _lines(meter, description, unit)
    amount = f"{meter.done:,} {unit} in " if unit else ""
    detail(f"{description}: {amount}{duration(meter.seconds)}{_speed(meter)}")


def _records(meter: Meter, description: str, unit: str) -> Iterator[Advance]:
    def tell() -> None:
        record("progress", **progress_fields(meter, description, unit))

    try:
        yield _told_of(meter, tell, SECONDS_TO_NEXT_RECORD, SECONDS_TO_NEXT_RECORD)
    finally:
        tell()


def _lines(meter: Meter, description: str, unit: str) -> Iterator[Advance]:
    def tell() -> None:
        of = f" of {meter.total:,}" if meter.total else ""
        share = f" ({meter.done / meter.total:.0%})" if meter.total else ""
        left = "" if meter.remaining is None else f", {duration(meter.remaining)} left"
        info(f"{description}: {meter.done:,}{of} {unit}{share}{_speed(meter)}{left}")

    yield _told_of(meter, tell, SECONDS_TO_FIRST_LINE, SECONDS_TO_NEXT_LINE)


def _told_of(meter: Meter, tell: Callable[[], None], first: float, next_: float) -> Advance:
    """An `Advance` that also calls `tell` after `first` seconds, and then not before `next_` more."""
    due = time.monotonic() + first
    lock = threading.Lock()

    def advance(amount: int = 1) -> None:
        nonlocal due
        meter.add(amount)
        with lock:
            now = time.monotonic()
            if now < due:
                return
            due = now + next_
        tell()

    return advance


@contextmanager
def working(description: str) -> Iterator[None]:
    """Show that something goes on that cannot tell how far it is: a model is loaded, an index trained.

    Args:
        description: What is being done.
    """
    if not _told() or live():
        with progress(description, None, "") as _:
            yield
        return
    over = threading.Event()

    def tell() -> None:
        meter = Meter(None)
        wait = SECONDS_TO_FIRST_LINE
        while not over.wait(wait):
            wait = SECONDS_TO_NEXT_LINE
            if as_json():
                record("progress", **progress_fields(meter, description, ""))
            else:
                info(f"{description}: {duration(meter.seconds)} so far")

    threading.Thread(target=tell, name="working", daemon=True).start()
    try:
        with stage(description):
            yield
    finally:
        over.set()


def counted(things: Iterable[Thing], description: str, unit: str, total: int | None = None) -> Iterator[Thing]:
    """The things, with a display of how many there were; see `progress`."""
    with progress(description, total, unit) as advance:
        for thing in things:
            yield thing
            advance()


def progress_fields(meter: Meter, task: str, unit: str) -> dict[str, object]:
    """What JSON says of a stage's progress."""
    remaining = None if meter.remaining is None else round(meter.remaining, 1)
    return {
        "task": task, "done": meter.done, "total": meter.total, "unit": unit, "rate": round(meter.rate, 3),
        "remaining": remaining,
    }  # fmt: skip


def training_step(meter: Meter, text: str, numbers: Mapping[str, float]) -> None:
    """An entry of the training log, where no bar shows it.

    Args:
        meter: Counts steps.
        text: What a person reads.
        numbers: What JSON has beside the progress: loss, learning_rate, examples_per_second.
    """
    if not _told():
        return
    if as_json():
        record("progress", **progress_fields(meter, "train", "steps"), **numbers)
    else:
        info(text)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Let `--verbose` tell how long something took."""
    started = time.monotonic()
    yield
    detail(f"{name}: {duration(time.monotonic() - started)}")


def _speed(meter: Meter) -> str:
    return f", {meter.rate_text}" if meter.done else ""


def choose(words: Sequence[str]) -> None:
    """Take `--log-format` from words that have not been parsed, so that what is wrong with them is told in its form."""
    words = words[: words.index("--")] if "--" in words else words
    for index, word in enumerate(words):
        head, equals, value = word.partition("=")
        if head.replace("_", "-") == "--log-format":
            value = value if equals else next(iter(words[index + 1 :]), "")
            if value in FORMATS:
                os.environ[LOG_FORMAT] = value
