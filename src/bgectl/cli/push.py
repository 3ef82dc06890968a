"""`bgectl push`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.push import PushOptions


def push(options: PushOptions) -> None:
    """Check a model folder and its card, say what would go to the hub, and with --yes put it there."""
    from bgectl.push.run import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "push", PushOptions, push, epilog="Example: bgectl push finetuned your-name/finetuned --license mit --yes"
    )
