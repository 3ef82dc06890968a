"""`bgectl translate`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl import console
from bgectl.cli import bind
from bgectl.errors import DataError
from bgectl.options.tools import TranslateOptions

PROGRAM = r"(.*/)?(torchrun|python[\d.]*|deepspeed|accelerate)|[A-Za-z_]\w*=\S*"
"""Words with which a command line begins that was not put in quotes."""


def translate(options: TranslateOptions) -> None:
    """Say a command line of FlagEmbedding in bgectl's words: on stdout what to paste, on stderr what has no counterpart
    and what means something else.
    """
    import json

    from bgectl.translate.run import run

    lines, without = run(options.words)
    for number, line in enumerate(lines):
        if options.format == "json":
            print(json.dumps(line.as_json(), ensure_ascii=False))
        else:
            print(("\n" if number else "") + line.text)
        for note in line.notes:
            console.info(f"note: {note}")
    if without:
        raise DataError("\n       ".join(without), hint=None if lines else "nothing is left to translate")


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "translate",
        TranslateOptions,
        translate,
        epilog="Example: bgectl translate 'python hn_mine.py --input_file a.jsonl --output_file b.jsonl "
        "--embedder_name_or_path BAAI/bge-base-en-v1.5'",
        project=None,
        verbatim=PROGRAM,
    )
