"""`train base --dry-run`: everything about the run, and none of it done."""

import re

from transformers import AutoTokenizer


def test_shows_the_run_and_leaves_nothing(inside, write_rows, toy_rows, tmp_path, tiny_bert):
    long = "kaban " * 30
    rows = [{**row, "pos": [f"{long}{index}"], "prompt": "find: ", "pos_scores": [1.5], "neg_scores": [0.5] * 3}
            for index, row in enumerate(toy_rows(20))]  # fmt: skip
    data = [write_rows(rows, "a.jsonl"), write_rows(toy_rows(9), "b.jsonl")]
    words = [
        "train", "base", "-m", tiny_bert, "-t", *data, "-o", tmp_path / "out", "--train-group-size", 3, "-b", 4,
        "--passage-max-len", 10, "--epochs", 3, "--gradient-accumulation-steps", 2, "--same-dataset-within-batch",
        "--knowledge-distillation", "--dry-run",
    ]  # fmt: skip
    done = inside(*words)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    said = done.stdout
    assert "8 steps an epoch" in said
    assert "12 steps of the optimiser in all" in said
    assert "distillation: 20 of 29 rows have teacher scores" in said
    # As the model sees it: prompt, special tokens, cut to length.
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    query = tokenizer.decode(tokenizer("find: " + rows[0]["query"])["input_ids"])
    assert query in said
    assert f"(10 tokens, cut from {len(tokenizer(rows[0]['pos'][0])['input_ids'])}, teacher 1.5)" in said
    assert said.count("positive (") == 2
    assert re.search(r"in all +[\d,]+", said)


def test_needs_no_processes(inside, write_rows, toy_rows, tmp_path, tiny_bert):
    """A run on GPUs can be looked at where there is none."""
    done = inside(
        "train", "base", "-m", tiny_bert, "-t", write_rows(toy_rows(20)), "-o", tmp_path / "out", "-b", 1,
        "--train-group-size", 3, "--gpus", 4, "--dry-run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 steps an epoch (datasets mixed), on each of 4 processes" in done.stdout
