"""Cross-encoder scores equal those recorded from the reference, to 1e-4."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bgectl.models.decoder_rerankers import teacher_kind
from bgectl.models.hub import Hub
from bgectl.models.rerankers import encode_pairs, load_cross_encoder

SHARED = Path(__file__).parents[3] / "shared" / "golden" / "scoring"
GOLDEN = Path(os.environ.get("BGECTL_GOLDEN_SCORING", SHARED))

needs_set = pytest.mark.skipif(not (GOLDEN / "scores.json").is_file(), reason="the recorded scores are not here")


@pytest.fixture(scope="session")
def reranker(minilm, tmp_path_factory):
    """all-MiniLM-L6-v2 with the one-logit head of the set as a folder."""
    folder = tmp_path_factory.mktemp("reranker")
    shutil.copytree(minilm, folder, dirs_exist_ok=True)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    head = GOLDEN / "models" / "minilm_classification_head.safetensors"
    if head.is_file():
        weights |= load_file(head)
    else:
        torch.manual_seed(0)
        weights |= {"classifier.weight": torch.randn(1, 384) * 0.1, "classifier.bias": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "num_labels": 1, "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def load(folder, **lengths):
    arguments = {"query_max_length": None, "max_length": 512} | lengths
    return load_cross_encoder(
        folder, hub=Hub(), devices=[torch.device("cpu")], dtype=torch.float32, batch_tokens=4096, batch_size=64,
        **arguments,
    )  # fmt: skip


@needs_set
def test_encoder_only_base(reranker):
    pairs = [json.loads(line) for line in (GOLDEN / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = json.loads((GOLDEN / "scores.json").read_text())["encoder_only_base"]
    scores = load(reranker).score([(pair["query"], pair["passage"]) for pair in pairs])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_kind_is_seen_from_the_files(reranker, minilm):
    assert teacher_kind(reranker, Hub()) == "encoder-only-base"
    assert teacher_kind(minilm, Hub()) == "embedder"


def test_score_does_not_depend_on_the_batch(reranker):
    pairs = [("how do I mend a puncture?", "patch " * n) for n in (1, 5, 40, 200)]
    together = load(reranker).score(pairs)
    alone = np.concatenate([load(reranker).score([pair]) for pair in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_query_and_passage_are_cut_as_documented(reranker):
    tokenizer = load(reranker).tokenizer
    (pair,), cut = encode_pairs(tokenizer, [("a " * 40, "b " * 40)], query_max_length=12, max_length=24)
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    assert (pair.ids.count(a), pair.ids.count(b), len(pair.ids), cut) == (12, 24 - 3 - 12, 24, 1)
    assert pair.type_ids == [0] * 14 + [1] * 10
