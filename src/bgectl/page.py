"""Report pages in one HTML file: no scripts, nothing loaded from elsewhere, and all text of the data escaped.

Pictures are SVG inside the page. Their colours are CSS variables, so that they follow the light or dark look of the
reader, and their text is text, so that a browser shows scripts for which this machine has no font. The same data
gives the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import numbers
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bgectl import jsonl
from bgectl.errors import RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

LONGEST_TEXT = 600
"""Characters of a text that are shown at once."""

LONGEST_NAME = 32
"""Columns, as in a terminal, of a name beside a bar."""

LONGEST_LABEL = 56
"""Columns of the label under a picture."""

FEWEST_MARKS = 30
"""A line through fewer points than this shows each of them."""

FEWEST_BINS = 8
MOST_BINS = 40

WIDTH = 400.0
"""Width of pictures in SVG units; the text in them is 10 high."""

COLUMN = 6.0
"""Width of a terminal column of text in SVG units, wide enough for the fonts that browsers choose."""

NOTHING = '<p class="muted">nothing to show</p>'

# Name: as seen on a light and on a dark page. Pictures are drawn in the first, which becomes a variable.
COLOURS = {
    "paper": ("#f4f6f8", "#131619"),
    "card": ("#ffffff", "#1d2125"),
    "ink": ("#1c2024", "#e6e9ec"),
    "muted": ("#5c6570", "#a3acb6"),
    "line": ("#d3d9e0", "#3b4249"),
    "group-1": ("#0b69c7", "#6cb2ff"),
    "group-2": ("#c2410c", "#ff9e64"),
    "group-3": ("#0f7b5f", "#5fd3a8"),
    "group-4": ("#8b35b0", "#d69bff"),
    "group-5": ("#806000", "#e3c04d"),
    "group-6": ("#b4236b", "#ff8fc0"),
}
GROUPS = [name for name in COLOURS if name.startswith("group-")]
INK, MUTED, LINE = (COLOURS[name][0] for name in ("ink", "muted", "line"))

DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1.5), (6, 1.5, 1.5, 1.5))
"""Lines of the groups in multiples of their width: they are told apart without colours too."""

STROKE = 1.6

CSS = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1, h2 { line-height: 1.25; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
header { margin: 2.5rem 0 0; }
header h2 { font-size: 1.35rem; margin: 0 0 .25rem; }
p { margin: 0 0 .75rem; overflow-wrap: anywhere; white-space: pre-line; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; margin: 1rem 0;
  padding: 1rem 1.25rem 1.25rem; }
section > :last-child { margin-bottom: 0; }
.muted, .note { color: var(--muted); }
.note { margin: .75rem 0 0; font-size: .925rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  max-width: min(28rem, 50vw); overflow-wrap: break-word; white-space: pre-line; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tr:last-child > * { border-bottom: 0; }
thead th { font-size: .875rem; color: var(--muted); vertical-align: bottom; border-bottom: 2px solid var(--line); }
thead tr:last-child > * { border-bottom: 2px solid var(--line); }
.number { text-align: right; white-space: nowrap; }
.facts th, .facts td { overflow-wrap: anywhere; max-width: none; }
.facts th { font-weight: normal; color: var(--muted); min-width: 7rem; }
figure { margin: 0; overflow-x: auto; }
figure > svg { display: block; width: 100%; min-width: 21rem; max-width: 36rem; height: auto; }
figure > svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure > svg text { font-family: system-ui, sans-serif !important; font-variant-numeric: tabular-nums; }
.legend { list-style: none; margin: 0 0 .5rem; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.5rem;
  font-size: .925rem; }
.legend li { display: flex; align-items: baseline; overflow-wrap: anywhere; }
.legend svg { flex: none; width: 1.75rem; height: .75rem; margin-right: .5rem; }
article { border: 1px solid var(--line); border-radius: .375rem; margin: .75rem 0 0; padding: .75rem 1rem; }
article > .note { margin: 0 0 .5rem; }
dl, dd { margin: 0; }
dl > div { display: grid; grid-template-columns: 8rem minmax(0, 1fr); gap: 0 1rem; padding: .4rem 0 .4rem .75rem;
  border-left: 3px solid var(--line); }
dl > div + div { margin-top: .5rem; }
dl > .query { border-left-color: var(--ink); font-weight: 600; }
dl > .positive { border-left-color: var(--group-1); }
dl > .negative { border-left-color: var(--group-2); }
dt { font-size: .875rem; font-weight: normal; color: var(--muted); overflow-wrap: anywhere; }
.positive dt b { color: var(--group-1); }
.negative dt b { color: var(--group-2); }
.score { display: block; font-variant-numeric: tabular-nums; color: var(--ink); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; }
summary { cursor: pointer; color: var(--muted); font-size: .875rem; font-weight: normal; }
@media (max-width: 36rem) {
  main { padding: 1rem .5rem 2rem; }
  section { padding: .75rem; }
  dl > div { grid-template-columns: minmax(0, 1fr); }
  .score { display: inline; margin-left: .5rem; }
}
@media print {
  body { background: none; font-size: 10pt; }
  main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; margin: 1.5rem 0; }
  h2 { break-after: avoid; }
  article, figure, tr { break-inside: avoid; }
  .scroll, figure { overflow: visible; }
  figure > svg { max-width: 13cm; }
  th, td { overflow-wrap: anywhere; }
}
"""

# What HTML cannot hold: halves of surrogate pairs, noncharacters, and controls other than white space. U+0085 stays,
# as the other line separators do.
_UNFIT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_SEPARATOR = re.compile("[\x85\u2028\u2029]")
_NUMBER = re.compile(r"[-+~−]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?\s?%?|nan|[-+]?inf", re.IGNORECASE)
_NO_VALUE = frozenset({"", "-", "–"})


def cleaned(text: str) -> str:
    """The text with a replacement character in place of each character that no page can hold."""
    return _UNFIT.sub("\ufffd", text)


def escaped(text: str) -> str:
    """The text as HTML that shows it."""
    return html.escape(cleaned(text))


def lined(text: str) -> str:
    """The text as HTML that breaks its lines also where Unicode does and browsers do not."""
    return _SEPARATOR.sub(r"\g<0><br>", escaped(text))


def shown(value: object) -> str:
    """A value for people: four digits of a fraction, thousands set apart, – for None."""
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        number = float(value)
        return f"{number:,.0f}" if 1000 <= abs(number) < 1e15 else f"{number:.4g}"
    return str(value)


def cut_text(text: str) -> tuple[str, str]:
    """What is shown of a text at once, and the rest; cut after white space where there is some near the end."""
    if len(text) <= LONGEST_TEXT:
        return text, ""
    place = LONGEST_TEXT
    for back in range(LONGEST_TEXT, LONGEST_TEXT - 60, -1):
        if text[back - 1].isspace():
            place = back
            break
    # An accent stays with its letter.
    while place < len(text) and unicodedata.category(text[place]).startswith("M"):
        place += 1
    return text[:place], text[place:]


def bin_edges(values: FloatArray) -> FloatArray:
    """Edges of equal bins for finite values, at least one of them.

    Whole numbers get bins of a whole width, with the edges half-way between two: each bin holds equally many of them.
    """
    low, high = float(values.min()), float(values.max())
    most = min(MOST_BINS, max(FEWEST_BINS, math.ceil(2 * len(values) ** (1 / 3))))
    if max(-low, high) < 2**51 and np.array_equal(values, np.rint(values)):
        span = high - low + 1
        step = 1 if span <= MOST_BINS else math.ceil(span / most)
        edges: FloatArray = low - 0.5 + step * np.arange(math.ceil(span / step) + 1, dtype=np.float64)
        return edges
    if low == high:
        low, high = low - abs(low) / 2, high + abs(high) / 2
    return np.linspace(low, high, most + 1)


def shares(values: FloatArray, edges: FloatArray) -> FloatArray:
    """Percent of the values in each bin; a bin has its lower edge, and the last one its upper edge too."""
    counts, _ = np.histogram(values, edges)
    return 100.0 * counts / len(values)


def shortened(text: str, columns: int) -> str:
    """The text on one line of so many columns, with an ellipsis in its middle where it is longer."""
    text = " ".join(cleaned(text).split())
    if sum(map(_columns, text)) <= columns:
        return text
    ends = []
    # The end of a path says more than its middle.
    for side, room in ((text, columns // 2), (text[::-1], columns - columns // 2 - 1)):
        count = 0
        while count < len(side) and (room := room - _columns(side[count])) >= 0:
            count += 1
        ends.append(count)
    return text[: ends[0]] + "…" + text[len(text) - ends[1] :]


def _columns(character: str) -> int:
    """Columns that a character takes in a terminal."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


@dataclass(frozen=True)
class Passage:
    """A text of a case.

    Attributes:
        role: What it is to the query: "positive", "negative" and the like.
        text: The text.
        score: What a model gives it.
    """

    role: str
    text: str
    score: float | None = None


@dataclass(frozen=True)
class Case:
    """A query with texts to read.

    Attributes:
        query: The query.
        passages: The texts, in the order in which they are shown.
        note: Where it stands and why it is shown.
    """

    query: str
    passages: Sequence[Passage]
    note: str = ""


class Page:
    """A page, built from top to bottom.

    Args:
        title: Its name.
        lead: What is to be known before reading on.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self._title = title
        self._lead = lead
        self._sections: list[str] = []
        self._parts = 1

    def facts(self, title: str, facts: Mapping[str, object]) -> None:
        """Names and values in two columns."""
        rows = "".join(
            f'<tr><th scope="row">{escaped(name)}</th><td dir="auto">{escaped(shown(value))}</td></tr>\n'
            for name, value in facts.items()
        )
        self._add(title, f'<table class="facts">\n{rows}</table>' if rows else NOTHING)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
        """Rows under column heads; columns whose every cell is a number are set flush right.

        Raises:
            ValueError: A row has more cells than there are columns, or fewer.
        """
        self._add(title, _table(columns, rows) if rows else NOTHING, note)

    def histogram(self, title: str, groups: Mapping[str, npt.ArrayLike], label: str, note: str = "") -> None:
        """How the values of each group are spread, in percent of the group, over bins that all groups share.

        Args:
            title: Heading of the section.
            groups: The values of each group. What is not finite is left out, and the legend says how many were;
                groups without another value are left out.
            label: What the values are.
            note: A remark under the picture.
        """
        given = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in groups.items()}
        finite = {name: values[np.isfinite(values)] for name, values in given.items()}
        finite = {name: values for name, values in finite.items() if len(values)}
        if not finite:
            self._add(title, NOTHING, note)
            return
        entries = []
        for index, (name, values) in enumerate(finite.items()):
            many = f"{len(values):,} value{'s' * (len(values) != 1)}"
            if dropped := len(given[name]) - len(values):
                many += f", {dropped:,} not finite and left out"
            entries.append(f'<li>{_swatch(index)}<span>{escaped(name)} <span class="muted">({many})</span></span></li>')
        legend = f'<ul class="legend">{"".join(entries)}</ul>'
        description = "; ".join(
            f"{name}, {len(values):,} from {shown(values.min())} to {shown(values.max())}, "
            f"median {shown(float(np.median(values)))}"
            for name, values in finite.items()
        )
        with _drawing():
            picture = self._picture(_draw_histogram(finite, label), f"Histogram of {label}: {description}", legend)
        self._add(title, picture, note)

    def lines(
        self, title: str, groups: Mapping[str, Sequence[tuple[float, float]]], across: str, label: str, note: str = ""
    ) -> None:
        """A line for each group through its points.

        Args:
            title: Heading of the section.
            groups: The points of each group, from left to right. Points that are not finite are left out.
            across: What the first numbers are, such as steps.
            label: What the second numbers are.
            note: A remark under the picture.
        """
        finite = {
            name: [point for point in points if all(map(math.isfinite, point))] for name, points in groups.items()
        }
        finite = {name: points for name, points in finite.items() if points}
        if not finite:
            self._add(title, NOTHING, note)
            return
        entries = [f"<li>{_swatch(index)}<span>{escaped(name)}</span></li>" for index, name in enumerate(finite)]
        legend = f'<ul class="legend">{"".join(entries)}</ul>' if len(entries) > 1 else ""
        description = "; ".join(
            f"{name}, from {shown(points[0][1])} to {shown(points[-1][1])}" for name, points in finite.items()
        )
        with _drawing():
            figure = _draw_lines(finite, across, label)
            picture = self._picture(figure, f"{label} over {across}: {description}", legend)
        self._add(title, picture, note)

    def bars(self, title: str, counts: Mapping[str, int | float], label: str, note: str = "") -> None:
        """A bar for each name, with its value at the end.

        Args:
            title: Heading of the section.
            counts: Value of each name, in the order in which they are shown.
            label: What the values are.
            note: A remark under the picture.
        """
        if not counts:
            self._add(title, NOTHING, note)
            return
        description = ", ".join(f"{name} {shown(value)}" for name, value in counts.items())
        names = [shortened(name, LONGEST_NAME) for name in counts]
        with _drawing():
            picture = self._picture(_draw_bars(names, list(counts.values()), label), f"Bars, {label}: {description}")
        if any("…" in name for name in names):
            rows = list(counts.items())
            picture += f"\n<details><summary>names in full</summary>{_table(['name', label], rows)}</details>"
        self._add(title, picture, note)

    def cases(self, title: str, cases: Sequence[Case], note: str = "") -> None:
        """A card for each query, with its texts; of long texts the rest opens on a click."""
        remark = f'<p class="note">{escaped(note)}</p>\n' if note else ""
        self._add(title, remark + ("\n".join(map(_card, cases)) or NOTHING))

    def include(self, source: Path) -> None:
        """All sections of another page of ours, with its title as a heading over them; ids stay apart.

        Raises:
            RunError: The file cannot be read, or is no such page.
        """
        try:
            text = source.read_text(encoding="utf-8")
            title = re.search(r"<h1>.*?</h1>\n(<p>.*?</p>\n)?", text, flags=re.DOTALL)
            assert title is not None
            sections = text[title.end() : text.rindex("</main>")]
        except (OSError, ValueError, AssertionError) as problem:
            raise RunError(f"is no page of bgectl's: {problem}", where=str(source)) from problem
        heading = f'<header id="part-{self._parts}">{title[0].replace("h1>", "h2>")}</header>\n'
        mark = f"part-{self._parts}-"
        self._parts += 1

        def apart(tag: re.Match[str]) -> str:
            return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{mark}", tag[0])

        self._sections.append(heading + re.sub(r"<[^>]*>", apart, sections))

    def heading(self, title: str, lead: str = "") -> None:
        """A heading over the sections that follow."""
        paragraph = f"<p>{escaped(lead)}</p>\n" if lead else ""
        self._sections.append(f'<header id="part-{self._parts}"><h2>{escaped(title)}</h2>\n{paragraph}</header>\n')
        self._parts += 1

    def html(self) -> str:
        """The whole page."""
        light, dark = (
            " ".join(f"--{name}: {both[look]};" for name, both in COLOURS.items()) for look in range(2)
        )  # fmt: skip
        # On screen only: a dark look would print light text.
        looks = (
            f":root {{ color-scheme: light dark; {light} }}\n"
            f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
        )
        # Were a text ever not escaped, the policy would still keep browsers from running or loading anything.
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escaped(self._title)}</title>\n<style>\n{looks}{CSS}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{escaped(self._title)}</h1>\n"
            + (f"<p>{escaped(self._lead)}</p>\n" if self._lead else "")
            + "".join(self._sections)
            + "</main>\n</body>\n</html>\n"
        )

    def write(self, target: Path) -> None:
        """Write the page beside `target` and rename it into place.

        Raises:
            UsageError: The target's directory does not exist or the target is a directory.
            RunError: The disk is full or the file cannot be written.
        """
        content = self.html().encode()
        with jsonl.replace_file(target) as stream:
            stream.write(content)

    def _add(self, title: str, content: str, note: str = "") -> None:
        remark = f'<p class="note">{escaped(note)}</p>\n' if note else ""
        self._sections.append(f"<section>\n<h2>{escaped(title)}</h2>\n{content}\n{remark}</section>\n")

    def _picture(self, figure: Figure, description: str, legend: str = "") -> str:
        # Ids are of the whole page, and matplotlib names those of every picture alike.
        picture = _svg(figure, description, prefix=f"picture-{len(self._sections) + 1}-")
        return f"<figure>{legend}\n{picture}</figure>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    numeric = [all(map(_is_number, cells)) for cells in zip(*rows, strict=True)]
    looks = ['class="number"' if flush else 'dir="auto"' for flush in numeric]

    def line(tag: str, cells: Sequence[str], more: str = "") -> str:
        filled = zip(cells, looks, strict=True)
        return "".join(f"<{tag}{more} {look}>{escaped(cell)}</{tag}>" for cell, look in filled)

    head = line("th", columns, ' scope="col"')
    body = "\n".join(f"<tr>{line('td', [shown(cell) for cell in row])}</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _is_number(cell: object) -> bool:
    """Whether a cell may stand in a column of numbers: a number, text that is one, or a sign for none."""
    if isinstance(cell, bool | np.bool_):
        return False
    text = shown(cell).strip()
    return text in _NO_VALUE or _NUMBER.fullmatch(text) is not None


def _card(case: Case) -> str:
    note = f'<p class="note">{escaped(case.note)}</p>\n' if case.note else ""
    texts = [_text("query", "query", case.query)]
    for passage in case.passages:
        tone = next((tone for tone in ("positive", "negative") if tone in passage.role.lower()), "other")
        texts.append(_text(tone, passage.role, passage.text, passage.score))
    return f"<article>\n{note}<dl>\n{''.join(texts)}</dl>\n</article>"


def _text(tone: str, role: str, text: str, score: float | None = None) -> str:
    first, rest = cut_text(text)
    body = f'<div class="text" dir="auto">{lined(first)}{"…" * bool(rest)}</div>'
    if not text:
        body = '<div class="muted">(empty)</div>'
    if rest:
        more = f"{len(rest):,} more character{'s' * (len(rest) != 1)}"
        body += f'<details><summary>{more}</summary><div class="text" dir="auto">{lined(rest)}</div></details>'
    mark = "" if score is None else f' <span class="score">{escaped(shown(score))}</span>'
    return f'<div class="{tone}"><dt><b>{escaped(role)}</b>{mark}</dt><dd>{body}</dd></div>\n'


def _swatch(index: int) -> str:
    """The line and area of a group for the legend."""
    colour = f"var(--{GROUPS[index % len(GROUPS)]})"
    dashes = " ".join(f"{STROKE * length:g}" for length in DASHES[index % len(DASHES)]) or "none"
    return (
        '<svg viewBox="0 0 28 12" aria-hidden="true">'
        f'<rect width="28" height="12" style="fill: {colour}; opacity: 0.22"/>'
        f'<path d="M0 1H28" style="fill: none; stroke: {colour}; stroke-width: {STROKE}; stroke-dasharray: {dashes}"/>'
        "</svg>"
    )


@contextmanager
def _drawing() -> Iterator[None]:
    """Settings under which figures are made and saved, whatever the user's own matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "bgectl",
                # A dollar sign in a name starts no formula.
                "text.parse_math": False,
                "font.sans-serif": ["DejaVu Sans"],
                "font.size": 10,
                "text.color": INK,
                "axes.labelcolor": MUTED,
                "axes.edgecolor": LINE,
                "xtick.color": LINE,
                "xtick.labelcolor": MUTED,
                "ytick.color": LINE,
                "ytick.labelcolor": MUTED,
                "grid.color": LINE,
                "axes.axisbelow": True,
                "axes.formatter.useoffset": False,
            }
        )
        # The browser has the fonts that this machine lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _axes(height: float, across: str, label: str) -> tuple[Figure, Any]:
    """Axes with a scale on the left and one below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes((44 / WIDTH, 36 / height, (WIDTH - 50) / WIDTH, (height - 44) / height))
    axes.margins(x=0.02)
    axes.grid(axis="y", linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.set_xlabel(shortened(across, LONGEST_LABEL))
    axes.set_ylabel(label)
    return figure, axes


def _draw_lines(groups: Mapping[str, Sequence[tuple[float, float]]], across: str, label: str) -> Figure:
    figure, axes = _axes(190.0, across, label)
    for index, points in enumerate(groups.values()):
        dashes = DASHES[index % len(DASHES)]
        axes.plot(
            *zip(*points, strict=True), color=COLOURS[GROUPS[index % len(GROUPS)]][0], linewidth=STROKE,
            linestyle=(0, dashes) if dashes else "solid", marker="o" if len(points) < FEWEST_MARKS else "",
            markersize=3,
        )  # fmt: skip
    return figure


def _draw_histogram(groups: Mapping[str, FloatArray], label: str) -> Figure:
    figure, axes = _axes(210.0, label, "% of the group")
    edges = bin_edges(np.concatenate(list(groups.values())))
    for index, values in enumerate(groups.values()):
        heights = shares(values, edges)
        colour = COLOURS[GROUPS[index % len(GROUPS)]][0]
        dashes = DASHES[index % len(DASHES)]
        axes.stairs(heights, edges, fill=True, facecolor=colour, edgecolor="none", alpha=0.22)
        axes.stairs(
            heights, edges, edgecolor=colour, linewidth=STROKE, linestyle=(0, dashes) if dashes else "solid", zorder=2
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    return figure


def _draw_bars(names: Sequence[str], values: Sequence[int | float], label: str) -> Figure:
    from matplotlib.figure import Figure

    told = [shown(value) for value in values]
    lengths = [float(value) if math.isfinite(value) else 0.0 for value in values]
    low, high = min(0.0, *lengths), max(0.0, *lengths)
    room = COLUMN * max(map(len, told)) + 8
    left = COLUMN * max(sum(map(_columns, name)) for name in names) + 8 + (room if low < 0 else 0)
    row, foot = 20.0, 20.0
    height = row * len(names) + foot
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes((left / WIDTH, foot / height, (WIDTH - left - room) / WIDTH, 1 - foot / height))
    places = range(len(names))
    axes.barh(places, lengths, height=0.7, color=COLOURS["group-1"][0])
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for place, length, text in zip(places, lengths, told, strict=True):
        axes.annotate(
            text, (length, place), xytext=(-4 if length < 0 else 4, 0), textcoords="offset points",
            ha="right" if length < 0 else "left", va="center_baseline", annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(low, high if high > low else low + 1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(places, labels=names)
    axes.tick_params(axis="y", length=0, labelcolor=INK, pad=room if low < 0 else 4)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    label = shortened(label, LONGEST_LABEL)
    start = max(0.0, min(left, WIDTH - COLUMN * sum(map(_columns, label))))
    figure.text(start / WIDTH, 6 / height, label, color=MUTED)
    return figure


def _svg(figure: Figure, description: str, prefix: str) -> str:
    """The figure as an element of a page: no date, ids with a prefix, colours as variables.

    Args:
        figure: What to draw.
        description: Alternative text.
        prefix: Start of the ids.
    """
    stream = io.StringIO()
    figure.savefig(
        stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    _, view, content = re.split(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', stream.getvalue(), maxsplit=1)
    # Its style is for all elements of the page that it stands in; CSS has the same for pictures alone.
    content = re.sub(r"<style.*?</style>", "", content, count=1, flags=re.DOTALL)

    def adapt(tag: re.Match[str]) -> str:
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", tag[0])
        for name, (light, _) in COLOURS.items():
            text = text.replace(light, f"var(--{name})")
        return text

    # Tags alone: a text may say `#ffffff` too. A < or > of a text is written as an entity.
    content = re.sub(r"<[^>]*>", adapt, content).rstrip()
    return f'<svg role="img" aria-label="{escaped(description)}" viewBox="{view}">{content}'
