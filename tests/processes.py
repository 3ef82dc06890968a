"""A function on several processes that are joined by gloo, and the memory that a run takes."""

import multiprocessing
import os
import socket
import subprocess
import sys
import traceback

import torch


def run_distributed(function, ranks, folder, *arguments, join=True):
    """Call `function(rank, *arguments)` in forked processes; returns what they return, by rank.

    `join` connects them by gloo first; without it they only have the variables that torchrun sets.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_call, args=(function, rank, ranks, port, folder, arguments, join))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    alive = [process.kill() for process in processes if process.is_alive()]
    said = [path.read_text() for path in sorted(folder.glob("failed-*"))]
    assert not said, said[0]
    assert not alive, "a process hangs"
    return [torch.load(folder / f"result-{rank}.pt") for rank in range(ranks)]


def _call(function, rank, ranks, port, folder, arguments, join):
    try:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        from accelerate.state import AcceleratorState, PartialState

        # What the parent process knows of itself.
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
        torch.set_num_threads(1)
        if join:
            torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
        torch.save(function(rank, *arguments), folder / f"result-{rank}.pt")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        code = 0
    except BaseException:
        (folder / f"failed-{rank}").write_text(traceback.format_exc())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_of(words):
    """Peak memory of a run of the command, in MiB, and what it said on stderr.

    Between the two stands a small process: one that is started by the tests themselves begins with their own peak.
    """
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "bgectl", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024, done.stderr
