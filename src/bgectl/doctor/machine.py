"""Disks, shared memory and limits of this machine."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bgectl.doctor.finding import Finding

LITTLE = 10 << 30
"""Bytes: a base model with its optimiser states and a few checkpoints takes about that."""
SHARED = Path("/dev/shm")
SMALL_SHARED = 256 << 20
"""Bytes: loader workers pass batches through it; containers get 64 MiB if nobody asks for more."""
FEW_FILES = 1024


def machine() -> Iterator[Finding]:
    """Everything that is no package."""
    yield disk("working-directory", Path.cwd())
    yield temporary()
    yield shared_memory()
    yield open_files()


def disk(check: str, folder: Path) -> Finding:
    """Free space of a folder that something is to be written into, and whether it may be."""
    free = shutil.disk_usage(folder).free
    facts = {"path": str(folder), "free": free, "writable": _writable(folder)}
    if not facts["writable"]:
        return Finding(check, "warning", f"{folder} may not be written to", "change to a folder of yours", facts)
    told = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < LITTLE:
        return Finding(check, "warning", f"{told}: little for a model with checkpoints",
                       "free some space, or give an --output-dir on a larger disk", facts)  # fmt: skip
    return Finding(check, "ok", told, None, facts)


def temporary() -> Finding:
    """The folder for temporary files; training unpacks into it."""
    try:
        folder = Path(tempfile.gettempdir())
        with tempfile.NamedTemporaryFile(prefix="bgectl-", dir=folder) as stream:
            stream.write(b"x")
            stream.flush()
        free = shutil.disk_usage(folder).free
    except OSError as problem:
        reason = problem.strerror or str(problem)
        facts: dict[str, Any] = {"path": os.environ.get("TMPDIR"), "free": None, "writable": False}
        return Finding("temporary-folder", "error", f"nothing can be written there: {reason}",
                       "export TMPDIR=a folder that may be written to and has space", facts)  # fmt: skip
    facts = {"path": str(folder), "free": free, "writable": True}
    asked = os.environ.get("TMPDIR")
    if asked and Path(asked).resolve() != folder.resolve():
        return Finding("temporary-folder", "warning", f"TMPDIR={asked} cannot be used, {folder} is",
                       "export TMPDIR=a folder that is there", facts)  # fmt: skip
    if free < 1 << 30:
        return Finding("temporary-folder", "warning", f"{folder}, {free / 2**30:.1f} GiB free",
                       "export TMPDIR=a folder on a larger disk", facts)  # fmt: skip
    return Finding("temporary-folder", "ok", f"{folder}, {free / 2**30:.1f} GiB free", None, facts)


def shared_memory() -> Finding:
    """/dev/shm, through which loader workers pass their batches."""
    if not SHARED.is_dir():
        return Finding("shared-memory", "absent", f"there is no {SHARED} here", None, {"total": None, "free": None})
    usage = shutil.disk_usage(SHARED)
    facts = {"total": usage.total, "free": usage.free}
    told = f"{SHARED}, {usage.free / 2**30:.2f} of {usage.total / 2**30:.2f} GiB free"
    if usage.free < SMALL_SHARED:
        return Finding("shared-memory", "warning", f"{told}: loader workers may die of it",
                       "docker run --shm-size=8g, or train with --dataloader-num-workers 0", facts)  # fmt: skip
    return Finding("shared-memory", "ok", told, None, facts)


def open_files() -> Finding:
    """How many files a process may hold open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {"soft": soft, "hard": hard}
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        return Finding(
            "open-files", "warning", f"{soft} at a time: loader workers may run out", "ulimit -n 65536", facts
        )
    return Finding("open-files", "ok", f"{soft:,} at a time" if soft > 0 else "without limit", None, facts)


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK)
