"""`bgectl export`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.export import ExportOptions


def export(options: ExportOptions) -> None:
    """Write an embedder as ONNX, pooling and heads included, and check it."""
    from bgectl.export.onnx import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "export", ExportOptions, export, epilog="Example: bgectl export finetuned finetuned-onnx --to onnx"
    )
