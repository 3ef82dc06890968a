"""`bgectl data stats`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.data import StatsOptions


def stats(options: StatsOptions) -> None:
    """Count rows, texts and lengths, with histograms."""
    from bgectl.data.stats import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "data stats", StatsOptions, stats, epilog="Example: bgectl data stats train.jsonl --plot lengths.png"
    )
