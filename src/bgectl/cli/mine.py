"""`bgectl mine`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.cli.launching import start_processes
from bgectl.options.mine import MineOptions


def mine(options: MineOptions) -> None:
    """Find hard negatives: rank the pool for each query and draw from the ranks of --range."""
    start_processes(options)
    from bgectl.mine.run import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "mine",
        MineOptions,
        mine,
        epilog="Example: bgectl mine train.jsonl mined.jsonl --embedder-name-or-path BAAI/bge-small-en-v1.5 "
        "--range 2-200 -n 15",
    )
