"""Gradient caching holds one piece, whatever the batch."""

import json

import pytest
from processes import peak_of


@pytest.mark.slow
def test_memory_does_not_grow_with_the_batch(tmp_path, minilm):
    data = tmp_path / "rows.jsonl"
    with data.open("w") as stream:
        for number in range(512):
            row = {"query": f"number {number} of many", "pos": [f"this is the text {number}, and it is about {number}"]}
            stream.write(json.dumps({**row, "neg": [f"while text {number + 1} is about something else"]}) + "\n")

    def run(batch, *words):
        return peak_of([
            "train", "base", "-m", minilm, "-t", data, "-o", tmp_path / f"out-{batch}-{len(words)}", "-b", batch,
            "--train-group-size", 2, "--max-steps", 1, "--save-steps", 0, "--sub-batch-tokens", 512,
            "--dataloader-num-workers", 0, *words,
        ])[0]  # fmt: skip

    small, large = run(16, "--gradient-cache"), run(512, "--gradient-cache")
    # Measured: 1.09 to 1.11; the rows, their tokens and the scores do grow.
    assert large < 1.15 * small, (small, large)
    assert run(128) > 1.3 * small, "without the cache it does grow, or this shows nothing"
