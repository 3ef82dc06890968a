"""`bgectl score`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.cli.launching import start_processes
from bgectl.options.score import ScoreOptions


def score(options: ScoreOptions) -> None:
    """Add a teacher's scores to every positive and negative, for distillation."""
    start_processes(options)
    from bgectl.score.run import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "score",
        ScoreOptions,
        score,
        epilog="Example: bgectl score mined.jsonl scored.jsonl --reranker-name-or-path BAAI/bge-reranker-v2-m3",
    )
