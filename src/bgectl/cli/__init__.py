"""The `bgectl` program: what happens between its start and its exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from bgectl import console
from bgectl.errors import BgectlError


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the program and exit with its code; see `bgectl.errors` for the codes."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(list(words))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe went away, so there is nobody left to tell; Python itself would write once more at its
        # end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Run a command line and tell its problems on stderr; returns the exit code."""
    debug = "--debug" in words
    try:
        from bgectl.cli import complete

        if complete.VARIABLE in os.environ:
            text, code = complete.answer(os.environ)
            print(text)
            return code
        from bgectl.cli import app

        return app.run(words)
    except BgectlError as problem:
        if debug:
            raise
        place = f"{problem.where}: " if problem.where else ""
        console.error(place + problem.message, hint=problem.hint)
        return problem.exit_code
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    except BrokenPipeError:
        raise
    except OSError as problem:
        if debug:
            raise
        console.error(f"{problem.filename or 'output'}: {problem.strerror or problem}")
        return 1
    except Exception as problem:
        if debug:
            raise
        text = str(problem).strip() or type(problem).__name__
        console.error(
            f"{type(problem).__name__}: {text}", hint="`--debug` shows where; please report it if it is a bug"
        )
        return 1
