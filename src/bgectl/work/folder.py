"""The work folder: where it is, and what lies in it only while a run lasts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bgectl import distributed, signals
from bgectl.atomic import put, sweep_parts
from bgectl.work.texts import digest_of
from bgectl.work.vault import Vault, kept, unusable

NAME = ".bgectl"
LOCK = "lock"
SECONDS_TO_LOCK = 3600
"""How old a run's folder without a lock is when it is surely nobody's."""
TAG_FILE, IGNORE_FILE = "CACHEDIR.TAG", ".gitignore"
TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# Made by bgectl. What lies here can be computed again.\n"
"""What tells backup programs that a folder need not be kept (bford.info/cachedir)."""


def work_folder(given: Path | None, output: Path) -> Path:
    """The folder: the one given, else a hidden one beside the output; made if need be.

    Raises:
        RunError: It cannot be made.
    """
    beside = Path.cwd() if str(output) == "-" or not output.parent.is_dir() else output.parent
    if output.exists() and not output.is_file():
        beside = Path.cwd()
    folder = given or beside / NAME
    try:
        if not (folder / TAG_FILE).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            put(folder / IGNORE_FILE, b"*\n")
            put(folder / TAG_FILE, TAG)
    except OSError as problem:
        raise unusable(folder, problem) from problem
    return folder


def open_vault(folder: Path, kind: str, about: Mapping[str, Any], **said: object) -> Vault:
    """The values of one kind, in a folder of their own that is named by what they depend on.

    Args:
        folder: The work folder.
        kind: A word for a person.
        about: What they depend on.
        said: What is noted beside, and does not count.
    """
    text = json.dumps(dict(about), sort_keys=True).encode()
    return Vault(folder / f"{kind}-{digest_of(text)}", {**about, **said})


@contextlib.contextmanager
def run_folder(folder: Path) -> Iterator[Path]:
    """A folder for this run alone, the same for all its processes; it goes when they end.

    Raises:
        RunError: It cannot be made.
    """
    if distributed.rank():
        yield Path(distributed.from_first(None))
        return
    try:
        sweep(folder)
        own = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
        lock = (own / LOCK).open("wb")
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        raise unusable(folder, problem) from problem
    kept.clear()
    signals.going_on(lambda: interrupted(folder))
    with lock, signals.half_written(own):
        try:
            distributed.from_first(str(own))
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)
            leave_if_empty(folder)


def interrupted(folder: Path) -> tuple[str, str | None]:
    """What a run says that a signal ended, and how to go on."""
    if distributed.world() > 1:
        # This process knows of its own part only.
        return f"interrupted; what was computed is kept in {folder}", "the same command goes on from there"
    counts: Counter[str] = Counter()
    for unit, count in kept.values():
        counts[unit] += count
    if not counts.total():
        return "interrupted; nothing was written", None
    said = " and ".join(f"{count:,} {unit}" for unit, count in counts.items() if count)
    return f"interrupted; {said} are kept in {folder}", "the same command goes on from there"


def leave_if_empty(folder: Path) -> None:
    """Delete the work folder where nothing was kept in it."""
    own = {folder / name for name in (TAG_FILE, IGNORE_FILE)}
    with contextlib.suppress(OSError):
        if set(folder.iterdir()) <= own:
            shutil.rmtree(folder)


def sweep(folder: Path) -> None:
    """Delete what runs that were killed left: nobody holds their locks."""
    sweep_parts(folder)
    for left in folder.glob("run-*"):
        if not (left / LOCK).exists():
            # Killed before it made one, or about to make it.
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > SECONDS_TO_LOCK:
                    shutil.rmtree(left, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), (left / LOCK).open("r+b") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
