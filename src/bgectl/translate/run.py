"""Command lines of FlagEmbedding in bgectl's words."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bgectl.cli import bind
from bgectl.errors import BgectlError, DataError
from bgectl.options import MODELS
from bgectl.translate.flags import translated
from bgectl.translate.launchers import OLD, Started, started
from bgectl.translate.shell import Command, commands_of, plain, quoted, unresolved

WIDTH = 100
"""Columns of a line that is not folded."""


@dataclass
class Line:
    """A command line of bgectl.

    Attributes:
        command: `train m3` and the like.
        parts: Each flag with its values; what is left to the shell is marked, see `shell`.
        environment: Variables to set for it.
        notes: What has no counterpart, and what means something else.
    """

    command: str
    parts: list[list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """All words, as a program would get them."""
        return ["bgectl", *self.command.split(), *(plain(word) for part in self.parts for word in part)]

    @property
    def text(self) -> str:
        """To be pasted into a shell; folded where it is long."""
        variables = [f"{name}={quoted(value)}" for name, value in self.environment.items()]
        head = " ".join([*variables, "bgectl", self.command])
        shown = [" ".join(map(_bare, part)) for part in self.parts]
        line = " ".join([head, *shown])
        return line if len(line) <= WIDTH and "\n" not in line else " \\\n  ".join([head, *shown])

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"command": self.words, "environment": {k: plain(v) for k, v in self.environment.items()},
                "notes": self.notes}  # fmt: skip


def _bare(word: str) -> str:
    """As `quoted`; `--flag=value` keeps its flag outside of the quotes."""
    flag, equals, value = word.partition("=")
    return f"{flag}={quoted(value)}" if equals and flag.startswith("--") else quoted(word)


def read_words(words: Sequence[str]) -> list[Command]:
    """The commands that were given: words, one text of them, a script's name, or `-` for a script on stdin.

    Raises:
        DataError: The script cannot be read.
    """
    if len(words) > 1:
        # The shell has read them.
        environment: dict[str, str] = {}
        rest = list(words)
        while rest and "=" in rest[0] and rest[0].partition("=")[0].isidentifier():
            name, _, value = rest.pop(0).partition("=")
            environment[name] = value
        return [Command(rest, environment)]
    (text,) = words
    if text == "-":
        return commands_of(sys.stdin.read())
    if " " not in text.strip() and os.path.isfile(text):
        try:
            return commands_of(Path(text).read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError:
            raise DataError("is not a text in UTF-8", where=text) from None
    return commands_of(text)


def run(words: Sequence[str]) -> tuple[list[Line], list[str]]:
    """Translate what was given.

    Args:
        words: See `read_words`.

    Returns:
        The command lines, and what is said of commands that have no counterpart.

    Raises:
        DataError: There is no command of FlagEmbedding in it, or what it becomes is refused.
    """
    lines: list[Line] = []
    without: list[str] = []
    moved = ""
    for command in read_words(words):
        if command.words[:1] == ["cd"]:
            moved = plain(" ".join(command.words[1:]))
        found = started(command.words) if command.words[:1] not in (["echo"], ["printf"], ["pip"]) else None
        if found is None:
            continue
        if found.command is None:
            if found.without is not None:
                without.append(f"{found.module}: {found.without}")
            continue
        line = _line(command, found)
        if moved:
            line.notes.append(f"the script works in `{moved}`: its relative paths start there")
        lines.append(line)
    if not lines and not without:
        raise DataError(
            "no command of FlagEmbedding found",
            hint="known are hn_mine.py, add_reranker_score.py and `-m FlagEmbedding.finetune.embedder.…`, with or "
            "without torchrun, deepspeed or accelerate before them",
        )
    return lines, without


def _line(command: Command, found: Started) -> Line:
    """One command in our words, tried on the option model.

    Raises:
        DataError: It is refused.
    """
    assert found.command is not None
    options = translated(found.command, found.arguments)
    notes = [*command.notes, *found.notes, *options.notes]
    if any(found.module.endswith(name) for name in OLD):
        notes.insert(0, f"{found.module} is of an older FlagEmbedding: `bgectl {found.command}` is what took its place")
    flags = [word for word in found.flags if [word] not in options.parts]
    if found.command in ("mine", "score"):
        flags = [{"--fp16": "--use-fp16", "--bf16": "--use-bf16"}.get(word, word) for word in flags]
    parts = [*_parts(flags), *options.parts]
    line = Line(found.command, parts, {**command.environment, **found.environment}, notes)
    for word in dict.fromkeys(name for part in parts for value in part for name in unresolved(value)):
        line.notes.append(f"{word} is not known here and left to the shell")
    problems = [*options.problems, *_refused(line)]
    if problems:
        given = shlex.join([plain(word) for word in command.words[:6]])
        raise DataError("\n       ".join(problems), where=f"line {command.line}: {given} …", hint=_hint(line))
    return line


def _hint(line: Line) -> str:
    return f"it would become: {line.text}"


def _parts(flags: Sequence[str]) -> list[list[str]]:
    """Each flag with its values."""
    parts: list[list[str]] = []
    for word in flags:
        if word.startswith("--"):
            parts.append([word])
        else:
            parts[-1].append(word)
    return parts


def _refused(line: Line) -> list[str]:
    """What the option model says against a command line."""
    command = bind.command_of(line.command, MODELS[line.command](), lambda options: None, project=None)
    try:
        with command.make_context(line.command, line.words[1 + len(line.command.split()) :]) as context:
            command.invoke(context)
    except BgectlError as problem:
        return [problem.message]
    return []
