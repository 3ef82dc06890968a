import json
import os
import random
import subprocess
import sys

import pytest


@pytest.fixture
def rows(tmp_path, tiny_words):
    """64 rows with four negatives each."""
    draw = random.Random(0)
    path = tmp_path / "rows.jsonl"
    with path.open("w") as stream:
        for number in range(64):
            texts = [" ".join(draw.choices(tiny_words, k=draw.randint(1, 20))) for _ in range(6)]
            row = {"query": f"{texts[0]} {number}", "pos": [texts[1]], "neg": [f"{text} a" for text in texts[2:]]}
            stream.write(json.dumps(row) + "\n")
    return path


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
