import os
import subprocess
import sys

import pytest


@pytest.fixture
def rows(random_rows):
    return random_rows(64, 4)


@pytest.fixture
def start(tiny_bert):
    """Start `train base` on processes of a CPU, in a session of its own; returns the process."""

    def call(rows, out, *words, env=None, model=tiny_bert):
        command = [
            sys.executable, "-m", "bgectl", "train", "base", "-m", model, "-t", rows, "-o", out, "-b", 4,
            "--train-group-size", 3, "--device", "cpu", "--logging-steps", 2, "--negatives-cross-device",
            "--learning-rate", 1e-2, "--dataloader-num-workers", 1, *words,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "TERM": "dumb", **(env or {})}
        return subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip

    return call
