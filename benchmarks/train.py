"""`bgectl train base` beside FlagEmbedding's base trainer and sentence-transformers' MultipleNegativesRankingLoss.

Same model (all-MiniLM-L6-v2), rows of mixed lengths, batch, group and lengths; float32 on the CPU, no checkpoints.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import compare, make_rows, minilm, peers

SENTENCE_TRANSFORMERS = """
import json, sys
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

model, source, target, batch, group, length, steps, kind = sys.argv[1:9]
group, steps = int(group), int(steps)
rows = [json.loads(line) for line in open(source, encoding="utf-8")]
columns = {"anchor": [r["query"] for r in rows], "positive": [r["pos"][0] for r in rows]}
columns |= {f"negative_{i}": [r["neg"][i] for r in rows] for i in range(group - 1)}
encoder = SentenceTransformer(model, device="cpu")
encoder.max_seq_length = int(length)
loss = (CachedMultipleNegativesRankingLoss(encoder, scale=50, mini_batch_size=32) if kind == "cached"
        else MultipleNegativesRankingLoss(encoder, scale=50))
arguments = SentenceTransformerTrainingArguments(
    output_dir=target, max_steps=steps, per_device_train_batch_size=int(batch), learning_rate=2e-5, use_cpu=True,
    save_strategy="no", report_to="none", logging_steps=5)
SentenceTransformerTrainer(encoder, arguments, train_dataset=Dataset.from_dict(columns), loss=loss).train()
encoder.save(target)
"""


def main() -> None:
    """Make rows, train a few steps with each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    python = peers()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "rows.jsonl"
        examples = arguments.steps * arguments.batch
        make_rows(source, examples, negatives=arguments.group - 1, words=(5, 200))
        (folder / "st.py").write_text(SENTENCE_TRANSFORMERS)
        model = minilm()
        common = [
            "--max-steps", arguments.steps, "--per-device-train-batch-size", arguments.batch, "--train-group-size",
            arguments.group, "--query-max-len", arguments.length, "--passage-max-len", arguments.length,
            "--learning-rate", "2e-5", "--logging-steps", "5",
        ]  # fmt: skip
        ours = [
            sys.executable, "-m", "bgectl", "train", "base", "--model-name-or-path", model, "--train-data", source,
            "--output-dir", folder / "a", "--overwrite-output-dir", "--save-steps", "0", *common,
        ]  # fmt: skip
        flag = [
            python, "-m", "FlagEmbedding.finetune.embedder.encoder_only.base", "--model_name_or_path", model,
            "--train_data", source, "--output_dir", folder / "b", "--sentence_pooling_method", "mean",
            "--normalize_embeddings", "True", "--temperature", "0.02", "--knowledge_distillation", "False",
            "--use_cpu", "True", "--save_strategy", "no", "--report_to", "none",
            *("--" + str(word)[2:].replace("-", "_") if str(word).startswith("--") else word for word in common),
        ]  # fmt: skip
        shape = [model, source, folder / "c", arguments.batch, arguments.group, arguments.length, arguments.steps]
        commands: dict[str, list[object]] = {
            "bgectl": ours,
            "bgectl --gradient-cache": [*ours, "--gradient-cache"],
            "FlagEmbedding": flag,
            "sentence-transformers MNRL": [python, folder / "st.py", *shape, "plain"],
            "sentence-transformers Cached MNRL": [python, folder / "st.py", *shape, "cached"],
        }
        compare(commands, rounds=arguments.rounds, amount=examples, unit="examples", name="train")


if __name__ == "__main__":
    main()
