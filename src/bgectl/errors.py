"""The errors a user meets. Anything else that escapes is a bug and is shown as one.

Exit codes: 0 success, 1 the data or the run failed, 2 the command line or a configuration file is wrong,
130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

WITH_PARENT = "BGECTL_WITH_PARENT"
"""Environment variable of a stage of a pipeline: the number of the process that started it, with which it ends."""


class BgectlError(Exception):
    """An error the user can act on.

    Args:
        message: What is wrong, in one sentence.
        where: The place: `file:line:column`, a flag, or a configuration key.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f"\nhint: {self.hint}" if self.hint else ""
        return f"{place}{self.message}{hint}"


class UsageError(BgectlError):
    """The command line or a configuration file asks for something that cannot be."""

    exit_code = 2


class DataError(BgectlError):
    """An input file holds something that cannot be used."""


class Interrupted(BgectlError):
    """Ctrl-C or SIGTERM, after what was being done came to an orderly end.

    Args:
        message: What was kept.
        signal: Its number.
        hint: How to go on.
    """

    def __init__(self, message: str, *, signal: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal


class RunError(BgectlError):
    """The work itself failed: a model that does not load, a full disk, a loss that is not finite."""
