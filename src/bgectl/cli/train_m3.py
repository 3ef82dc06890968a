"""`bgectl train m3`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.cli.training import train
from bgectl.options.train import TrainM3Options


def train_m3(options: TrainM3Options) -> None:
    """Fine-tune an encoder with three outputs: a dense vector, lexical weights, and a vector for each token."""
    train(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "train m3",
        TrainM3Options,
        train_m3,
        epilog="Example: bgectl train m3 --model-name-or-path BAAI/bge-m3 --train-data scored.jsonl --gpus 2 "
        "--output-dir out",
    )
