"""`bgectl mine` beside FlagEmbedding's encoder with faiss and sentence-transformers' mine_hard_negatives.

Same model, rows, lengths, ranks and number of negatives; the ranks 2-200 of the pool, 15 negatives drawn at random.
FlagEmbedding's hn_mine.py is no part of its wheel, so its class is driven here as that script does, at the script's
batch of 3,000 texts and at smaller ones. It sorts texts by length too; its first batch, which finds out what fits, is
encoded twice. Few texts are hard on a large batch, since they are all in the first one, padded to the longest: judge
3,000 by a pool of several times as many.

Then, not timed: how much the ten best matches of --dtype bfloat16 are those of float32, on the rows of example_data.

With `--large` and a GPU: random weights of the size of bge-large in 16 bits, and peaks of the GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import compare, example_rows, make_encoder, make_rows, minilm, peers, read_rows, run, save

FLAG_EMBEDDING = """
import json, random, sys
import faiss, numpy as np
from FlagEmbedding import FlagModel

def main(model, source, target, batch, device):
    rows = [json.loads(line) for line in open(source, encoding="utf-8")]
    pool = list({text for row in rows for text in row["pos"] + row["neg"]})
    encoder = FlagModel(model, pooling_method="mean", use_fp16=device != "cpu", devices=device, batch_size=batch,
                        query_max_length=512, passage_max_length=512)
    passages = np.asarray(encoder.encode_corpus(pool), dtype=np.float32)
    queries = np.asarray(encoder.encode_queries([row["query"] for row in rows]), dtype=np.float32)
    index = faiss.IndexFlatIP(passages.shape[1])
    index.add(passages)
    with open(target, "w", encoding="utf-8") as stream:
        for start in range(0, len(rows), 64):
            _, found = index.search(queries[start : start + 64], 200)
            for row, ranks in zip(rows[start : start + 64], found):
                texts = [pool[i] for i in ranks[2:200] if pool[i] not in row["pos"]]
                row["neg"] = random.sample(texts, min(15, len(texts)))
                stream.write(json.dumps(row, ensure_ascii=False) + "\\n")

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
"""

SENTENCE_TRANSFORMERS = """
import json, sys
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

model, source, target, batch, device = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
rows = [json.loads(line) for line in open(source, encoding="utf-8")]
pool = list({text for row in rows for text in row["pos"] + row["neg"]})
half = {} if device == "cpu" else {"model_kwargs": {"dtype": "float16"}}
encoder = SentenceTransformer(model, device=device, **half)
encoder.max_seq_length = 512
pairs = Dataset.from_dict({"query": [r["query"] for r in rows], "answer": [r["pos"][0] for r in rows]})
mined = mine_hard_negatives(pairs, encoder, corpus=pool, range_min=2, range_max=200, num_negatives=15,
                            sampling_strategy="random", batch_size=batch, use_faiss=True,
                            output_format="n-tuple", verbose=False)
mined.to_json(target)
"""

BATCHES = {"FlagEmbedding": (3000, 256, 32), "sentence-transformers": (32, 128)}
"""The first of each is its default."""
BEST = 10
"""Matches of a query that are compared."""


def main() -> None:
    """Make rows, mine them with each, then compare the best matches in two precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="1000, with --large 5000; a row has 9 texts")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="the size of bge-large, on a GPU")
    parser.add_argument("--alone", action="store_true", help="do not run the peers, where their environment is not")
    arguments = parser.parse_args()
    rows = arguments.rows or (5000 if arguments.large else 1000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, little = folder / "rows.jsonl", folder / "little.jsonl"
        make_rows(source, rows, negatives=7)
        # The pool has to reach beyond rank 200.
        make_rows(little, 32, negatives=7)
        (folder / "with-FlagEmbedding.py").write_text(FLAG_EMBEDDING)
        (folder / "with-sentence-transformers.py").write_text(SENTENCE_TRANSFORMERS)
        model: str | Path = minilm()
        if arguments.large:
            model = folder / "model"
            make_encoder(model, kind="embedder", large=True)
        whole = commands(arguments, folder, source, model)
        compare(
            whole, rounds=arguments.rounds, amount=rows * 9, unit="texts", name="mine" + "-large" * arguments.large,
            folders={label: folder / label for label in whole}, gpu=arguments.large,
            less=(32 * 9, commands(arguments, folder, little, model)) if arguments.large else None,
        )  # fmt: skip
        agreement(folder, minilm())


def commands(arguments: argparse.Namespace, folder: Path, source: Path, model: str | Path) -> dict[str, list[object]]:
    """Label → command that mines the rows into a folder of its own, named by the label."""
    device = "cuda:0" if arguments.large else "cpu"
    precisions = ("float16", "bfloat16", "float32") if arguments.large else ("float32", "bfloat16")
    found: dict[str, list[object]] = {}
    for dtype in precisions:
        label = f"bgectl mine, {dtype}"
        found[label] = [
            *mine(source, folder / label / "rows.jsonl", model, dtype), "--range", "2-200", "-n", "15",
            "--pooling-method", "mean", "--devices", device,
        ]  # fmt: skip
    if arguments.alone:
        return found
    for peer, batches in BATCHES.items():
        for batch in batches:
            label = f"{peer}, batch {batch}"
            target = folder / label / "rows.jsonl"
            found[label] = [peers(), folder / f"with-{peer}.py", model, source, target, batch, device]
    return found


def mine(source: Path, target: Path, model: str | Path, dtype: str) -> list[object]:
    """The command without its ranks."""
    return [
        sys.executable, "-m", "bgectl", "mine", source, target, "--embedder-name-or-path", model, "--dtype", dtype,
    ]  # fmt: skip


def agreement(folder: Path, model: str) -> None:
    """How much the best matches in bfloat16, positives aside, are those in float32."""
    source = folder / "examples.jsonl"
    example_rows(source)
    best = []
    for dtype in ("float32", "bfloat16"):
        target = folder / f"best-{dtype}" / "rows.jsonl"
        target.parent.mkdir()
        # Twice as many ranks, since the row's positives among them are left out.
        ranks = ["--range", f"0-{2 * BEST}", "-n", BEST, "--sampling", "top", "--fill", "none"]
        run([*mine(source, target, model, dtype), *ranks])
        best.append([row["neg"] for row in read_rows(target)])
    pairs = list(zip(*best, strict=True))
    report = {
        "in common": sum(len(set(one) & set(other)) for one, other in pairs) / sum(len(one) for one, _ in pairs),
        "the same set": sum(set(one) == set(other) for one, other in pairs) / len(pairs),
        "in the same order": sum(one == other for one, other in pairs) / len(pairs),
        "the same first": sum(one[0] == other[0] for one, other in pairs) / len(pairs),
    }
    print(f"\n{BEST} best matches of {len(pairs)} queries of example_data, bfloat16 against float32: ", end="")
    print(", ".join(f"{what} {share:.1%}" for what, share in report.items()))
    save("mine-agreement", report)


if __name__ == "__main__":
    main()
