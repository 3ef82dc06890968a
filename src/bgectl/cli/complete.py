"""What the shells' completion scripts ask for.

The scripts and the environment variables are Typer's. The answers are made here, from the table of commands and the
option models: Typer would load everything, and rich with it, at each press of the key, and it does not complete
`--flag=value` or the second value of a list.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bgectl.commands import COMMANDS, GROUPS
from bgectl.errors import UsageError

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
        return "\n".join(_bash(word, incomplete) for word, _ in found), 0
    if shell == "zsh":
        if found and _all_paths(found):
            # zsh's own, which shows folders as such.
            return '_files -g "*.(jsonl|json|gz|zst)"', 0
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
        incomplete = "" if incomplete == "=" else incomplete
        # Likewise `cuda:0`.
        if incomplete == ":" and done:
            incomplete = done.pop() + ":"
        elif len(done) > 1 and done[-1] == ":":
            incomplete = f"{done[-2]}:{incomplete}"
            done = done[:-2]
        return done, incomplete
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


def _bash(word: str, incomplete: str) -> str:
    """Quote a word; bash takes a colon for the end of a word, and wants only what comes after it."""
    start = incomplete.rfind(":") + 1
    return re.sub(r"([\s\\'\"$`&|;<>()*?\[\]{}!#])", r"\\\1", word[start:])


def _all_paths(found: list[Candidate]) -> bool:
    return all(word.endswith("/") or os.path.isfile(os.path.expanduser(word)) for word, _ in found)


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
    from bgectl.cli.values import placed, values

    options, flags = _options(command)
    head, equals, value = incomplete.partition("=")
    given, positional, waits = placed(words, flags, belongs)
    if equals and head.startswith("-"):
        option = flags.get(head.replace("_", "-"))
        return [(f"{head}={found}", "") for found in values(option, given, value)] if option else []
    if "--" in words:
        return []
    if incomplete.startswith("-"):
        once = {name for name in given if not any(option.name == name and option.shape.many for option in options)}
        rows = [(spelling, option.text) for spelling, option in flags.items() if option.name not in once]
        rows.append(("--help", ROOT_OPTIONS["--help"]))
        return [(flag, text) for flag, text in rows if flag.startswith(incomplete)]
    option = waits or _place(options, given, positional)
    return [(found, "") for found in values(option, given, incomplete)] if option else []


def _options(command: str) -> tuple[list[Described], dict[str, Described]]:
    """All options of a command, and by spelling."""
    from bgectl.options import MODELS
    from bgectl.options.describe import EVERY_COMMAND, describe

    options = [option for rows in describe(MODELS[command]()).values() for option in rows] + EVERY_COMMAND
    return options, {spelling: option for option in options for spelling in option.spellings}


def _place(options: list[Described], given: Mapping[str, list[str]], before: int) -> Described | None:
    """The option that a positional word belongs to, with so many before it."""
    for option in options:
        if option.positional and (option.shape.many or option.name not in given):
            if option.shape.many or not before:
                return option
            before -= 1
    return None


def belongs(word: str, option: Described) -> bool:
    """Whether a word that follows a list's value can be another one."""
    pattern = option.pattern or (r"[-+]?\d+" if option.shape.kind is int else None)
    if pattern is not None:
        return re.fullmatch(pattern, word) is not None
    return word == "-" or not word.startswith("-")


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
        path = completion.install(**names)[1]  # type: ignore[attr-defined]
        path.write_text(_with_folders(path.read_text()))
        return str(path)
    return _with_folders(completion.get_completion_script(**names))  # type: ignore[attr-defined]


def _with_folders(text: str) -> str:
    """In bash, let no space follow a folder, so that one can go on into it."""
    return text.replace(
        "    return 0", "    [[ ${COMPREPLY[0]} == */ ]] && compopt -o nospace 2> /dev/null\n    return 0"
    )
