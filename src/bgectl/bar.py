"""Progress bars on a terminal: one line each, fitted to its width."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment

from bgectl import console
from bgectl.meter import Meter, duration

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

BAR = range(10, 31)
"""Columns of a bar: at least, and at most."""
SECONDS_TO_SHOW = 0.4
"""What takes less flickers by unseen."""
GAP = 2
"""Columns between two parts of a line."""


class Line:
    """What is said of one stage.

    Args:
        description: What is being done.
        unit: The name of a unit.
        meter: How far it is.

    Attributes:
        note: More about it, shown where there is room.
    """

    def __init__(self, description: str, unit: str, meter: Meter) -> None:
        self.description = description
        self.unit = unit
        self.meter = meter
        self.note = ""

    def fitted(self, width: int) -> tuple[list[str], int]:
        """What stands after the description, in the most words that fit, and the columns left for a bar; 0 for none."""
        meter = self.meter
        count = f"{meter.done:,}" + (f"/{meter.total:,}" if meter.total else "")
        left = "" if meter.remaining is None else f"{duration(meter.remaining)} left"
        if not self.unit:
            # Nothing is counted.
            return [duration(meter.seconds)], max(0, min(width - cell_len(self.description) - 14, BAR[-1]))
        counted, rate = f"{count} {self.unit}", meter.rate_text if meter.done else ""
        share = f"{meter.done / meter.total:.0%}" if meter.total else count
        with_bar = [
            [counted, rate, duration(meter.seconds), left, self.note], [counted, rate, left, self.note],
            [counted, rate, left], [count, rate, left], [count, left],
        ]  # fmt: skip
        alone = [[count, rate, left], [count, left], [share, left], [share]]
        said: list[str] = []
        for form, bar in [*((form, BAR[0] + GAP) for form in with_bar), *((form, 0) for form in alone)]:
            said = [part for part in form if part]
            room = width - cell_len(self.description) - sum(cell_len(part) + GAP for part in said)
            if room >= bar:
                return said, max(min(room - GAP, BAR[-1]), 0) if bar else 0
        return said, 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The last column stays free: what is written there makes some terminals start a new line.
        width = options.max_width - 1
        after, columns = self.fitted(width)
        words = "".join(" " * GAP + part for part in after)
        if not columns:
            line = self.description + words
            yield Segment(set_cell_size(line, width).rstrip() if cell_len(line) > width else line)
            return
        yield Segment(self.description + " " * GAP)
        total = None if self.meter.total is None else max(self.meter.total, 1)
        bar = ProgressBar(total, self.meter.done if self.meter.total != 0 else 1, width=columns)
        yield from console.render(bar, options.update(max_width=width))
        yield Segment(words)


class _Lines:
    """All lines there are, one below the other."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = [line for line in self.lines if line.meter.seconds >= SECONDS_TO_SHOW]
        for index, line in enumerate(shown):
            if index:
                yield Segment.line()
            yield from console.render(line, options)


_lines = _Lines()
_live: Any = None
_changing = threading.RLock()


@contextmanager
def shown(description: str, unit: str, meter: Meter) -> Iterator[Line]:
    """Show a line as long as the context lasts; it leaves nothing behind."""
    line = open_line(description, unit, meter)
    try:
        yield line
    finally:
        close_line(line)


def open_line(description: str, unit: str, meter: Meter) -> Line:
    """Show a line; the caller closes it."""
    global _live
    line = Line(description, unit, meter)
    with _changing:
        _lines.lines.append(line)
        if _live is None:
            # stdout is data, and must not be drawn on stderr.
            _live = Live(_lines, console=console.stderr(), transient=True, redirect_stdout=False)
            _live.start(refresh=True)
        else:
            _live.refresh()
    return line


def close_line(line: Line) -> None:
    """Take a line off the terminal; a second time does nothing."""
    global _live
    with _changing:
        if line not in _lines.lines:
            return
        _lines.lines.remove(line)
        if _lines.lines:
            _live.refresh()
        else:
            live, _live = _live, None
            live.stop()


def close_all() -> None:
    """Take all lines off the terminal, also those whose context was left by an error that is still being handled."""
    for line in list(_lines.lines):
        close_line(line)
