"""One stage as a process of its own, which tells what it does in lines of JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bgectl import console
from bgectl.errors import WITH_PARENT, BgectlError, Interrupted
from bgectl.options.yaml_file import yaml_value
from bgectl.pipeline.plan import Stage
from bgectl.pipeline.view import of_progress

GO_ON = "`bgectl run` goes on from there"


class StageFailed(BgectlError):
    """A stage ended with an error, which is told as its own.

    Args:
        message: What it said.
        exit_code: What it ended with.
        hint: What to do.
        printed: What it printed on stdout, such as the problems of the data.
    """

    def __init__(self, message: str, *, exit_code: int, hint: str | None, printed: str) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
        self.printed = printed


def run_stage(stage: Stage, more: dict[str, Any], folder: Path, heard: Callable[[dict[str, Any]], None]) -> str:
    """Run a stage to its end.

    Args:
        stage: The stage.
        more: Options beside its own, such as that training goes on.
        folder: For its options, what it printed (`NAME.out`) and what it said (`NAME.log`).
        heard: Called with each thing it says.

    Returns:
        What it printed on stdout.

    Raises:
        StageFailed: It failed; the error is what it said last.
        Interrupted: By a signal, which it was told of too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = folder / f"{stage.name}.yaml"
    values = {**stage.options.model_dump(mode="json", exclude_unset=True), **more}
    token = values.pop("token", None)
    options.write_text("".join(f"{name}: {yaml_value(value)}\n" for name, value in values.items()), encoding="utf-8")
    command = [sys.executable, "-m", "bgectl", *stage.command.split(), "--config", str(options)]
    environment = {**os.environ, console.LOG_FORMAT: "json", WITH_PARENT: str(os.getpid())}
    if token:
        environment["HF_TOKEN"] = str(token)
    last: dict[str, Any] = {}
    with (
        (folder / f"{stage.name}.out").open("w+b") as out,
        (folder / f"{stage.name}.log").open("w", encoding="utf-8") as log,
        passed_on() as passing,
        # A session of its own: Ctrl-C reaches it once, by us.
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, env=environment,
            start_new_session=True, text=True, encoding="utf-8", errors="replace",
        ) as process,
    ):  # fmt: skip
        passing.to(process)
        assert process.stderr is not None
        try:
            for line in process.stderr:
                said = _said(line)
                if said.get("level") != "progress" or "loss" in said:
                    log.write(told(said) + "\n")
                    log.flush()
                if said.get("level") == "error":
                    last = said
                heard(said)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        out.seek(0)
        printed = out.read().decode("utf-8", "replace")
    if passing.seen:
        message = str(last.get("message") or "interrupted")
        raise Interrupted(f"{stage.name}: {message}", signal=passing.seen[0], hint=GO_ON)
    if code:
        why = "what it found is above" if printed and not last else ended(code)
        raise StageFailed(
            f"{stage.name}: {last.get('message') or why}", exit_code=code if code in (1, 2) else 1, printed=printed,
            hint="; ".join(filter(None, [last.get("hint"), f"all it said is in {folder / stage.name}.log"])),
        )  # fmt: skip
    return printed


def _said(line: str) -> dict[str, Any]:
    """A line of the log; what is no JSON comes from a library."""
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"level": "warning", "message": line.rstrip("\n")}


def told(said: dict[str, Any]) -> str:
    """What was said as a line of text."""
    if isinstance(table := said.get("table"), dict):
        lines = [table.get("title", ""), "\t".join(table.get("columns", []))]
        return "\n".join([*lines, *("\t".join(row) for row in table.get("rows", []))])
    if said.get("level") == "progress":
        return of_progress(said)
    level = said.get("level")
    start = f"{level}: " if level in ("warning", "error") else ""
    return f"{start}{said.get('message', '')}" + (f"\nhint: {said['hint']}" if said.get("hint") else "")


def ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
    return f"was ended by {name}" + ("; the system kills processes when memory runs out" if name == "SIGKILL" else "")


class Passing:
    """Passes signals on to a process; what comes before there is one is passed on then.

    Attributes:
        seen: The signals that came.
    """

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._process: subprocess.Popen[str] | None = None

    def note(self, number: int, _frame: object) -> None:
        """The handler."""
        self.seen.append(number)
        if self._process is not None:
            self._process.send_signal(number)

    def to(self, process: subprocess.Popen[str]) -> None:
        """From here on, to this process."""
        self._process = process
        for number in self.seen[:1]:
            process.send_signal(number)


@contextmanager
def passed_on() -> Iterator[Passing]:
    """Pass Ctrl-C and SIGTERM on to a process, and go on waiting for its orderly end."""
    passing = Passing()
    # A shell lets what it starts in the background ignore Ctrl-C.
    heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    former = {number: signal.signal(number, passing.note) for number in heeded}
    try:
        yield passing
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
