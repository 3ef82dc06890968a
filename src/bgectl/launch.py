"""Several processes: whether this one is one of them, and how it becomes their launcher.

A run on several GPUs is started by replacing this process with a launcher, which starts the same command once for each
process (torch.distributed.run). Under torchrun or SLURM the processes are there already. Nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

LAUNCHED = "BGECTL_LAUNCHED"
"""Set for the processes that our own launcher starts: it tells their errors, and they need not."""

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torch.distributed.run looks for what a process died of."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that train together."""

    rank: int = 0
    world: int = 1
    restarts: int = 0
    """How often all processes were started again."""

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place, by the variables that torchrun sets."""
    if "LOCAL_RANK" not in environment:
        return Place()
    numbers = (environment.get(name, "0") for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    rank, world, restarts = (int(number) if number.isdigit() else 0 for number in numbers)
    return Place(rank, max(world, 1), restarts)


def adopt_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Under `srun` with several tasks, set the variables that torchrun would set.

    The first node of the step is where the processes meet, at a port made of the job's number.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_STEP_TASKS", ""))
    if "LOCAL_RANK" in environment or not tasks.isdigit() or int(tasks) < 2 or "SLURM_PROCID" not in environment:
        return
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "127.0.0.1"
    job = environment.get("SLURM_JOB_ID", "0")
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", "0")
    environment["WORLD_SIZE"] = tasks
    environment.setdefault("MASTER_ADDR", first_host(nodes))
    environment.setdefault("MASTER_PORT", str(20_000 + int(job) % 20_000 if job.isdigit() else 29_500))


def first_host(nodes: str) -> str:
    """The first host of a SLURM list: `gpu[03-05,9],cpu1` → `gpu03`."""
    found = re.match(r"([^,\[]*)(?:\[([^\],-]*)[^\]]*\]([^,]*))?", nodes)
    assert found
    return "".join(part or "" for part in found.groups())


def launch(
    *, processes: int, device: str, nnodes: int = 1, node_rank: int | None = None, endpoint: str | None = None,
    meeting: str = "bgectl", max_restarts: int = 0, words: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Become the launcher of this command's processes, where there is something to launch; otherwise do nothing.

    Args:
        processes: Processes on this machine.
        device: `cpu`; `cuda`, of which each process takes one; or `auto`, GPUs if there are any.
        nnodes: Machines.
        node_rank: This machine's number.
        endpoint: `host:port` where the machines meet.
        meeting: Name of the meeting.
        max_restarts: How often to start again after a failure.
        words: The command line after `bgectl`; by default this process's own.
    """
    adopt_slurm()
    if LAUNCHED in os.environ:
        end_with_parent()
    if "LOCAL_RANK" in os.environ or (processes == 1 and nnodes == 1 and max_restarts == 0):
        return
    become(launcher_words(
        processes=processes, device=device, nnodes=nnodes, node_rank=node_rank, endpoint=endpoint, meeting=meeting,
        max_restarts=max_restarts, words=sys.argv[1:] if words is None else words,
    ))  # fmt: skip


def launcher_words(
    *, processes: int, device: str, nnodes: int, node_rank: int | None, endpoint: str | None, meeting: str,
    max_restarts: int, words: Sequence[str],
) -> list[str]:  # fmt: skip
    """The launcher's command line after the name of python."""
    elastic = [f"--nproc-per-node={processes}", f"--nnodes={nnodes}", f"--max-restarts={max_restarts}"]
    if endpoint is None:
        elastic.append("--standalone")
    else:
        elastic += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={meeting}"]
        if node_rank is not None:
            elastic.append(f"--rdzv-conf=is_host={int(node_rank == 0)}")
    debug = ["--debug"] if "--debug" in words else []
    return ["-m", "bgectl.launcher", device, *debug, "--", *elastic, "--", *words]


def become(words: Sequence[str]) -> NoReturn:
    """Replace this process; what it said is written first."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *words])


def leave_to_launcher(problem: BaseException, message: str, hint: str | None, code: int) -> bool:
    """Write an error where the launcher looks for it; whether that was possible."""
    import json

    path = os.environ.get(ERROR_FILE)
    if not path or LAUNCHED not in os.environ:
        return False
    lost = type(problem).__name__ == "DistBackendError" or any(word in message for word in LOST)
    now = time.time()
    said = {"message": message, "hint": hint, "exit_code": code, "time": now, "lost_connection": lost}
    try:
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({"message": message, "timestamp": str(int(now)), "bgectl": said}, stream)
    except OSError:
        return False
    return True


LOST = ("Connection reset", "Connection closed", "closed by peer", "Broken pipe", "gloo", "NCCL")
"""Words of errors that only say that another process is gone."""


def end_with_parent(every: float = 1.0, started_by: int | None = None) -> None:
    """End this process when the one that started it is gone: one that is killed cannot end its processes itself.

    Args:
        every: Seconds between two looks.
        started_by: Its number, if it is known; it may be gone already.
    """
    parent = os.getppid() if started_by is None else started_by
    with contextlib.suppress(Exception):
        # Linux does it at once, also after this process has become the launcher.
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        os._exit(128 + 9)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os.kill(os.getpid(), 9)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
