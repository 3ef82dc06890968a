"""The text of `--help`.

Written here and not by rich, whose import and layout cost three times what the text does; the width of the terminal,
NO_COLOR and pipes are minded all the same.
"""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence

WIDEST = 110
"""Columns; longer lines are hard to read."""
NARROW = 76
"""With fewer columns, a text stands below its term and not beside it."""
NO_BREAK = "\N{NO-BREAK SPACE}"
"""Stands for a space at which no line may end."""

Row = tuple[str, str]
"""A term and its text."""


def page(usage: str, summary: str, sections: Iterable[tuple[str, Sequence[Row]]], epilog: str | None = None) -> str:
    """A page of help.

    Args:
        usage: The command line, without `Usage:`.
        summary: What the command does.
        sections: Titles, each with its rows.
        epilog: A last paragraph.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST)
    parts = [_wrap(f"{_bold('Usage:')} {usage}", width, " " * 7), _wrap(summary, width)]
    shown = [(title, rows) for title, rows in sections if rows]
    column = min(max((len(term) for _, rows in shown for term, _ in rows), default=0), width // 3) + 4
    for title, rows in shown:
        parts.append("\n".join([_bold(title), *(_row(term, text, width, column) for term, text in rows)]))
    if epilog:
        parts.append(_wrap(epilog, width, "  "))
    return "\n\n".join(parts).replace(NO_BREAK, " ")


def _row(term: str, text: str, width: int, column: int) -> str:
    indent = 6 if width < NARROW else column
    body = _wrap(text, width - indent)
    lines = textwrap.indent(body, " " * indent)
    coloured = re.sub(r"(?<![\w-])--?[\w\[][\w\[\]-]*", lambda flag: _paint(flag[0], "36"), f"  {term}")
    if indent == 6 or len(term) + 4 > column:
        return f"{coloured}\n{lines}" if text else coloured
    return coloured + " " * (column - 2 - len(term)) + lines.lstrip()


def _wrap(text: str, width: int, further: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False)


def _bold(text: str) -> str:
    return _paint(text, "1")


def _paint(text: str, code: str) -> str:
    # Colour is taken out again where stdout is no terminal, by Typer's echo.
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
