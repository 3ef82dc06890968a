"""`bgectl doctor`."""

from __future__ import annotations

import typer
from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.doctor import DoctorOptions


def doctor(options: DoctorOptions) -> None:
    """Check this installation and machine: packages, GPUs, the hub, disks; with the line that mends each."""
    from bgectl.doctor.run import run

    raise typer.Exit(run(options))


def command() -> TyperCommand:
    """The Typer command."""
    # A project file that is broken must not keep one from finding out what else is.
    return bind.command_of(
        "doctor", DoctorOptions, doctor, epilog="Example: bgectl doctor --format json --offline", project=None
    )
