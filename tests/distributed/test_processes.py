"""Real runs of two processes: they start, fail, stop, are killed and start again as one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from bgectl.train.checkpoints import newest

TWO = ["--nproc", 2]
slow = pytest.mark.slow


def ended(process, seconds=180):
    """(exit code, stderr) of a process."""
    try:
        _, stderr = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, stderr


def until(condition, process, seconds=90):
    """Wait for something that a running process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def same(one, other):
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def processes_of(out):
    """Living processes whose command line names the folder."""
    found = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


@slow
def test_stopped_and_gone_on_with(start, rows, tmp_path):
    """Ctrl-C reaches both processes, one of them speaks, and the run that goes on ends as an unbroken one."""
    words = [*TWO, "--epochs", 40]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, stderr = ended(start(rows, whole, *words))
    assert code == 0, stderr
    assert stderr.count("Training data") == 1
    assert "on each of 2 processes" in stderr
    assert "Warning" not in stderr, "a library's advice is shown"
    assert log_of(whole)[-1]["step"] == 320
    process = start(rows, broken, *words)
    until((broken / "log.jsonl").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    code, stderr = ended(process)
    assert code == 130, stderr
    assert stderr.count("interrupted after step") == 1
    assert stderr.rstrip().endswith("the same command with --resume auto goes on from there")
    assert newest(broken) is not None
    code, stderr = ended(start(rows, broken, *words, "--resume", "auto"))
    assert code == 0, stderr
    assert same(whole, broken)


@slow
def test_killed_process_starts_again(start, rows, tmp_path):
    words = [*TWO, "--epochs", 20, "--save-steps", 20]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert ended(start(rows, whole, *words))[0] == 0
    process = start(rows, broken, *words, "--max-restarts", 2)
    until(lambda: newest(broken), process)
    # The launcher is the oldest, then come the ranks, then their loader processes.
    ranks = [number for number in processes_of(broken) if number != process.pid]
    os.kill(ranks[0], signal.SIGKILL)
    code, stderr = ended(process)
    assert code == 0, stderr
    assert "going on from" in stderr
    assert same(whole, broken)


@slow
def test_killed_launcher_leaves_nobody(start, rows, tmp_path):
    out = tmp_path / "out"
    process = start(rows, out, *TWO, "--epochs", 10_000)
    until((out / "log.jsonl").exists, process)
    assert len(processes_of(out)) > 2
    process.kill()
    process.communicate()
    end = time.monotonic() + 20
    while processes_of(out) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes_of(out) == []


def test_bad_data_is_told_once(start, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "q", "pos": ["p"], "neg": ["n"]}\n{"query": 3}\n')
    code, stderr = ended(start(bad, tmp_path / "out", *TWO))
    assert code == 1
    assert stderr.startswith("error: ")
    assert stderr.count(f"{bad}:2: `query`") == 1
    assert stderr.count("error:") == 1
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


@slow
def test_failing_process_is_told_last_and_once(start, rows, tmp_path, tiny_bert):
    model = tmp_path / "broken"
    model.mkdir()
    for path in (tmp_path / tiny_bert).iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    weights = load_file(model / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][3] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    code, stderr = ended(start(rows, tmp_path / "out", *TWO, model=model))
    assert code == 1
    assert stderr.count("error:") == 1
    lines = stderr.rstrip().splitlines()
    assert lines[-2].startswith("error: the loss of step 1 is nan; its rows: ")
    assert lines[-1].startswith("hint: ")
    assert "Traceback" not in stderr


@slow
def test_two_machines(start, rows, tmp_path):
    """Two launchers that meet on this machine: one plan, one saved folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    out = tmp_path / "out"
    words = ["--nnodes", 2, "--rdzv-endpoint", endpoint]
    both = [start(rows, out, *words, "--node-rank", number) for number in range(2)]
    results = [ended(process) for process in both]
    assert [code for code, _ in results] == [0, 0], results
    assert sorted(stderr.count("trained model") for _, stderr in results) == [0, 1]
    together = tmp_path / "together"
    assert ended(start(rows, together, *TWO))[0] == 0
    assert same(out, together), "two machines do not train as two processes of one"


@slow
def test_started_by_others(start, rows, tmp_path):
    """Under torchrun, or srun, there are processes already; none is launched again."""
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "17", "SLURM_STEP_NODELIST": "localhost"}
    tasks = [
        start(rows, tmp_path / "slurm", *TWO, env={**slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
        for rank in range(2)
    ]
    results = [ended(process) for process in tasks]
    assert [code for code, _ in results] == [0, 0], results
    process = start(rows, tmp_path / "torchrun")
    words = process.args[3:]
    ended_at_once = process.kill()
    assert ended_at_once is None
    process.communicate()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "bgectl", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "on each of 2 processes" in done.stderr
    assert same(tmp_path / "slurm", tmp_path / "torchrun")


@pytest.mark.skipif(torch.cuda.device_count() >= 64, reason="this machine has the GPUs")
def test_more_gpus_than_there_are(bgectl, tmp_path, rows):
    done = bgectl("train", "base", "-m", "m", "-t", rows, "-o", tmp_path / "out", "--gpus", 64)
    assert done.returncode == 2
    assert "not 64" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
