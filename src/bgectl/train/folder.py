"""The output folder of a run: claiming it, and putting a finished model into it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bgectl.errors import RunError, UsageError
from bgectl.jsonl import plain_mode
from bgectl.signals import half_written
from bgectl.train.checkpoints import is_whole, numbered, step_of

MARK = "bgectl-run.json"
"""Lies in every output folder; a folder without it was not made by a run, and nothing in it is ever deleted."""

LOCK = ".bgectl.lock"
LOG = "log.jsonl"
BEST = ".best.part"
_BESIDE = ".model.part"
_WHILE_RUNNING = (LOG, BEST, _BESIDE)
"""What a run makes before its model; deleted with it, and where the run did not get to its end."""


def check_folder(folder: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Refuse a folder that a run could not or should not write into.

    Args:
        folder: The folder.
        overwrite: What an earlier run left may be deleted.
        resume: The run goes on with what is there.

    Raises:
        UsageError: It is a file, or is not empty and may not be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file, not a folder", where=f"--output-dir {folder}")
    # A run that failed before its first step leaves the mark alone.
    if not folder.is_dir() or all(entry.name in (MARK, LOCK) for entry in folder.iterdir()):
        return
    if resume and (folder / MARK).is_file():
        return
    if not overwrite:
        raise UsageError(
            "the output folder is not empty", where=f"--output-dir {folder}",
            hint="name another one, go on with the run by --resume auto, or delete what an earlier run left there by "
            "--overwrite-output-dir",
        )  # fmt: skip
    if not (folder / MARK).is_file():
        raise UsageError(
            "the output folder was not made by a training run, so nothing in it is deleted",
            where=f"--output-dir {folder}", hint="name another folder, or empty this one yourself",
        )  # fmt: skip


def claim_folder(folder: Path) -> None:
    """Make the folder ready: what an earlier run left is deleted (see `check_folder`), and the mark is set.

    Raises:
        RunError: The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / MARK
        made = json.loads(mark.read_text()).get("made", []) if mark.is_file() else []
        for name in made:
            path = folder / name
            if path.parent != folder or name == "..":
                continue
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if mark.is_file():
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)
        write_mark(folder, [])
    except (OSError, ValueError) as problem:
        raise RunError(f"cannot be used: {problem}", where=f"--output-dir {folder}") from problem


def reclaim_folder(folder: Path, checkpoint: Path) -> None:
    """Make the folder ready for a run that goes on: what is newer than the checkpoint is deleted.

    Raises:
        RunError: The folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for step, path in numbered(folder):
            if not is_whole(path) or (path.parent == checkpoint.parent and step > step_of(checkpoint)):
                shutil.rmtree(path, ignore_errors=True)
        if not (folder / MARK).is_file():
            write_mark(folder, [])
    except OSError as problem:
        raise RunError(f"cannot be used: {problem}", where=f"--output-dir {folder}") from problem


def write_mark(folder: Path, made: list[str]) -> None:
    """Note which entries of the folder are the run's own, checkpoints aside; others are never deleted."""
    text = json.dumps({"made": sorted({*made, *_WHILE_RUNNING})}, indent=1) + "\n"
    beside = folder / f".{MARK}.part"
    beside.write_text(text, encoding="utf-8")
    beside.replace(folder / MARK)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder for this run; the lock goes when the process ends, however it ends.

    Raises:
        UsageError: Another run is using it.
        RunError: The folder cannot be made.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+b")
    except OSError as problem:
        raise RunError(f"cannot be used: {problem.strerror}", where=f"--output-dir {folder}") from problem
    with stream:
        try:
            # Not flock: the loader's processes, which live a little longer, would inherit it.
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise UsageError(
                "another run is writing into the output folder", where=f"--output-dir {folder}",
                hint="name another one, or wait for it to end",
            ) from problem  # fmt: skip
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_model(folder: Path, write: Callable[[Path], None]) -> list[str]:
    """Let `write` fill a folder beside, then move its entries into place, config.json last: a reader who finds a
    config.json finds the rest.

    Returns:
        The names of the entries.

    Raises:
        RunError: The disk is full, or the folder cannot be written.
    """
    beside = folder / _BESIDE
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with half_written(beside):
            write(beside)
        for weights in beside.rglob("*.safetensors"):
            weights.chmod(plain_mode())  # safetensors writes 0600
        entries = sorted(beside.iterdir(), key=lambda path: path.name == "config.json")
        for entry in entries:
            target = folder / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)
        return [entry.name for entry in entries]
    except OSError as problem:
        raise RunError(f"the model cannot be written: {problem.strerror or problem}", where=str(folder)) from problem
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(beside, ignore_errors=True)
