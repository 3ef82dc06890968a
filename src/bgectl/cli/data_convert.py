"""`bgectl data convert`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.convert import ConvertOptions


def convert(options: ConvertOptions) -> None:
    """Bring training data over from other tools, and to them."""
    from bgectl.data.convert import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "data convert", ConvertOptions, convert,
        epilog="Example: bgectl data convert triplets.csv train.jsonl --columns query=question positive=answer",
    )  # fmt: skip
