"""`data stats`: what training files hold, in counts, percentiles and histograms."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from bgectl import console, jsonl
from bgectl.data.check import row_flaws
from bgectl.data.pieces import PIECE_BYTES, Piece, cut_file, default_workers, lines_of, map_pieces, progress_of
from bgectl.data.tokens import TokenCounter, summary_of
from bgectl.errors import UsageError
from bgectl.options.data import StatsOptions

MOST_PROMPTS = 100
"""Different prompts of a file that are told apart."""

BARS = 12
BAR_WIDTH = 40
SIDES = ("query", "pos", "neg")


@dataclass(slots=True)
class FileStats:
    """What one file holds. The counters map a number (of texts, of characters) to how often it occurs."""

    name: str
    rows: int = 0
    bad_rows: int = 0
    scored: int = 0
    types: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str | None] = field(default_factory=Counter)
    texts: dict[str, Counter[int]] = field(default_factory=lambda: {"pos": Counter(), "neg": Counter()})
    characters: dict[str, Counter[int]] = field(default_factory=lambda: {side: Counter() for side in SIDES})

    def add(self, raw: dict[str, Any]) -> None:
        """Count a row without errors."""
        self.rows += 1
        self.types[raw.get("type") or "normal"] += 1
        prompt = raw.get("prompt")
        if prompt in self.prompts or len(self.prompts) < MOST_PROMPTS:
            self.prompts[prompt] += 1
        self.scored += raw.get("pos_scores") is not None and raw.get("neg_scores") is not None
        self.characters["query"][len(raw["query"])] += 1
        for side in ("pos", "neg"):
            texts = raw.get(side) or ()
            self.texts[side][len(texts)] += 1
            self.characters[side].update(map(len, texts))

    def merge(self, other: FileStats) -> None:
        """Add the counts of another piece or file."""
        self.rows += other.rows
        self.bad_rows += other.bad_rows
        self.scored += other.scored
        self.types += other.types
        for prompt, count in other.prompts.items():
            if prompt in self.prompts or len(self.prompts) < MOST_PROMPTS:
                self.prompts[prompt] += count
        for side in ("pos", "neg"):
            self.texts[side] += other.texts[side]
        for side in SIDES:
            self.characters[side] += other.characters[side]


def run(options: StatsOptions) -> None:
    """Count files and print the result.

    Raises:
        UsageError: A path does not exist, or no picture can be written of that name.
        DataError: A file cannot be read.
        RunError: The tokenizer cannot be loaded, or the picture not be written.
    """
    if options.plot is not None and options.plot.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise UsageError("a picture ends in .png, .svg or .pdf", where=f"--plot {options.plot}")
    files = list(dict.fromkeys(jsonl.expand_paths(options.paths)))
    tokens = None
    if options.tokenizer is not None:
        tokens = TokenCounter(options.tokenizer, options.query_max_len, options.passage_max_len)
    counted = count_files(files, workers=options.workers or default_workers(), tokens=tokens)
    total = FileStats("all")
    for stats in counted:
        total.merge(stats)
    summary = tokens.summary() if tokens is not None else None
    if options.plot is not None:
        draw(options.plot, total, tokens)
    if options.format == "json":
        content: dict[str, Any] = {"files": [as_dict(stats) for stats in counted], "total": as_dict(total)}
        if summary is not None:
            content["tokens"] = summary
        sys.stdout.buffer.write(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        sys.stdout.buffer.flush()
    else:
        print_stats(counted, total, tokens, summary)
    if total.bad_rows:
        rows = f"{total.bad_rows:,} row{'s' * (total.bad_rows != 1)}"
        console.warn(f"{rows} with errors left out; `bgectl data validate` names what is wrong")


def count_files(
    files: Sequence[Path], *, workers: int = 1, piece_bytes: int = PIECE_BYTES, tokens: TokenCounter | None = None
) -> list[FileStats]:
    """The counts of each file.

    Args:
        files: The files, no directories.
        workers: Processes; one is used where there is nothing to share out.
        piece_bytes: Bytes of a plain file for a process at a time.
        tokens: Counts the tokens of good rows.

    Raises:
        DataError: A file cannot be read.
    """
    counted = [FileStats(str(path).encode("utf-8", "replace").decode()) for path in files]
    pieces = [piece for index, path in enumerate(files) for piece in cut_file(index, path, piece_bytes)]
    if workers == 1 or tokens is not None or len(pieces) == 1 or any(str(path) == "-" for path in files):
        with progress_of("counting", files) as advance:
            for piece in pieces:
                counted[piece.file].merge(count_piece(piece, tokens, advance))
        return counted
    with (
        map_pieces(partial(count_piece, tokens=None), pieces, workers) as results,
        progress_of("counting", files) as advance,
    ):
        for piece, stats in results:
            counted[piece.file].merge(stats)
            advance((piece.end or piece.path.stat().st_size) - piece.start)
    return counted


def count_piece(piece: Piece, tokens: TokenCounter | None = None, advance: console.Advance | None = None) -> FileStats:
    """The counts of one piece; `advance` is told of bytes."""
    stats = FileStats("")
    for number, line in enumerate(lines_of(piece)):
        if advance is not None:
            advance(len(line))
        if number == 0 and piece.start == 0:
            line = line.removeprefix(jsonl.UTF8_BOM)
        try:
            raw = orjson.loads(line)
        except orjson.JSONDecodeError:
            stats.bad_rows += bool(line.strip())
            continue
        if not isinstance(raw, dict) or any(flaw.severity == "error" for flaw in row_flaws(raw)):
            stats.bad_rows += 1
            continue
        stats.add(raw)
        if tokens is not None:
            tokens.add(raw)
    return stats


def as_dict(stats: FileStats) -> dict[str, Any]:
    """The counts for machines."""
    return {
        "file": stats.name,
        "rows": stats.rows,
        "bad_rows": stats.bad_rows,
        "scored_rows": stats.scored,
        "types": dict(stats.types),
        "prompts": [{"prompt": prompt, "rows": count} for prompt, count in stats.prompts.most_common()],
        "pos": _span(stats.texts["pos"]),
        "neg": _span(stats.texts["neg"]),
        "characters": {side: summary_of(stats.characters[side]) for side in SIDES},
    }


def _span(counts: Counter[int]) -> dict[str, int | float]:
    """Minimum, mean and maximum of texts in a row."""
    total = counts.total()
    mean = sum(number * times for number, times in counts.items()) / total if total else 0.0
    return {"min": min(counts, default=0), "mean": round(mean, 2), "max": max(counts, default=0)}


def print_stats(
    counted: Sequence[FileStats],
    total: FileStats,
    tokens: TokenCounter | None,
    summary: dict[str, dict[str, int | float]] | None,
) -> None:
    """The counts for people, on stdout."""
    shown = [*counted, total] if len(counted) > 1 else counted
    columns = ["file", "rows", "type", "pos", "neg", "scored", "prompts"]
    rows = [
        [
            stats.name,
            f"{stats.rows:,}",
            ", ".join(stats.types) or "-",
            _told(stats.texts["pos"]),
            _told(stats.texts["neg"]),
            f"{stats.scored:,}",
            _prompts_told(stats.prompts),
        ]
        for stats in shown
    ]
    console.table("Rows (pos, neg: fewest–most in a row, mean)", columns, rows, on_stdout=True)
    lengths = {side: summary_of(total.characters[side]) for side in SIDES}
    keys = ("count", "mean", "p50", "p90", "p99", "max")
    rows = [[side, *(f"{values[key]:,}" for key in keys)] for side, values in lengths.items()]
    console.table("Characters", ["field", "texts", *keys[1:]], rows, on_stdout=True)
    if summary is not None:
        token_keys = (*keys, "limit", "cut")
        rows = [[side, *(f"{values[key]:,}" for key in token_keys)] for side, values in summary.items()]
        console.table("Tokens", ["texts of", "texts", *token_keys[1:]], rows, on_stdout=True)
    for title, counts in histograms(total, tokens):
        console.stdout().print(title, style="bold", markup=False)
        for line in histogram_lines(counts):
            console.stdout().print(line, markup=False, soft_wrap=True)
        console.stdout().print()


def _told(counts: Counter[int]) -> str:
    span = _span(counts)
    if span["min"] == span["max"]:
        return str(span["min"])
    return f"{span['min']}–{span['max']}, {span['mean']:.1f}"


def _prompts_told(prompts: Counter[str | None]) -> str:
    given = [prompt for prompt in prompts if prompt]
    if not given:
        return "-"
    without = ", some rows without" if len(given) < len(prompts) else ""
    if len(given) == 1:
        text = given[0] if len(given[0]) <= 40 else given[0][:39] + "…"
        return repr(text) + without
    return f"{len(given)}{'+' if len(prompts) >= MOST_PROMPTS else ''} different{without}"


def histograms(total: FileStats, tokens: TokenCounter | None) -> list[tuple[str, Counter[int]]]:
    """(title, lengths) of what is drawn: tokens where they were counted, else characters."""
    if tokens is not None:
        return [(f"Tokens of {side}", counts) for side, counts in tokens.lengths.items()]
    passages = total.characters["pos"] + total.characters["neg"]
    return [("Characters of queries", total.characters["query"]), ("Characters of passages", passages)]


def bins_of(counts: Counter[int], most: int = BARS) -> list[tuple[int, int, int]]:
    """(lowest length, highest length, texts) of equally wide bins; the last one also takes the longest hundredth."""
    if not counts:
        return []
    low, high = min(counts), int(summary_of(counts)["p99"])
    width = max(1, -(-(high - low + 1) // most))
    number = max(1, -(-(high - low + 1) // width))
    totals = [0] * number
    for length, count in counts.items():
        totals[min(number - 1, (length - low) // width)] += count
    edges = [(low + index * width, low + (index + 1) * width - 1) for index in range(number)]
    edges[-1] = (edges[-1][0], max(counts))
    return [(first, last, count) for (first, last), count in zip(edges, totals, strict=True)]


def histogram_lines(counts: Counter[int]) -> Iterable[str]:
    """A histogram as lines of text, to an eighth of a character."""
    bins = bins_of(counts)
    tallest = max((count for _, _, count in bins), default=0)
    labels = [f"{first:,}–{last:,}" if last > first else f"{first:,}" for first, last, _ in bins]
    margin = max(map(len, labels), default=0)
    for label, (_, _, count) in zip(labels, bins, strict=True):
        whole, eighths = divmod(round(count / tallest * BAR_WIDTH * 8), 8)
        bar = "█" * whole + (" ▏▎▍▌▋▊▉"[eighths] if eighths else "")
        if count and not bar:
            bar = "▏"
        yield f"  {label:>{margin}} {bar} {count:,}"


def draw(target: Path, total: FileStats, tokens: TokenCounter | None) -> None:
    """Write the histograms as a picture.

    Raises:
        RunError: The picture cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = histograms(total, tokens)
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 3.5), layout="constrained")
    for axis, (title, counts) in zip(axes, shown, strict=True):
        bins = bins_of(counts, 40)
        # The last bin reaches to the longest text; drawn as wide as the others.
        width = bins[0][1] - bins[0][0] + 1 if len(bins) > 1 else 1
        axis.bar([first for first, _, _ in bins], [count for _, _, count in bins], width=width, align="edge")
        axis.set(title=title, xlabel=title.split()[0].lower(), ylabel="texts")
        axis.spines[["top", "right"]].set_visible(False)
    try:
        with jsonl.replace_file(target) as stream:
            figure.savefig(stream, format=target.suffix.lower()[1:], dpi=150)
    finally:
        pyplot.close(figure)
