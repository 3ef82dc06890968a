"""Runs that are killed, stopped and gone on with end where an unbroken run ends."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bgectl.cli import main
from bgectl.train.checkpoints import WHOLE, is_whole, newest


@pytest.fixture
def rows(random_rows):
    return random_rows(40, 3)


def command(rows, out, model, *words):
    """Seven steps an epoch of two accumulated batches, dropout on, six epochs, a checkpoint every five steps."""
    return [
        "train", "base", "-m", model, "-t", rows, "-o", out, "--train-group-size", 3, "-b", 3, "--epochs", 6,
        "--gradient-accumulation-steps", 2, "--dataloader-num-workers", 2, "--save-steps", 5, "--learning-rate", 1e-2,
        "--logging-steps", 3, "--sub-batch-tokens", 100, "--gradient-cache", *words,
    ]  # fmt: skip


def in_a_process(words):
    """Start the command in a forked process, a session of its own; libraries are imported already."""

    def call():
        os.setsid()
        torch.set_num_threads(1)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        main([str(word) for word in words])

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def finished(words):
    process = in_a_process(words)
    process.join(120)
    return process.exitcode


def same(one, other):
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def steps_in_log(out):
    return [entry["step"] for entry in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "loss" in entry]


@pytest.mark.slow
def test_killed_twenty_times(rows, tmp_path, tiny_bert):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    started = time.monotonic()
    assert finished(command(rows, whole, tiny_bert)) == 0
    seconds = time.monotonic() - started
    draw = random.Random(7)
    words = command(rows, broken, tiny_bert, "--resume", "auto")
    kills, reached = 0, set()
    while kills < 20:
        process = in_a_process(words)
        process.join(draw.uniform(0.1, 0.7) * seconds)
        if process.exitcode == 0:
            as_unbroken(whole, broken)
            shutil.rmtree(broken)
            continue
        assert process.exitcode is None
        process.kill()
        process.join()
        kills += 1
        reached.add(newest(broken) and newest(broken).name)
    assert len(reached) > 2, "it was always killed before a checkpoint"
    assert finished(words) == 0
    as_unbroken(whole, broken)


def as_unbroken(whole, broken):
    assert same(whole, broken)
    assert steps_in_log(whole) == steps_in_log(broken)
    assert {path.name for path in broken.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_stopped_in_order(number, rows, tmp_path, tiny_bert):
    """A signal lets the step end, writes a checkpoint, and says how to go on; what follows is as if nothing was."""
    words = ["--epochs", 60, "--max-steps", 150, "--save-steps", 0]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    line = [sys.executable, "-m", "bgectl", *map(str, command(rows, stopped, tiny_bert, *words))]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(stopped / "log.jsonl", process)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    last = newest(stopped)
    assert f"checkpoint: {last}" in stderr
    assert "--resume auto" in stderr
    assert not (stopped / "config.json").exists()
    assert finished(command(rows, stopped, tiny_bert, *words, "--resume", "auto")) == 0
    assert finished(command(rows, whole, tiny_bert, *words)) == 0
    assert same(whole, stopped)


def wait_for(path, process):
    for _ in range(600):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.1)


def test_measures_are_kept_over_a_stop(rows, tmp_path, tiny_bert):
    """Held-out measures, and which weights were the best, survive."""
    words = ["--eval-data", rows, "--eval-steps", 4]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finished(command(rows, whole, tiny_bert, *words)) == 0
    process = in_a_process(command(rows, broken, tiny_bert, *words))
    while newest(broken) is None or int(newest(broken).name[11:]) < 10:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert finished(command(rows, broken, tiny_bert, *words, "--resume", "auto")) == 0
    assert same(whole, broken)
    measured = [
        [(entry["step"], entry["eval_nDCG@10"]) for entry in map(json.loads, (out / "log.jsonl").open())
         if "eval_nDCG@10" in entry]
        for out in (whole, broken)
    ]  # fmt: skip
    assert measured[0] == measured[1]
    assert measured[0][0][0] == 0, "measured before training"


def test_half_a_checkpoint_is_never_taken(inside, rows, tmp_path, tiny_bert):
    out = tmp_path / "out"
    done = inside(*command(rows, out, tiny_bert, "--max-steps", 12, "--save-total-limit", 3))
    assert done.returncode == 0, done.stderr
    names = sorted((path.name for path in out.glob("checkpoint-*")), key=lambda name: int(name[11:]))
    assert names == ["checkpoint-5", "checkpoint-10", "checkpoint-12"]
    optimizer = out / "checkpoint-12" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    (out / "checkpoint-10" / WHOLE).unlink()
    assert newest(out) == out / "checkpoint-5"
    assert not is_whole(out / "checkpoint-12")
    done = inside(*command(rows, out, tiny_bert, "--max-steps", 12, "--resume", out / "checkpoint-10"))
    assert done.returncode == 2
    assert f"its newest checkpoint is {out}" not in done.stderr
    done = inside(*command(rows, out, tiny_bert, "--max-steps", 12, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    assert "checkpoint-5" in done.stderr


def test_what_cannot_be_gone_on_with(inside, rows, tmp_path, tiny_bert):
    out = tmp_path / "out"
    assert inside(*command(rows, out, tiny_bert, "--max-steps", 6)).returncode == 0
    done = inside(*command(rows, out, tiny_bert, "--max-steps", 6, "--resume", "auto", "-b", 4))
    assert done.returncode == 2
    assert "per_device_train_batch_size was 3 and is 4" in done.stderr
    done = inside(*command(rows, out, tiny_bert, "--resume", tmp_path / "nowhere"))
    assert (done.returncode, "no such folder" in done.stderr) == (2, True)
    done = inside(*command(rows, out, tiny_bert))
    assert (done.returncode, "--resume auto" in done.stderr) == (2, True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert inside(*command(rows, other, tiny_bert, "--resume", "auto")).returncode == 2
    with rows.open("a") as stream:
        stream.write(json.dumps({"query": "q", "pos": ["p"], "neg": ["n"]}) + "\n")
    done = inside(*command(rows, out, tiny_bert, "--max-steps", 6, "--resume", "auto"))
    assert (done.returncode, "training data was" in done.stderr) == (2, True)


def test_folder_in_use(inside, rows, tmp_path, tiny_bert):
    out = tmp_path / "out"
    process = in_a_process(command(rows, out, tiny_bert, "--epochs", 10_000))
    try:
        while not (out / "log.jsonl").exists():
            time.sleep(0.02)
        done = inside(*command(rows, out, tiny_bert, "--resume", "auto"))
    finally:
        process.kill()
        process.join()
    assert done.returncode == 2
    assert "another run is writing" in done.stderr


def test_going_on_from_nothing_starts_anew(inside, rows, tmp_path, tiny_bert):
    done = inside(*command(rows, tmp_path / "out", tiny_bert, "--max-steps", 2, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / "out" / "model.safetensors").is_file()
