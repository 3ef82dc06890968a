"""Instructions before texts (SPEC of the field: docs/data.md)."""

from __future__ import annotations

from dataclasses import dataclass


def instruct(template: str, instruction: str | None, text: str) -> str:
    """`template.format(instruction, text)`; without an instruction the text as it is.

    The text is an argument only, so braces in it mean nothing.
    """
    return template.format(instruction, text) if instruction else text


def prefix_of(template: str, instruction: str | None) -> str | None:
    """What stands before the text, or None where the template also puts something behind it."""
    if not instruction:
        return ""
    before, after = template.format(instruction, "\0").split("\0")
    return before if not after else None


def shown_prefix(template: str, instruction: str | None) -> str | None:
    """The instruction as a prefix, to be shown; None where nothing was given."""
    if instruction is None:
        return None
    prefix = prefix_of(template, instruction)
    return prefix if prefix is not None else template.format(instruction, "…")


@dataclass(frozen=True, slots=True)
class Prompts:
    """The instructions of a run. A row's own `prompt` replaces the query instruction."""

    query_instruction: str | None = None
    query_format: str = "{}{}"
    passage_instruction: str | None = None
    passage_format: str = "{}{}"

    def query(self, text: str, prompt: str | None = None) -> str:
        """The query as the model reads it."""
        return instruct(self.query_format, self.query_instruction if prompt is None else prompt, text)

    def passage(self, text: str) -> str:
        """The passage as the model reads it."""
        return instruct(self.passage_format, self.passage_instruction, text)
