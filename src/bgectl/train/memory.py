"""What a device's memory is asked: how much is free, what was held at most, and whether an error says that it is full.

The rest of the code knows no device: it takes a `Meter`, of which a test can have its own.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

FULL = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip
"""Words of a RuntimeError that means a full memory: CUDA's, and torch's allocator on a CPU."""

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Meter:
    """A device's memory; all numbers are bytes.

    Args:
        name: For the user.
        reset: Begin to look for a new peak.
        peak: The most held since `reset`: by tensors, and by the allocator with what it keeps ready. On a CPU both are
            the resident set of the whole process.
        room: What is free, beside what is held now, and the whole memory.
        held: What is held now, in the sense of `peak`'s first number.
        wait: Return when the device has done all that it was told to do.
        forget: Give what is not held back to the device.
        kills: Whether asking for too much may end the process rather than raise an error.
    """

    name: str
    reset: Callable[[], None]
    peak: Callable[[], tuple[int, int]]
    room: Callable[[], tuple[int, int]]
    held: Callable[[], int]
    wait: Callable[[], None]
    forget: Callable[[], None]
    kills: bool = False


def is_full(problem: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in FULL)


def meter_of(device: torch.device) -> Meter:
    """The meter of a device."""
    return gpu_meter(device) if device.type == "cuda" else cpu_meter()


def gpu_meter(device: torch.device) -> Meter:
    """The meter of a GPU, as torch's allocator counts."""
    cuda = torch.cuda

    def room() -> tuple[int, int]:
        free, total = cuda.mem_get_info(device)
        # What the allocator keeps ready can be had.
        return free + cuda.memory_reserved(device) - cuda.memory_allocated(device), total

    return Meter(
        cuda.get_device_name(device),
        reset=lambda: cuda.reset_peak_memory_stats(device),
        peak=lambda: (cuda.max_memory_allocated(device), cuda.max_memory_reserved(device)),
        room=room,
        held=lambda: cuda.memory_allocated(device),
        wait=lambda: cuda.synchronize(device),
        forget=cuda.empty_cache,
    )


def cpu_meter() -> Meter:
    """The meter of this process: its resident set."""

    def peak() -> tuple[int, int]:
        most = status("VmHWM") or peak_ever()
        return most, most

    def held() -> int:
        return status("VmRSS") or peak_ever()

    return Meter("this CPU", reset_peak, peak, cpu_room, held, wait=lambda: None, forget=trim, kills=True)


def status(name: str) -> int | None:
    """Bytes that the kernel tells of this process under a name such as VmRSS; None where it tells nothing."""
    with suppress(OSError, ValueError):
        for line in (PROC / "self" / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def peak_ever() -> int:
    """The most bytes that this process ever held in memory."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak() -> None:
    """Let the kernel count this process's peak anew; where it does not, the peak is the one since the start."""
    trim()
    with suppress(OSError):
        (PROC / "self" / "clear_refs").write_text("5")


def trim() -> None:
    """Give freed memory back to the system, where the C library can; else it counts as held."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def cpu_room() -> tuple[int, int]:
    """Bytes that this process can still take, by the machine, its control group and its own limit; and those of the
    machine, or of the group where that has fewer."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = [total]
    with suppress(OSError, ValueError, StopIteration):
        lines = (PROC / "meminfo").read_text().splitlines()
        free.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):
        # Of the group's own root, which is what a container sees.
        most = int((CGROUP / "memory.max").read_text())
        total = min(total, most)
        free.append(most - int((CGROUP / "memory.current").read_text()))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    size = status("VmSize")
    if limit != resource.RLIM_INFINITY and size is not None:
        free.append(limit - size)
    return max(min(free), 0), total
