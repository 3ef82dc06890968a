"""The `bgectl` program: what happens between its start and its exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from bgectl import console, signals
from bgectl.errors import WITH_PARENT, BgectlError, Interrupted, UsageError


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the program and exit with its code; see `bgectl.errors` for the codes."""
    words = sys.argv[1:] if arguments is None else arguments
    before = {name: os.environ.get(name) for name in (console.LOG_FORMAT, console.VERBOSITY)}
    try:
        console.choose(words)
        with signals.handled(last=arguments is None), console.streams():
            code = _run(list(words))
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe went away, so there is nobody left to tell; Python itself would write once more at its
        # end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    finally:
        # They are this command line's own.
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    if arguments is None and signals.caught():
        signals.leave(code)
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
        check_environment()
        from bgectl.cli import app

        if WITH_PARENT in os.environ:
            from bgectl.launch import end_with_parent

            # Not for the processes that this one starts in turn.
            end_with_parent(started_by=int(os.environ.pop(WITH_PARENT)))
        return app.run(words)
    except Interrupted as problem:
        return _failed(problem, problem.message, problem.hint, problem.exit_code)
    except KeyboardInterrupt as problem:
        return _interrupted(problem)
    except BrokenPipeError:
        raise
    except Exception as problem:
        # An import that was interrupted may call it an error of its own.
        if signals.caught():
            return _interrupted(problem)
        if debug:
            raise
        return _failed(problem, *_in_words(problem))


def _interrupted(problem: BaseException) -> int:
    told = signals.interruption()
    console.clear_line()
    first = os.environ.get("RANK", "0") == "0"
    if "LOCAL_RANK" in os.environ and first and signals.left_to_launcher(told.message, told.hint, signals.caught()):
        return told.exit_code
    return _failed(told.with_traceback(problem.__traceback__), told.message, told.hint, told.exit_code)


def _in_words(problem: Exception) -> tuple[str, str | None, int]:
    """Message, hint and exit code of an error."""
    if isinstance(problem, BgectlError):
        place = f"{problem.where}: " if problem.where else ""
        return place + problem.message, problem.hint, problem.exit_code
    if isinstance(problem, OSError):
        return f"{problem.filename or 'output'}: {problem.strerror or problem}", None, 1
    text = str(problem).strip() or type(problem).__name__
    hint = "`--debug` shows where; please report it if it is a bug"
    return f"{type(problem).__name__}: {text}", hint, 1


def check_environment() -> None:
    """Refuse values that messages cannot be shown by.

    Raises:
        UsageError: A variable has such a value.
    """
    for name, known in ((console.LOG_FORMAT, console.FORMATS), (console.VERBOSITY, console.VERBOSITIES)):
        value = os.environ.get(name)
        if value and value not in known:
            raise UsageError(f"is not one of {', '.join(known)} (given: {value!r})", where=name)


def _failed(problem: BaseException, message: str, hint: str | None, code: int) -> int:
    """Tell an error, or leave it to the launcher that started this process, which tells the first one of all."""
    if "LOCAL_RANK" in os.environ and not isinstance(problem, Interrupted):
        from bgectl.launch import leave_to_launcher

        if leave_to_launcher(problem, message, hint, code):
            return code
    rank = os.environ.get("RANK", "0") if "LOCAL_RANK" in os.environ else "0"
    if rank == "0" or not isinstance(problem, BgectlError):
        console.error(message, hint=hint)
    return code
