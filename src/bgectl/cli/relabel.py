"""`bgectl relabel`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.cli.launching import start_processes
from bgectl.options.relabel import RelabelOptions


def relabel(options: RelabelOptions) -> None:
    """Drop false negatives by a teacher's scores, or make them positives."""
    start_processes(options)
    from bgectl.relabel.run import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "relabel",
        RelabelOptions,
        relabel,
        epilog="Example: bgectl relabel mined.jsonl relabelled.jsonl --reranker BAAI/bge-reranker-v2-m3 "
        "--action promote",
    )
