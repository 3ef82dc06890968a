"""Mining holds some dozens of bytes of each passage, however long its text and its vector are."""

import json

import numpy as np
import pytest
from processes import peak_of

from bgectl.encode import load_embedder
from bgectl.models.files import files_digest
from bgectl.models.hub import Hub
from bgectl.work.texts import hashes_of
from bgectl.work.vectors import open_spaces

SHARD = 8192
WORDS = 40
"""Of a passage: about 300 bytes of text, and 128 of its vector."""


def prepare(folder, count, model, words):
    """A pool of `count` passages, and their vectors, as if they had been encoded."""
    draw = np.random.default_rng(0)
    passages, _ = open_spaces(load_embedder(model, devices=["cpu"], lazy=True), files_digest(model, Hub()), folder)
    with (folder / "pool.jsonl").open("w") as stream:
        for start in range(0, count, SHARD):
            chosen = draw.integers(len(words), size=(min(SHARD, count - start), WORDS))
            texts = [
                f"{start + row} {' '.join(words[word] for word in line)}" for row, line in enumerate(chosen.tolist())
            ]
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
            vectors = draw.normal(size=(len(texts), 32)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            passages.vault.add(hashes_of(texts), vectors)


@pytest.mark.slow
def test_memory_hardly_grows_with_the_pool(tmp_path, tiny_bert, tiny_words, write_rows):
    """Texts and vectors of ten times as many passages are 180 MB more; hashes and places are 40."""
    rows = write_rows([{"query": f"{word} {other}", "pos": [f"{other} {word} a"]}
                       for word in tiny_words[:20] for other in tiny_words[20:30]])  # fmt: skip
    peaks = {}
    for count in (50_000, 500_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        prepare(folder, count, tiny_bert, tiny_words)
        words = ["mine", rows, folder / "out.jsonl", "--embedder-name-or-path", tiny_bert, "--candidate-pool",
                 folder / "pool.jsonl", "-n", 5, "--range", "2-50", "--work-folder", folder, "--devices", "cpu",
                 "--dtype", "float32", "--keep-scores"]  # fmt: skip
        peaks[count], said = peak_of(words)
        assert "encoded 400 texts" in said, "the passages' vectors were not found"
        assert f"{count:,} were there already" in said
        mined = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
        assert [len(row["neg"]) for row in mined] == [5] * 200
        # The best of so many are far from chance: a search that looked at few would find less.
        assert min(min(row["mined_neg_scores"]) for row in mined) > 0.4
    print(", ".join(f"{count:,} passages: {size:.0f} MiB" for count, size in peaks.items()))
    assert peaks[500_000] < 1.2 * peaks[50_000], peaks
