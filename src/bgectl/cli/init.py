"""`bgectl init`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl import console
from bgectl.cli import bind
from bgectl.errors import UsageError
from bgectl.options.resolve import PROJECT_FILE
from bgectl.options.tools import InitOptions


def init(options: InitOptions) -> None:
    """Write a commented bgectl.yaml: what a project sets first, and every other option as a comment."""
    from bgectl.jsonl import replace_file
    from bgectl.options.project import project_text

    target = options.path / PROJECT_FILE.name if options.path.is_dir() else options.path
    if target.exists() and not options.force:
        raise UsageError("exists already", where=str(target), hint="`--force` replaces it")
    with replace_file(target) as stream:
        stream.write(project_text(options.model, options.preset).encode())
    console.info(f"wrote {target}; `bgectl data validate`, `bgectl mine` and the others read it in this folder")


def command() -> TyperCommand:
    """The Typer command."""
    # A project file that is broken must not keep one from writing a new one.
    return bind.command_of("init", InitOptions, init, epilog="Example: bgectl init --preset bge-m3", project=None)
