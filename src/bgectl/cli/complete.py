"""What the shells' completion scripts ask for.

The scripts and the environment variables are Typer's. The answers are made here, from the table of commands and the
option models: Typer would load everything, and rich with it, at each press of the key, and it does not complete
`--flag=value` or the second value of a list.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bgectl.commands import COMMANDS, GROUPS
from bgectl.errors import UsageError
from bgectl.presets import names

if TYPE_CHECKING:
    from bgectl.options.describe import Described

VARIABLE = "_BGECTL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
ROOT_OPTIONS = {
    "--version": "Print the version and stop.",
    "--show-completion": "Print the completion script for bash, zsh or fish.",
    "--install-completion": "Install the completion script for bash, zsh or fish.",
    "--help": "Show the help page.",
}

VALUES: dict[str, Callable[[], tuple[str, ...]]] = {"preset": names}
"""Option → values that its type does not tell."""

Candidate = tuple[str, str]
"""A word that could stand here, and what it means."""


def answer(environment: Mapping[str, str]) -> tuple[str, int]:
    """Answer a completion script.

    Args:
        environment: Holds the instruction, such as `complete_zsh`, and the words typed so far.

    Returns:
        The text for stdout, and the exit code.

    Raises:
        UsageError: The instruction or the shell is not known.
    """
    instruction, _, shell = environment[VARIABLE].partition("_")
    if shell not in SHELLS or instruction not in ("source", "complete"):
        raise UsageError(f"no such instruction: {environment[VARIABLE]}", where=VARIABLE)
    if instruction == "source":
        return script(shell), 0
    words, incomplete = _typed(environment, shell)
    found = candidates(words, incomplete)
    if shell == "bash":
        return "\n".join(word for word, _ in found), 0
    if shell == "zsh":
        listed = "\n".join(f'"{_zsh(word)}":"{_zsh(text)}"' if text else f'"{_zsh(word)}"' for word, text in found)
        return (f"_arguments '*: :(({listed}))'" if found else "_files"), 0
    if environment.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return "", 0 if found else 1
    return "\n".join(f"{word}\t{text}".rstrip("\t") for word, text in found), 0


def _typed(environment: Mapping[str, str], shell: str) -> tuple[list[str], str]:
    """The complete words after `bgectl`, and the one the cursor is at."""
    if shell == "bash":
        words = _split(environment.get("COMP_WORDS", ""))
        count = environment.get("COMP_CWORD", "")
        cursor = int(count) if count.isdigit() else len(words)
        incomplete = words[cursor] if cursor < len(words) else ""
        # bash gives `--dtype=fl` as three words, and puts what we answer in the place of the last.
        done = [word for word in words[1:cursor] if word != "="]
        return done, "" if incomplete == "=" else incomplete
    typed = environment.get("_TYPER_COMPLETE_ARGS", "")
    words = _split(typed)[1:]
    return (words[:-1], words[-1]) if words and not typed.endswith(" ") else (words, "")


def _split(text: str) -> list[str]:
    """Split as a shell does; a quote that is still open ends at the end."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = []
    try:
        for word in lexer:
            words.append(word)  # noqa: PERF402 (the words before an open quote are kept)
    except ValueError:
        words.append(lexer.token)
    return words


def _zsh(text: str) -> str:
    """Quote for the inside of '((“…”:“…”))', which the script evaluates."""
    for plain, quoted in (("\\", ""), ('"', ""), ("'", "’"), ("$", "\\$"), ("`", ""), (":", "\\\\:")):
        text = text.replace(plain, quoted)
    return text


def candidates(words: list[str], incomplete: str) -> list[Candidate]:
    """What could stand at the cursor; nothing where it is the name of a file, or free text.

    Args:
        words: The complete words after `bgectl`.
        incomplete: The beginning of the word at the cursor.
    """
    command = next((name for name in (" ".join(words[:2]), " ".join(words[:1])) if name in COMMANDS), None)
    if command is None:
        return [pair for pair in _commands(words, incomplete) if pair[0].startswith(incomplete)]
    rest = words[len(command.split()) :]
    if command == "presets" and not incomplete.startswith("-"):
        return [(name, "") for name in names() if not rest and name.startswith(incomplete)]
    if command == "schema" and not incomplete.startswith("-"):
        return [pair for pair in _commands(rest, "") if pair[0].startswith(incomplete)]
    return _of_command(command, rest, incomplete)


def _commands(words: list[str], incomplete: str) -> list[Candidate]:
    if words and words[0] in ("--show-completion", "--install-completion"):
        return [(shell, "") for shell in SHELLS]
    if incomplete.startswith("-"):
        return list(ROOT_OPTIONS.items()) if not words else [("--help", ROOT_OPTIONS["--help"])]
    if not words:
        heads = {name.split()[0]: text for name, text in COMMANDS.items()}
        return list({**heads, **GROUPS}.items())
    return [(name.split()[1], text) for name, text in COMMANDS.items() if name.split()[:-1] == words]


def _of_command(command: str, words: list[str], incomplete: str) -> list[Candidate]:
    from bgectl.options import MODELS
    from bgectl.options.describe import EVERY_COMMAND, describe

    options = [option for rows in describe(MODELS[command]()).values() for option in rows] + EVERY_COMMAND
    flags = {spelling: option for option in options for spelling in option.spellings}
    head, equals, value = incomplete.partition("=")
    if equals and head.startswith("-"):
        option = flags.get(head.replace("_", "-"))
        choices = _choices(option) if option else ()
        return [(f"{head}={choice}", "") for choice in choices if choice.startswith(value)]
    if "--" in words:
        return []
    if incomplete.startswith("-"):
        given = {flags[word].name for word in words if word in flags and not flags[word].shape.many}
        rows = [(spelling, option.text) for spelling, option in flags.items() if option.name not in given]
        rows.append(("--help", ROOT_OPTIONS["--help"]))
        return [(flag, text) for flag, text in rows if flag.startswith(incomplete)]
    last = next((index for index in reversed(range(len(words))) if words[index].startswith("-")), None)
    option = flags.get(words[last].replace("_", "-")) if last is not None else None
    if last is None or option is None or not (last == len(words) - 1 or option.shape.many):
        return []
    return [(choice, "") for choice in _choices(option) if choice.startswith(incomplete)]


def _choices(option: Described) -> tuple[str, ...]:
    """The values that an option can have, where they are known."""
    return VALUES.get(option.name, lambda: option.shape.choices)()


def script(shell: str, *, install: bool = False) -> str:
    """The completion script of a shell, or the path it was installed at.

    Typer's own options ask which program started this one, and get no answer where there is no terminal; so the shell
    is named, or $SHELL is taken.

    Raises:
        UsageError: The shell is none of those known.
    """
    shell = shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SHELLS:
        raise UsageError(
            f"no completion for `{shell}`" if shell else "which shell?", hint=f"one of {', '.join(SHELLS)}"
        )
    from typer import completion

    names = {"prog_name": "bgectl", "complete_var": VARIABLE, "shell": shell}
    if install:
        return str(completion.install(**names)[1])  # type: ignore[attr-defined]
    return str(completion.get_completion_script(**names))  # type: ignore[attr-defined]
