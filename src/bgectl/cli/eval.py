"""`bgectl eval`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.evaluate import EvalOptions


def evaluate(options: EvalOptions) -> None:
    """Measure retrieval: nDCG@10, MRR@10, MAP and Recall, several models side by side."""
    from bgectl.evaluate.run import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "eval",
        EvalOptions,
        evaluate,
        epilog="Example: bgectl eval BAAI/bge-small-en-v1.5 out --eval-data example_data/eval",
    )
