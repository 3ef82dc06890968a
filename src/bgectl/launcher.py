"""The launcher's process: torch.distributed.run, with one line for the error of the process that failed.

Started by `bgectl.launch` as `python -m bgectl.launcher cpu|cuda|auto [--debug] -- TORCHRUN-WORDS -- BGECTL-WORDS`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from bgectl import console, signals
from bgectl.launch import LAUNCHED

SECONDS_TO_STOP = 600
"""How long the processes may take to finish their step and write a checkpoint after Ctrl-C or SIGTERM."""


STOPPED = (130, 143)
"""Exit codes after Ctrl-C and SIGTERM, of which the process itself has told."""


def main(words: list[str]) -> int:
    """Run the processes and return the exit code."""
    first = words.index("--")
    second = words.index("--", first + 1)
    device, debug, command = words[0], "--debug" in words[:first], words[second + 1 :]
    prepare(os.environ, restarts="--max-restarts=0" not in words[first + 1 : second])
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = torchrun.parse_args([*words[first + 1 : second], "-m", "bgectl"])  # type: ignore[no-untyped-call]
    # Not by way of its parser, which takes some of our flags for the beginnings of its own.
    arguments.training_script_args = command
    wanted = int(arguments.nproc_per_node)
    if device != "cpu" and not enough_gpus(wanted, needed=device == "cuda"):
        return 2
    cores = max(1, (os.cpu_count() or 1) // wanted)
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    if not debug and not console.verbose():
        # Its loggers set levels of their own, and what they say of a failure is longer than the failure.
        logging.disable(logging.CRITICAL)
    with tempfile.NamedTemporaryFile(prefix="bgectl-") as last_words:
        os.environ[signals.LAST_WORDS] = last_words.name
        try:
            torchrun.run(arguments)  # type: ignore[no-untyped-call]
        except ChildFailedError as problem:
            return tell(problem.failures)
        except SignalException as problem:
            if left := last_words.read():
                console.error(**json.loads(left))
            return 128 + int(problem.sigval)
        except Exception as problem:
            if debug:
                raise
            console.error(f"the processes could not be started: {problem}", hint="`--debug` shows more")
            return 1
    return 0


def prepare(environment: Any, *, restarts: bool) -> None:
    """Set what the processes and torch.distributed.run read.

    Args:
        environment: This process's.
        restarts: Processes may be started again.
    """
    environment[LAUNCHED] = "1"
    if restarts:
        # Without it, processes that are started again meet the dead store of those before them. With it, a port is
        # chosen seconds before they listen at it, and another program may have it by then.
        environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))


def enough_gpus(wanted: int, *, needed: bool) -> bool:
    """Whether this machine has the GPUs, or has none and needs none; a message where not."""
    import torch

    there = torch.cuda.device_count()
    if there >= wanted or (not there and not needed):
        return True
    hint = "--nproc N in place of it runs N processes on a CPU" if not there else f"--gpus {there} uses all"
    shown = "no GPU" if not there else f"{there} GPU{'s' * (there > 1)}"
    console.error(f"--gpus: this machine has {shown}, not {wanted}", hint=hint)
    return False


def tell(failures: Mapping[int, Any]) -> int:
    """Say what the first process to fail died of, once; returns its exit code.

    Args:
        failures: Rank → torch's ProcessFailure.
    """
    told = {rank: failure.error_file_data.get("bgectl") for rank, failure in failures.items()}
    own = {rank: said for rank, said in told.items() if said}
    # SIGTERM is what the launcher ends the others by.
    killed = {
        rank for rank, failure in failures.items() if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
    }
    if killed and all(said["lost_connection"] for said in own.values()):
        failures = {rank: failures[rank] for rank in killed}
    elif own:
        # When one process fails, the others lose their connection to it and fail too, a little later.
        rank, said = min(own.items(), key=lambda item: (item[1]["lost_connection"], item[1]["time"]))
        console.error(said["message"], hint=said["hint"])
        return int(said["exit_code"])
    rank, failure = min(failures.items(), key=lambda item: (item[1].timestamp, item[0]))
    if failure.exitcode < 0:
        name = failure.signal_name()
        hint = "the system kills processes when memory runs out" if name == "SIGKILL" else None
        console.error(f"process {rank} was ended by {name}", hint=hint)
        return 128 - int(failure.exitcode)
    if failure.exitcode in STOPPED:
        return int(failure.exitcode)
    console.error(f"process {rank} ended with code {failure.exitcode}")
    return int(failure.exitcode)


def program() -> int:
    """`main` with what this process was started by, also where Ctrl-C comes before torch's launcher can look at it."""
    with signals.handled(last=True), console.streams():
        try:
            return main(sys.argv[1:])
        except KeyboardInterrupt:
            told = signals.interruption()
            console.clear_line()
            console.error(told.message, hint=told.hint)
            return told.exit_code


if __name__ == "__main__":
    ending = program()
    if ending in STOPPED:
        signals.leave(ending)
    sys.exit(ending)
