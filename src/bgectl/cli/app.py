"""The tree of commands; a command's module is imported when the command is called."""

from __future__ import annotations

import difflib
import re
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from bgectl import __version__, console
from bgectl.cli import complete, help
from bgectl.commands import COMMANDS, GROUPS
from bgectl.errors import UsageError

SUMMARY = "Fine-tune BGE text embedders: check data, mine hard negatives, score, train, evaluate."
EPILOG = "Start with `bgectl init`, or `bgectl COMMAND --help`. Files named `-` are stdin or stdout."
EXIT_CODES = [
    ("0", "Success."),
    ("1", "The data has errors, or the run failed."),
    ("2", "The command line or a configuration file is wrong; nothing was begun."),
    ("130, 143", "Ended by Ctrl-C, or by SIGTERM; the message says what was kept and how to go on."),
    ("141", "The reader of the output went away."),
]
ENVIRONMENT = [
    ("BGECTL_LOG_FORMAT", "text or json: as --log-format, which wins over it."),
    ("BGECTL_VERBOSITY", "quiet, normal or verbose: as --quiet and --verbose."),
    ("HF_HOME, HF_TOKEN", "Where models from the hub are kept, and the access token."),
    ("HF_HUB_OFFLINE", "With 1, no network is used: models are taken from folders and from what was downloaded."),
    ("NO_COLOR, FORCE_COLOR", "No colours; colours also where the output is no terminal."),
]
HELP = ("-h", "--help")


class LazyGroup(TyperGroup):
    """A group that knows its commands' names and summaries only."""

    @property
    def prefix(self) -> str:
        """The words before a command's name: `train`, or nothing for the program itself."""
        return self.name if self.name in GROUPS else ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] in HELP:
            typer.echo(ctx.get_help(), err=not args)
            raise typer.Exit(0 if args else 2)
        if args[0].startswith("-"):
            answer_option(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        words = f"{self.prefix} {args[0]}".strip()
        if words in COMMANDS:
            self.commands[args[0]] = import_module(f"bgectl.cli.{re.sub('[ -]', '_', words)}").command()
        elif words not in GROUPS:
            raise UsageError(f"no command `{words}`", hint=_nearest_command(words))
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        rows = [(words, text) for words, text in COMMANDS.items() if words.startswith(self.prefix)]
        options = dict(complete.ROOT_OPTIONS) if not self.prefix else {}
        options[", ".join(HELP)] = options.pop("--help", complete.ROOT_OPTIONS["--help"])
        shown = [(f"{flag} SHELL" if "completion" in flag else flag, text) for flag, text in options.items()]
        usage = " ".join(["bgectl", *self.prefix.split(), "COMMAND [OPTIONS]"])
        summary = GROUPS.get(self.prefix, SUMMARY)
        more = [] if self.prefix else [("Exit codes", EXIT_CODES), ("Environment", ENVIRONMENT)]
        formatter.write(help.page(usage, summary, [("Commands", rows), ("Options", shown), *more], EPILOG))


def _nearest_command(words: str) -> str:
    known = {**{command.split()[-1]: command for command in COMMANDS}, **{name: name for name in (*GROUPS, *COMMANDS)}}
    near = difflib.get_close_matches(words, known, n=1)
    if near:
        return f"did you mean `bgectl {known[near[0]]}`?"
    return f"commands: {', '.join(COMMANDS)}"


def answer_option(args: list[str]) -> NoReturn:
    """Answer an option of `bgectl` itself, which prints something and stops.

    Raises:
        typer.Exit: It was answered.
        UsageError: There is no such option.
    """
    option, _, value = args[0].partition("=")
    if option == "--version":
        print(f"bgectl {__version__}")
    elif option == "--show-completion":
        print(complete.script(value or next(iter(args[1:]), "")))
    elif option == "--install-completion":
        path = complete.script(value or next(iter(args[1:]), ""), install=True)
        console.info(f"wrote {path}; it takes effect in a new shell")
    else:
        raise UsageError(f"no such option: {option}", hint="a command's options come after the command")
    raise typer.Exit


def application() -> TyperGroup:
    """The tree of groups, with a stub for each command."""
    # A help option of Typer's would load pydantic to find out that it was not given.
    root = LazyGroup(name="bgectl", add_help_option=False, rich_markup_mode=None)
    groups: dict[str, TyperGroup] = {"": root}
    for name in GROUPS:
        groups[name] = LazyGroup(name=name, add_help_option=False, rich_markup_mode=None)
        root.add_command(groups[name])
    for words in COMMANDS:
        head, _, tail = words.rpartition(" ")
        groups[head].add_command(TyperCommand(tail, rich_markup_mode=None))
    return root


def run(words: list[str]) -> int:
    """Run a command line.

    Returns:
        The exit code.

    Raises:
        BgectlError: Something the user can mend.
    """
    # Not `main` of Typer's group: it words errors in its own way and gives a broken pipe the code of a failure.
    try:
        with application().make_context("bgectl", words) as context:
            context.command.invoke(context)
    except typer.Exit as ending:
        return ending.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.TyperException as problem:
        raise UsageError(problem.format_message(), hint="`--help` shows what can be given") from None
    return 0
