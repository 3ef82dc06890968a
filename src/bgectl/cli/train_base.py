"""`bgectl train base`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.cli.training import train
from bgectl.options.train import TrainBaseOptions


def train_base(options: TrainBaseOptions) -> None:
    """Fine-tune an encoder embedder on training rows."""
    train(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "train base",
        TrainBaseOptions,
        train_base,
        epilog="Example: bgectl train base --model-name-or-path BAAI/bge-small-en-v1.5 --train-data mined.jsonl "
        "--output-dir out",
    )
