"""Checkpoints of a run: which are whole, which is the newest, and how a run goes on from one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bgectl.errors import RunError, UsageError

WHOLE = "bgectl-checkpoint.json"
"""Written into a checkpoint when all else in it is written: the sizes of its files, and what bgectl keeps beside
transformers' own state."""


def finish(checkpoint: Path, state: Mapping[str, Any], *, keep: int | None) -> None:
    """Declare a checkpoint whole, then delete the oldest beyond `keep`.

    Args:
        checkpoint: The folder, written completely by all processes.
        state: What the run wants to know when it goes on.
        keep: Checkpoints to keep; None keeps all.
    """
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in _files(checkpoint)}
    mark = checkpoint / f".{WHOLE}.part"
    with mark.open("w", encoding="utf-8") as stream:
        json.dump({"files": sizes, "state": state}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    mark.replace(checkpoint / WHOLE)
    # What a run that was killed left half-written is older than this one, and of no use.
    for step, path in numbered(checkpoint.parent):
        if step < step_of(checkpoint) and not is_whole(path):
            shutil.rmtree(path, ignore_errors=True)
    for _, path in [] if keep is None else numbered(checkpoint.parent)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was declared whole and its files still have their sizes."""
    try:
        sizes = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def newest(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps; None where there is none."""
    return next((path for _, path in reversed(numbered(folder)) if is_whole(path)), None)


def chosen(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint that `--resume` means; None for a run from the start.

    Args:
        resume: `auto` (`true` and `last` mean the same), a folder, or None.
        folder: The output folder.

    Raises:
        UsageError: The folder named is no checkpoint, or is not whole.
    """
    if resume is None or resume.lower() in ("false", "no"):
        return None
    if resume.lower() in ("auto", "true", "last", "yes"):
        return newest(folder)
    path = Path(resume)
    where = f"--resume {resume}"
    if not path.is_dir():
        raise UsageError("no such folder", where=where, hint="`auto` takes the newest checkpoint in the output folder")
    if not is_whole(path):
        found = newest(path)
        hint = f"its newest checkpoint is {found}" if found else "checkpoints are made every --save-steps"
        raise UsageError("is not a whole checkpoint of bgectl", where=where, hint=hint)
    return path


def state_of(checkpoint: Path) -> dict[str, Any]:
    """What the run kept for itself.

    Raises:
        RunError: It cannot be read.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError) as problem:
        raise RunError(f"cannot be read: {problem}", where=str(checkpoint)) from problem
    return state


def refuse_another_run(state: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """A checkpoint goes on with the data, batches and processes it was made with.

    Raises:
        UsageError: Names what is different.
    """
    different = [
        f"{name} was {state.get(name)!r} and is {value!r}" for name, value in now.items() if state.get(name) != value
    ]
    if different:
        raise UsageError(
            f"the run was another one: {'; '.join(different)}", where=f"--resume {checkpoint}",
            hint="give the options it was started with, or start anew in another folder",
        )  # fmt: skip


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith("."))


def step_of(checkpoint: Path) -> int:
    """The steps a folder's name tells of; -1 where it is no name of a checkpoint."""
    found = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(found[1]) if found else -1


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the folders that are named like checkpoints, fewest steps first."""
    if not folder.is_dir():
        return []
    return sorted((step_of(path), path) for path in folder.iterdir() if step_of(path) >= 0 and path.is_dir())
