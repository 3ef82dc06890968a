"""`bgectl schema COMMAND`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.errors import UsageError
from bgectl.options import MODELS
from bgectl.options.resolve import did_you_mean
from bgectl.options.tools import SchemaOptions


def schema(options: SchemaOptions) -> None:
    """Print the JSON schema of a command's options, for editors and checkers of YAML files."""
    import json

    words = " ".join(options.command)
    if words not in MODELS:
        hint = did_you_mean(words, sorted(MODELS)) if words else f"one of: {', '.join(sorted(MODELS))}"
        raise UsageError(f"no command `{words}`" if words else "which command?", hint=hint)
    print(json.dumps(MODELS[words]().model_json_schema(), indent=2, ensure_ascii=False))


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "schema", SchemaOptions, schema, epilog="Example: bgectl schema train base > train.json", project=None
    )
