"""`bgectl data split`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.split import SplitOptions


def split(options: SplitOptions) -> None:
    """Hold rows out for evaluation, those that share a query or a positive on one side; or sort rows by length."""
    from bgectl.data.split import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "data split", SplitOptions, split,
        epilog="Example: bgectl data split train.jsonl --output-dir split --held-out 0.1 --near --beir",
    )  # fmt: skip
