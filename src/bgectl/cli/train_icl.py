"""`bgectl train icl`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.cli.training import train
from bgectl.options.train import TrainIclOptions


def train_icl(options: TrainIclOptions) -> None:
    """Fine-tune a decoder embedder whose queries may have examples before them."""
    train(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "train icl",
        TrainIclOptions,
        train_icl,
        epilog="Example: bgectl train icl --model-name-or-path BAAI/bge-en-icl --train-data scored.jsonl "
        "--bf16 --gpus 2 --output-dir out",
    )
