"""`bgectl merge-lora`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.merge import MergeOptions


def merge_lora(options: MergeOptions) -> None:
    """Make a whole model of an adapter and its base, shard by shard, and check it."""
    from bgectl.train.merge import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "merge-lora",
        MergeOptions,
        merge_lora,
        epilog="Example: bgectl merge-lora finetuned merged --max-shard-size 2GB",
    )
