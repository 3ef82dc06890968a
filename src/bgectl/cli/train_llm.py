"""`bgectl train llm`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.cli.training import train
from bgectl.options.train import TrainLlmOptions


def train_llm(options: TrainLlmOptions) -> None:
    """Fine-tune a decoder as an embedder: a text's vector is that of its last token."""
    train(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "train llm",
        TrainLlmOptions,
        train_llm,
        epilog="Example: bgectl train llm --model-name-or-path BAAI/bge-multilingual-gemma2 --train-data scored.jsonl "
        "--bf16 --gpus 2 --output-dir out",
    )
