"""From an option model to a Typer command.

A function whose signature lists the model's fields is all that Typer needs. Words are put into Typer's form first, so
that command lines written for the reference go through: `--train_data a b`, `--normalize_embeddings True`. Values stay
text until the model checks them, which finds all problems at once and words them in one way.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from bgectl import console
from bgectl.cli import help
from bgectl.cli.complete import belongs
from bgectl.errors import UsageError
from bgectl.options.base import Options, flag_of, shape_of
from bgectl.options.describe import EVERY_COMMAND, Described, describe
from bgectl.options.resolve import PROJECT_FILE, Resolved, did_you_mean, resolve
from bgectl.options.yaml_file import yaml_value
from bgectl.signals import nothing_written

TRUE = {"true", "yes", "on", "1"}
FALSE = {"false", "no", "off", "0"}
HELP = ("-h", "--help")


def command_of(
    name: str,
    model: type[Options],
    body: Callable[..., None],
    *,
    epilog: str | None = None,
    project: Path | None = PROJECT_FILE,
    with_config: bool = False,
    verbatim: str | None = None,
) -> TyperCommand:
    """The Typer command that resolves `model` from flags and files and calls `body` with it.

    Args:
        name: The command's words, such as `train base`.
        model: Its option model.
        body: What to run; its docstring is the command's help.
        epilog: Shown at the end of `--help`, an example.
        project: The project file that is read too, if it is there.
        with_config: `body` is also given the file of --config, or None.
        verbatim: A regular expression: a word of this form and all behind it are arguments, flags too.
    """

    def run(**given: Any) -> None:
        common = {option.name: given.pop(option.name) for option in EVERY_COMMAND}
        config = common["config"]
        set_messages(verbose=common["verbose"], quiet=common["quiet"], log_format=common["log_format"])
        positional = given.pop("arguments", None) or []
        flags = {key: value for key, value in given.items() if value is not None}
        take_positional(model, positional, flags)
        file = Path(config) if config is not None else None
        resolved = resolve(model, name, flags, file, project=project)
        if common["print_config"]:
            print(config_text(name, resolved))
            return
        if console.verbose():
            tell_sources(name, resolved)
        nothing_written()
        with console.stage(f"bgectl {name}"):
            body(resolved.options, *([file] if with_config else []))

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            start = next((index for index, word in enumerate(args) if re.fullmatch(verbatim or "(?!)", word)), None)
            guarded = args if start is None or "--" in args[:start] else [*args[:start], "--", *args[start:]]
            return super().parse_args(ctx, rewrite(model, guarded))

        def format_help(self, ctx: Any, formatter: Any) -> None:
            formatter.write(help_page(name, model, " ".join((body.__doc__ or "").split()), epilog))

    run.__signature__ = inspect.Signature(_parameters(model))  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    settings = {"help_option_names": list(HELP), "token_normalize_func": hyphenate}
    app.command(name.split()[-1], cls=Command, context_settings=settings)(run)
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand)
    return command


def set_messages(*, verbose: bool | None, quiet: bool | None, log_format: str | None) -> None:
    """Let this process and those it starts say what the flags ask for; see `console`.

    Raises:
        UsageError: The flags contradict each other.
    """
    if verbose and quiet:
        raise UsageError("--verbose and --quiet exclude each other")
    if log_format is not None and log_format not in console.FORMATS:
        raise UsageError(f"--log-format: is not one of {', '.join(console.FORMATS)} (given: {log_format!r})")
    if verbose or quiet:
        os.environ[console.VERBOSITY] = "verbose" if verbose else "quiet"
    if log_format is not None:
        os.environ[console.LOG_FORMAT] = log_format


def tell_sources(command: str, resolved: Resolved) -> None:
    """Which options have other values than their defaults, and where those came from."""
    for line in config_text(command, resolved).splitlines():
        if not line.endswith("# default"):
            console.detail(line.removeprefix("# "))


def hyphenate(word: str) -> str:
    """`--train_group_size` → `--train-group-size`."""
    return word.replace("_", "-")


def help_page(name: str, model: type[Options], summary: str, epilog: str | None = None) -> str:
    """The `--help` of a command."""
    options = describe(model)
    sections = [(panel, [_row(option) for option in rows]) for panel, rows in options.items()]
    common = [*map(_row, EVERY_COMMAND), (", ".join(HELP), "Show this page.")]
    places = [_place(option) for rows in options.values() for option in rows if option.positional]
    usage = " ".join(["bgectl", name, "[OPTIONS]", *places])
    return help.page(usage, summary, [*sections, ("Every command", common)], epilog)


def _row(option: Described) -> help.Row:
    notes = option.notes
    # Short ones stay on one line.
    notes = notes.replace(" ", help.NO_BREAK) if len(notes) < 30 else notes
    return f"{option.spelled} {option.value}".rstrip(), f"{option.text} {notes}".strip()


def _place(option: Described) -> str:
    return f"[{option.name.upper()}]" + ("..." if option.shape.many else "")


def _parameters(model: type[Options]) -> list[inspect.Parameter]:
    parameters = []
    if any(flag_of(field).positional for field in model.model_fields.values()):
        parameters.append(_parameter("arguments", list[str], typer.Argument(None)))
    for option in _all(model):
        kind: Any = bool if option.shape.kind is bool else list[str] if option.shape.many else str
        names = [f"{option.flag}/{option.off}" if option.off else option.flag, *option.others]
        parameters.append(_parameter(option.name, kind, typer.Option(None, *names)))
    return parameters


def _all(model: type[Options]) -> list[Described]:
    return [*(option for rows in describe(model).values() for option in rows), *EVERY_COMMAND]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def take_positional(model: type[Options], words: Sequence[str], flags: dict[str, Any]) -> None:
    """Give the positional words to the fields that take them, in order; a list field takes all that are left, but for
    one for each field after it.

    Raises:
        UsageError: There are more words than fields.
    """
    left = list(words)
    places = {name: shape_of(field).many for name, field in model.model_fields.items() if flag_of(field).positional}
    takers = [name for name, many in places.items() if many or name not in flags]
    for index, name in enumerate(takers):
        if not left:
            break
        if places[name]:
            end = len(left) - sum(not places[other] for other in takers[index + 1 :])
            end = max(end, 0 if name in flags else 1)
            flags[name], left = [*flags.get(name, []), *left[:end]], left[end:]
        else:
            flags[name], left = left[0], left[1:]
    if left:
        raise UsageError(f"unexpected argument {left[0]!r}", hint="a flag's value comes right after the flag")


def rewrite(model: type[Options], words: Sequence[str]) -> list[str]:
    """Put the reference's forms into Typer's.

    `--flag True` becomes `--flag`, `--flag False` becomes `--no-flag`, `--list a b` becomes `--list a --list b`, and a
    choice that may stand alone gets its value. A list ends at the next flag, at `--`, or at the first word that cannot
    be one of its values.

    Raises:
        UsageError: A flag is unknown or lacks its value; all such problems at once.
    """
    flags = _flags(model)
    problems: list[str] = []
    result: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            result += [word, *left]
            break
        if not word.startswith("-") or word == "-":
            result.append(word)
            continue
        if word in HELP:
            return [word]
        head, equals, value = _split(word, flags)
        if head not in flags:
            problems.append(f"no such option: {head}; {_suggestion(head, flags)}")
            continue
        long, shape = flags[head].flag, flags[head].shape
        if shape.kind is bool:
            if not equals and left and left[0].lower() in TRUE | FALSE and head != flags[head].off:
                value, equals = left.pop(0), "="
            if equals and head == flags[head].off:
                problems.append(f"{head} takes no value (given: {value!r})")
            elif equals and value.lower() not in TRUE | FALSE:
                problems.append(f"{head}: takes True or False (given: {value!r})")
            else:
                off = value.lower() in FALSE
                if not (off and flags[head].only_on):
                    result.append("--no-" + long[2:] if off else head)
            continue
        if flags[head].bare and not equals and not (left and _is_value(left[0], flags[head])):
            result += [long, str(flags[head].bare)]
            continue
        values = [value] if equals else []
        # Text may look like a flag, `--- {}`, but if it is one of ours then the value was forgotten.
        if not equals and left and hyphenate(left[0].partition("=")[0]) not in flags:
            values.append(left.pop(0))
            while shape.many and left and belongs(left[0], flags[head]):
                values.append(left.pop(0))
        if not values:
            hint = f"; if that is the text, write {head}={left[0]}" if left and shape.kind is str else ""
            problems.append(f"{head} needs a value{hint}")
        result += [part for item in values for part in (long, item)]
    if problems:
        raise UsageError("\n       ".join(problems))
    return result


def _flags(model: type[Options]) -> dict[str, Described]:
    """Every spelling of every flag."""
    return {spelling: option for option in _all(model) for spelling in option.spellings}


def _split(word: str, flags: dict[str, Described]) -> tuple[str, str, str]:
    """Flag, whether a value is attached, and the value: `--range=2-200`, `-n15`, `-n=15`."""
    head, equals, value = word.partition("=")
    head = hyphenate(head) if head.startswith("--") else head
    if head not in flags and word[:2] in flags and not word.startswith("--"):
        return word[:2], "=", word[2:]
    return head, equals, value


def _suggestion(head: str, flags: dict[str, Described]) -> str:
    if not head.startswith("--") and "-" + head in flags:
        return f"did you mean `-{head}`?"
    return did_you_mean(head, [flag for flag in flags if flag.startswith("--")])


def _is_value(word: str, option: Described) -> bool:
    """Whether the word after an option that may stand alone is its value."""
    if option.pattern is not None:
        return re.fullmatch(option.pattern, word) is not None
    return word.lower() in TRUE | FALSE | set(option.shape.choices)


def config_text(command: str, resolved: Resolved) -> str:
    """The options as YAML that `--config` reads, each line with its origin in a comment."""
    values = resolved.options.model_dump(mode="json")
    lines = [f"# bgectl {command}"]
    for name, source in resolved.sources.items():
        secret = name == "token" and values[name]
        lines.append(f"# token: not shown  # {source}" if secret else f"{name}: {yaml_value(values[name])}  # {source}")
    return "\n".join(lines)
