"""`bgectl mine` beside FlagEmbedding's encoder with faiss and sentence-transformers' mine_hard_negatives.

Same model, rows, lengths, ranks and number of negatives; the ranks 2-200 of the pool, 15 negatives drawn at random.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import compare, make_rows, minilm, peers

FLAG_EMBEDDING = """
import json, random, sys
import faiss, numpy as np
from FlagEmbedding import FlagModel

def main(model, source, target, batch):
    rows = [json.loads(line) for line in open(source, encoding="utf-8")]
    pool = list({text for row in rows for text in row["pos"] + row["neg"]})
    encoder = FlagModel(model, pooling_method="mean", use_fp16=False, devices="cpu", batch_size=batch,
                        query_max_length=512, passage_max_length=512)
    passages = np.asarray(encoder.encode_corpus(pool), dtype=np.float32)
    queries = np.asarray(encoder.encode_queries([row["query"] for row in rows]), dtype=np.float32)
    index = faiss.IndexFlatIP(passages.shape[1])
    index.add(passages)
    _, found = index.search(queries, 200)
    with open(target, "w", encoding="utf-8") as stream:
        for row, ranks in zip(rows, found):
            texts = [pool[i] for i in ranks[2:200] if pool[i] not in row["pos"]]
            row["neg"] = random.sample(texts, min(15, len(texts)))
            stream.write(json.dumps(row, ensure_ascii=False) + "\\n")

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
"""

SENTENCE_TRANSFORMERS = """
import json, sys
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

model, source, target, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
rows = [json.loads(line) for line in open(source, encoding="utf-8")]
pool = list({text for row in rows for text in row["pos"] + row["neg"]})
encoder = SentenceTransformer(model, device="cpu")
encoder.max_seq_length = 512
pairs = Dataset.from_dict({"query": [r["query"] for r in rows], "answer": [r["pos"][0] for r in rows]})
mined = mine_hard_negatives(pairs, encoder, corpus=pool, range_min=2, range_max=200, num_negatives=15,
                            sampling_strategy="random", batch_size=batch, use_faiss=True,
                            output_format="n-tuple", verbose=False)
mined.to_json(target)
"""


def main() -> None:
    """Make rows, mine them with each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    python = peers()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "rows.jsonl"
        make_rows(source, arguments.rows, negatives=7)
        (folder / "flag.py").write_text(FLAG_EMBEDDING)
        (folder / "st.py").write_text(SENTENCE_TRANSFORMERS)
        model = minilm()
        ours = [sys.executable, "-m", "bgectl", "mine", source, folder / "a", "--embedder-name-or-path", model]
        commands: dict[str, list[object]] = {"bgectl mine": [*ours, "--range", "2-200", "-n", "15"]}
        for batch in (256, 32):
            commands[f"FlagEmbedding, batch {batch}"] = [python, folder / "flag.py", model, source, folder / "b", batch]
        commands["sentence-transformers, batch 32"] = [python, folder / "st.py", model, source, folder / "c", 32]
        texts = arguments.rows * 9
        compare(commands, rounds=arguments.rounds, amount=texts, unit="texts", name="mine")


if __name__ == "__main__":
    main()
