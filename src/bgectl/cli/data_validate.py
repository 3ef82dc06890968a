"""`bgectl data validate`."""

from __future__ import annotations

import typer
from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.data import ValidateOptions


def validate(options: ValidateOptions) -> None:
    """Report every defect of training files, with file, line, field and what to do; exit 1 when there is an error."""
    from bgectl.data.validate import run

    if not run(options):
        raise typer.Exit(1)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "data validate", ValidateOptions, validate, epilog="Example: bgectl data validate train.jsonl --strict"
    )
