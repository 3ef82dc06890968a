"""The output folder of a run: claiming it, and putting a finished model into it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bgectl.errors import RunError, UsageError
from bgectl.jsonl import plain_mode

MARK = "bgectl-run.json"
"""Lies in every output folder; a folder without it was not made by a run, and nothing in it is ever deleted."""

LOG = "log.jsonl"
BEST = ".best.part"
_BESIDE = ".model.part"
_WHILE_RUNNING = (LOG, BEST, _BESIDE)
"""What a run makes before its model; deleted with it, and where the run did not get to its end."""


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a run could not or should not write into.

    Raises:
        UsageError: It is a file, or is not empty and may not be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file, not a folder", where=f"--output-dir {folder}")
    # A run that failed before its first step leaves the mark alone.
    if not folder.is_dir() or all(entry.name == MARK for entry in folder.iterdir()):
        return
    if not overwrite:
        raise UsageError(
            "the output folder is not empty", where=f"--output-dir {folder}",
            hint="name another one, or delete what an earlier run left there by --overwrite-output-dir",
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


def write_mark(folder: Path, made: list[str]) -> None:
    """Note which entries of the folder are the run's own, checkpoints aside; others are never deleted."""
    text = json.dumps({"made": sorted({*made, *_WHILE_RUNNING})}, indent=1) + "\n"
    (folder / MARK).write_text(text, encoding="utf-8")


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
        write(beside)
        for weights in beside.glob("*.safetensors"):
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
