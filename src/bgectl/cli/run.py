"""`bgectl run`."""

from __future__ import annotations

from pathlib import Path

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.run import RunOptions


def run(options: RunOptions, config: Path | None) -> None:
    """Run the stages of bgectl.yaml, one after the other: validate, mine, score, relabel, train, merge, eval. What has
    not changed since it was run is not run again."""
    from bgectl.pipeline.run import run

    run(options, config)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of("run", RunOptions, run, epilog="Example: bgectl run --from mine", with_config=True)
