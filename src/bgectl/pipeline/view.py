"""What is seen of a running pipeline: a table that lives on a terminal, a line for each thing elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bgectl import console
from bgectl.meter import duration
from bgectl.pipeline.plan import Stage

if TYPE_CHECKING:
    from rich.table import Table

MARKS = {"waiting": "·", "running": "▶", "done": "✔", "unchanged": "✔", "left out": "–", "failed": "✘", "stopped": "■"}
STYLES = {"running": "bold", "done": "green", "unchanged": "dim", "left out": "dim", "failed": "bold red"}


GAPS = 10
"""Columns between the columns of the table."""
LEAST_NOTE = 10
"""Columns that a note needs to say something."""


@dataclass
class Line:
    """One stage as it stands.

    Attributes:
        name: Its name.
        status: A key of MARKS.
        note: What it is doing, or why it runs.
        started: When it began (`time.monotonic`).
        seconds: How long it took.
    """

    name: str
    status: str = "waiting"
    note: str = ""
    started: float = 0.0
    seconds: float | None = None

    @property
    def time(self) -> str:
        """How long it took, or has been at work."""
        if self.status == "running":
            return duration(time.monotonic() - self.started)
        return "" if self.seconds is None else duration(self.seconds)


class View:
    """The stages on the terminal.

    Args:
        stages: In their order.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.lines = {stage.command: Line(stage.name) for stage in stages}
        self._live: Any = None
        self._due = 0.0

    @contextmanager
    def shown(self) -> Iterator[View]:
        """Draw the table while the pipeline runs, where there is a terminal."""
        if console.quiet() or not console.live():
            yield self
            return
        from rich.live import Live

        with Live(get_renderable=self._table, console=console.stderr(), refresh_per_second=4) as self._live:
            yield self
        self._live = None

    def _table(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        lines = list(self.lines.values())
        rows = [(MARKS[line.status], line.name, line.status, line.time, line.note) for line in lines]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
        heads = ("", "stage", "", "time")
        widths = [max(len(head), *(len(row[place]) for row in rows)) for place, head in enumerate(heads)]
        for head, width in zip(heads, widths, strict=True):
            table.add_column(head, justify="right" if head == "time" else "left", no_wrap=True, width=width)
        # The note has what is left, so that nothing else is cut for it.
        left = console.stderr().width - sum(widths) - GAPS
        if left >= LEAST_NOTE:
            table.add_column("", no_wrap=True, overflow="ellipsis", max_width=left)
        for line, row in zip(lines, rows, strict=True):
            cells = row if left >= LEAST_NOTE else row[:-1]
            table.add_row(*(Text(cell, style=STYLES.get(line.status, "")) for cell in cells))
        return table

    def set(self, stage: Stage, status: str, note: str = "", seconds: float | None = None) -> None:
        """A stage has come to another point."""
        line = self.lines[stage.command]
        if status == "running":
            line.started = time.monotonic()
            self._due = line.started + console.SECONDS_TO_FIRST_LINE
        line.status, line.note, line.seconds = status, note, seconds
        if self._live is not None:
            self._live.refresh()
            return
        if status != "waiting":
            took = f" in {duration(seconds)}" if seconds is not None and status == "done" else ""
            console.info(f"{line.name}: {status}{took}" + (f" ({note})" if note else ""))

    def heard(self, stage: Stage, said: dict[str, Any]) -> None:
        """A stage says something."""
        level, message = said.get("level"), str(said.get("message", ""))
        line = self.lines[stage.command]
        if console.as_json():
            rest = {name: value for name, value in said.items() if name not in ("time", "level")}
            console.record(str(level), stage=line.name, **rest)
            return
        if level == "progress":
            line.note = of_progress(said)
            if self._live is None and ("loss" in said or time.monotonic() >= self._due):
                console.info(f"{line.name}: {line.note}")
                self._due = time.monotonic() + console.SECONDS_TO_NEXT_LINE
        elif level == "warning":
            console.warn(f"{line.name}: {message}")
        elif isinstance(table := said.get("table"), dict) and self._live is None:
            console.table(f"{line.name}: {table['title']}", table["columns"], table["rows"])
        elif level == "info" and message:
            if measures := said.get("measures"):
                message += ": " + "  ".join(f"{name} {value:.4f}" for name, value in measures.items())
            if self._live is None:
                console.info(f"{line.name}: {message}")
            else:
                line.note = message.splitlines()[0]


def of_progress(said: dict[str, Any]) -> str:
    """`Encoding 1,200/5,000 texts, 400/s, 0:09 left`."""
    total = said.get("total")
    done = f"{said.get('done', 0):,}" + (f"/{total:,}" if total else "")
    parts = [f"{said.get('task', '')} {done} {said.get('unit', '')}".strip()]
    if isinstance(loss := said.get("loss"), float):
        parts.append(f"loss {loss:.4f}")
    if rate := said.get("rate"):
        parts.append(f"{rate:,.1f}/s" if rate < 10 else f"{rate:,.0f}/s")
    if (left := said.get("remaining")) is not None:
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)
