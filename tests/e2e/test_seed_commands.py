"""The six command lines of FlagEmbedding's page on fine-tuning: with their head replaced they parse, and run on tiny
models; `bgectl translate` says the same.
"""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from seed_lines import SEED

from bgectl.cli.bind import hyphenate
from bgectl.encode import load_embedder
from bgectl.options import MODELS
from bgectl.options.base import flag_of

ROOT = Path(__file__).parent.parent.parent
TRAIN = [command for command in SEED if command.startswith("train")]
HEADS = {"mine": 2, "score": 2, **dict.fromkeys(TRAIN, 5)}
"""Words of the head: `python hn_mine.py`, `torchrun --nproc_per_node 2 -m MODULE`."""

THEIR_DEEPSPEED = {
    "zero_optimization": {
        "stage": 1, "reduce_bucket_size": 5e8, "allgather_partitions": True, "overlap_comm": True,
    },
    "fp16": {"enabled": "auto", "initial_scale_power": 10, "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2,
             "min_loss_scale": 1},
    "bf16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 10, "loss_scale_window": 1000},
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 100,
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
}  # fmt: skip
"""What a file written for an older DeepSpeed says: keys that it refuses today stand in it."""


def split(text):
    """As a shell does; shlex knows no continued lines."""
    return shlex.split(text.replace("\\\n", " "))


def options_of(command):
    """The words behind the head."""
    return split(SEED[command])[HEADS[command] :]


def field_names(command, words):
    """The options that the words name."""
    model = MODELS[command]()
    names = {hyphenate(f"--{name}"): name for name in model.model_fields}
    names |= {alias: name for name, field in model.model_fields.items() for alias in flag_of(field).names}
    return {names[hyphenate(word)] for word in words if word.startswith("--")}


def test_the_table_is_whole():
    assert list(SEED) == ["mine", "score", "train base", "train m3", "train llm", "train icl"]
    assert [len(options_of(command)) for command in SEED] == [11, 15, 55, 65, 80, 89]


@pytest.mark.parametrize("command", SEED)
def test_every_option_is_taken(command, inside):
    """As it stands; a GPU is wanted only where it then runs."""
    words = options_of(command)
    done = inside(*command.split(), *words, "--print-config")
    assert done.returncode == 0, done.stderr
    sources = dict(re.findall(r"^(\w+): .*  # (.+)$", done.stdout, re.MULTILINE))
    assert {name for name, source in sources.items() if source == "flag"} == field_names(command, words)
    values = yaml.safe_load(done.stdout)
    if command == "mine":
        assert (values["range"], values["negative_number"], values["use_gpu_for_searching"]) == ("2-200", 15, True)
    elif command == "score":
        assert values["devices"] == ["cuda:0", "cuda:1"]
    else:
        assert len(values["train_data"]) == 4
        assert (values["learning_rate"], values["fp16"]) == (1e-5 if command in TRAIN[:2] else 1e-4, True)
    if command in ("train llm", "train icl"):
        assert values["additional_special_tokens"][:2] == ["<instruct>", "<query>"]
        assert values["query_instruction_format"] == "<instruct>{}\n<query>{}"
        assert (values["lora_rank"], values["lora_alpha"]) == (32, 64)
    if command == "train icl":
        assert values["icl_suffix_str"] == "\n<response>"
    if command == "train m3":
        assert (values["negatives_cross_device"], values["self_distill_start_step"]) == ("dense", 0)


@pytest.mark.parametrize("command", SEED)
def test_translate_says_the_same(command, inside):
    """All that it adds is what the launcher was told."""
    told = inside("translate", "--format", "json", SEED[command])
    assert told.returncode == 0, told.stderr
    words = json.loads(told.stdout)["command"]
    assert words[: 1 + len(command.split())] == ["bgectl", *command.split()]
    pasted = inside("translate", SEED[command])
    assert split(pasted.stdout) == words
    one, other = (
        yaml.safe_load(inside(*line, "--print-config").stdout)
        for line in ([*command.split(), *options_of(command)], words[1:])
    )
    if command in TRAIN:
        assert (one.pop("gpus"), other.pop("gpus")) == (None, 2)
    assert one == other


def first_rows(path, rows):
    with path.open(encoding="utf-8") as source:
        return [json.loads(line) for line in islice(source, rows)]


def with_scores(row, draw):
    """A row with scores as a teacher gives them."""
    return {**row, **{f"{name}_scores": [draw.uniform(-5, 5) for _ in row[name]] for name in ("pos", "neg")}}


def write_data(folder, rows=10):
    """The first rows of example_data's files, with scores."""
    draw = random.Random(0)
    for path in sorted((ROOT / "example_data").glob("*/*.jsonl")):
        if path.parent.name == "eval":
            continue
        target = folder / "example_data" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(with_scores(row, draw), ensure_ascii=False) for row in first_rows(path, rows)]
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def replaced(words, changes):
    """The words with the values of some flags replaced; a flag with None goes, with its values."""
    result, left = [], list(words)
    while left:
        word = left.pop(0)
        values = []
        while left and not left[0].startswith("--"):
            values.append(left.pop(0))
        new = changes.get(word, values)
        result += [] if new is None else [word, *new]
    assert set(changes) <= set(words), "each of them stands in the line"
    return result


def test_mine_runs(inside, tiny_bert, tmp_path, monkeypatch):
    """On a CPU, where there is no GPU to search on."""
    monkeypatch.chdir(tmp_path)
    rows = [row for path in sorted((ROOT / "example_data/retrieval").glob("*.jsonl")) for row in first_rows(path, 10)]
    write_lines(tmp_path / "toy_finetune_data.jsonl", rows)
    words = replaced(options_of("mine"), {"--use_gpu_for_searching": None, "--embedder_name_or_path": [tiny_bert]})
    done = inside("mine", *words, "--devices", "cpu")
    assert done.returncode == 0, done.stderr
    mined = [json.loads(line) for line in Path("toy_finetune_data_minedHN.jsonl").read_text().splitlines()]
    assert [row["query"] for row in mined] == [row["query"] for row in rows]
    assert {len(set(row["neg"])) for row in mined} == {15}
    assert not any(set(row["neg"]) & set(row["pos"]) for row in mined)
    assert any(row["neg"] != before["neg"] for row, before in zip(mined, rows, strict=True))


def test_score_runs(inside, judge, tmp_path, monkeypatch):
    """With a small cross-encoder, on a CPU in place of two GPUs."""
    monkeypatch.chdir(tmp_path)
    rows = first_rows(ROOT / "example_data/retrieval/ferry.jsonl", 10)
    write_lines(tmp_path / "toy_finetune_data_minedHN.jsonl", rows)
    changes = {"--reranker_name_or_path": [judge], "--devices": ["cpu"]}
    done = inside("score", *replaced(options_of("score"), changes))
    assert done.returncode == 0, done.stderr
    scored = [json.loads(line) for line in Path("toy_finetune_data_score.jsonl").read_text().splitlines()]
    for row, before in zip(scored, rows, strict=True):
        assert (row["query"], row["pos"], row["neg"]) == (before["query"], before["pos"], before["neg"])
        assert [len(row[f"{name}_scores"]) for name in ("pos", "neg")] == [len(row["pos"]), len(row["neg"])]
    assert len({score for row in scored for score in row["neg_scores"]}) > 10, "they tell texts apart"


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAIN)
def test_training_runs(command, decoders, tiny_bert, tiny_xlmr, tmp_path):
    """By torchrun on two processes, on data of the same layout. Of the options only `--fp16` goes, in which a CPU does
    not train; the model is a tiny one, the output folder another, and DeepSpeed's file says what its older ones took.
    """
    pytest.importorskip("deepspeed")
    kind = command.split()[1]
    work = tmp_path / "work"
    work.mkdir()
    write_data(work)
    stage = 0 if kind in ("base", "m3") else 1
    their = {**THEIR_DEEPSPEED, "zero_optimization": {**THEIR_DEEPSPEED["zero_optimization"], "stage": stage}}
    (tmp_path / f"ds_stage{stage}.json").write_text(json.dumps(their))
    model = {"base": tiny_bert, "m3": tiny_xlmr, "llm": decoders["gemma2"], "icl": decoders["mistral"]}[kind]
    changes = {"--fp16": None, "--model_name_or_path": [model], "--output_dir": ["./out"]}
    words = replaced(options_of(command), changes)
    assert f"../ds_stage{stage}.json" in words
    head = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "bgectl", "train", kind]
    done = subprocess.run(
        [*head, *words, "--use_cpu"], cwd=work, capture_output=True, text=True,
        env={**os.environ, "COLUMNS": "160", "TERM": "dumb"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bf16.loss_scale left out" in done.stderr
    out = work / "out"
    trained = load_embedder(str(out), devices=["cpu"])
    texts = ["a ferry", "the bread " * 20]
    vectors = trained.encode_queries(texts)
    assert np.isfinite(vectors).all()
    assert np.abs(vectors - load_embedder(model, devices=["cpu"]).encode_queries(texts)).max() > 1e-3
    if kind == "m3":
        assert (out / "sparse_linear.pt").is_file()
        assert (out / "colbert_linear.pt").is_file()
    if kind in ("base", "m3"):
        return
    assert "by adapter and by merged model" in done.stderr
    told = json.loads((out / "prompt_format.json").read_text())
    assert told["query_format"] == "<instruct>{}\n<query>{}"
    assert told["query_suffix"] == ("\n<response>" if kind == "icl" else "")
    merged = load_embedder(str(out / "merged_model"), devices=["cpu"]).encode_queries(texts)
    np.testing.assert_allclose(vectors, merged, atol=1e-5)
