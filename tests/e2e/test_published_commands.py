"""FlagEmbedding's published commands for decoders, with their head replaced, run as they stand on a tiny model."""

import json
import os
import random
import shlex
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from bgectl.encode import load_embedder

ROOT = Path(__file__).parent.parent.parent

COMMON = r"""
    --cache_dir ./cache/model --use_lora True --lora_rank 32 --lora_alpha 64
    --target_modules q_proj k_proj v_proj o_proj gate_proj down_proj up_proj
    --additional_special_tokens {tokens} --save_merged_lora_model True
    --train_data ./example_data/retrieval ./example_data/sts/sts.jsonl ./example_data/classification-no_in_batch_neg
    ./example_data/clustering-no_in_batch_neg --cache_path ./cache/data --train_group_size 8 {lengths}
    --pad_to_multiple_of 8
    --query_instruction_for_retrieval 'Given a query, retrieve passages that are relevant to the query.'
    --query_instruction_format '<instruct>{{}}\n<query>{{}}' --knowledge_distillation True
    --same_dataset_within_batch True --small_threshold 0 --drop_threshold 0 {examples} --output_dir ./out
    --overwrite_output_dir --learning_rate 1e-4 --fp16 --num_train_epochs 1 --per_device_train_batch_size 2
    --dataloader_drop_last True --warmup_ratio 0.1 --gradient_checkpointing --deepspeed ../ds_stage1.json
    --logging_steps 1 --save_steps 1000 --negatives_cross_device --temperature 0.02
    --sentence_pooling_method last_token --normalize_embeddings True --kd_loss_type {loss}
"""
COMMANDS = {
    "llm": COMMON.format(
        tokens="'<instruct>' '<query>'", lengths="--query_max_len 512 --passage_max_len 512", examples="",
        loss="m3_kd_loss",
    ),
    "icl": COMMON.format(
        tokens="'<instruct>' '<query>' '<response>'", lengths="--query_max_len 2048 --passage_max_len 512",
        examples=r"--example_query_max_len 256 --example_passage_max_len 256 --retrieval_use_examples True "
        r"--icl_suffix_str '\n<response>'", loss="kl_div",
    ),
}  # fmt: skip
MODELS = {"llm": ("BAAI/bge-multilingual-gemma2", "gemma2"), "icl": ("BAAI/bge-en-icl", "mistral")}

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


@pytest.mark.parametrize("kind", list(COMMANDS))
def test_every_option_is_taken(kind, inside):
    """A GPU is wanted where it trains in float16."""
    done = inside(
        "train", kind, "--model_name_or_path", MODELS[kind][0], *shlex.split(COMMANDS[kind]), "--print-config"
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("  #")[0].split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert lines["additional_special_tokens"].startswith("[<instruct>, <query>")
    assert lines["query_instruction_format"] == r'"<instruct>{}\n<query>{}"'
    assert (lines["lora_rank"], lines["lora_alpha"], lines["fp16"]) == ("32", "64.0", "true")
    if kind == "icl":
        assert lines["icl_suffix_str"] == r'"\n<response>"'


def write_data(folder, rows=10):
    """The first rows of example_data's files, with scores as a teacher gives them."""
    draw = random.Random(0)
    for path in sorted((ROOT / "example_data").glob("*/*.jsonl")):
        if path.parent.name == "eval":
            continue
        target = folder / "example_data" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open(encoding="utf-8") as source, target.open("w", encoding="utf-8") as stream:
            for row in map(json.loads, islice(source, rows)):
                for name in ("pos", "neg"):
                    row[f"{name}_scores"] = [draw.uniform(-5, 5) for _ in row[name]]
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(COMMANDS))
def test_runs_as_it_stands(kind, decoders, tmp_path):
    """By torchrun on two processes. `--fp16` alone goes: a CPU does not train in it."""
    pytest.importorskip("deepspeed")
    work = tmp_path / "work"
    work.mkdir()
    write_data(work)
    (tmp_path / "ds_stage1.json").write_text(json.dumps(THEIR_DEEPSPEED))
    model = decoders[MODELS[kind][1]]
    head = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "bgectl", "train", kind]
    words = [word for word in shlex.split(COMMANDS[kind]) if word != "--fp16"]
    done = subprocess.run(
        [*head, "--model_name_or_path", model, *words, "--use_cpu"], cwd=work, capture_output=True, text=True,
        env={**os.environ, "COLUMNS": "160", "TERM": "dumb"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bf16.loss_scale left out" in done.stderr
    assert "by adapter and by merged model" in done.stderr
    out = work / "out"
    told = json.loads((out / "prompt_format.json").read_text())
    assert told["query_format"] == "<instruct>{}\n<query>{}"
    assert told["query_suffix"] == ("\n<response>" if kind == "icl" else "")
    texts = ["a ferry", "the bread " * 20]
    adapter, merged = (
        load_embedder(str(folder), devices=["cpu"]).encode_queries(texts) for folder in (out, out / "merged_model")
    )
    np.testing.assert_allclose(adapter, merged, atol=1e-5)
    assert np.abs(adapter - load_embedder(model, devices=["cpu"]).encode_queries(texts)).max() > 1e-3
