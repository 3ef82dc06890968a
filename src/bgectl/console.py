"""What the user sees on stderr: messages, tables, progress. stdout is left to data that a pipe can use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


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


_quiet = False


def be_quiet() -> None:
    """Say nothing but errors: of several processes that do the same, one speaks."""
    global _quiet
    _quiet = True


def info(message: str) -> None:
    """One line about what the command does or found."""
    if _quiet:
        return
    stderr().print(message, markup=False)


def warn(message: str) -> None:
    """Something the user should know though the command goes on."""
    if _quiet:
        return
    from rich.text import Text

    stderr().print(Text.assemble(("warning: ", "bold yellow"), message))


def error(message: str, *, hint: str | None = None) -> None:
    """The message of the error that ends the command."""
    from rich.text import Text

    stderr().print(Text.assemble(("error: ", "bold red"), message))
    if hint:
        stderr().print(Text.assemble(("hint: ", "bold cyan"), hint))


def table(title: str, columns: list[str], rows: list[list[str]], *, on_stdout: bool = False) -> None:
    """Show rows under column heads; columns whose every cell is a number are set flush right."""
    if _quiet:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown: Table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # As Text: a file name such as `rows[v2].jsonl` is no markup.
        shown.add_row(*map(Text, row))
    (stdout() if on_stdout else stderr()).print(shown)


def _is_number(cell: str) -> bool:
    return not cell or cell in {"-", "–"} or cell.lstrip("+-~").replace(",", "").replace(".", "").rstrip("%").isdigit()


def draws() -> bool:
    """Whether something that moves can be drawn: on a terminal, where this process speaks."""
    return not _quiet and stderr().is_terminal


class Advance(Protocol):
    """Tell the progress display that `amount` more units are done."""

    def __call__(self, amount: int = 1) -> None: ...


@contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A progress bar with rate and remaining time on a terminal; silent elsewhere.

    Args:
        description: What is being done.
        total: How many units there are; None when not known.
        unit: The name of a unit, such as `texts`.
    """
    if _quiet or not stderr().is_terminal:
        yield lambda amount=1: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(description, total=total, rate="")

        def advance(amount: int = 1) -> None:
            bar.advance(task, amount)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.0f}/s" if speed else "")

        yield advance
