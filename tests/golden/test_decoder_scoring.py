"""Scores of decoder rerankers equal those recorded from the reference, to 1e-4."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bgectl.models.decoder_rerankers import PASSAGE, QUERY, load_decoder_reranker, teacher_kind
from bgectl.models.hub import Hub

SHARED = Path(__file__).parents[3] / "shared" / "golden" / "scoring"
GOLDEN = Path(os.environ.get("BGECTL_GOLDEN_SCORING", SHARED))
CASES = json.loads((GOLDEN / "scores.json").read_text()) if (GOLDEN / "scores.json").is_file() else {}
DECODERS = sorted(name for name in CASES if name.startswith("decoder"))


@pytest.mark.skipif(not DECODERS, reason="the recorded scores are not here")
@pytest.mark.parametrize("name", DECODERS or ["none"])
def test_recorded_scores(name):
    kind, *parts = name.split(".")
    folder = kind.removeprefix("decoder_only_") if kind != "decoder_only_base" else f"llm_{parts[0]}"
    words = {"cutoff": None, "layer": None, "ratio": 1}
    for part in parts:
        for word in words:
            if part.startswith(word):
                words[word] = int(part.removeprefix(word))
    model = str(GOLDEN / "models" / folder)
    wanted = kind.removesuffix("_scaled").replace("_", "-")
    assert teacher_kind(model, Hub()) == wanted
    reranker = load_decoder_reranker(
        model, wanted, hub=Hub(), devices=[torch.device("cpu")], dtype=torch.float32, query_max_length=None,
        max_length=512, batch_tokens=8192, batch_size=64, cutoff_layer=words["cutoff"],
        compress_layers=[words["layer"]] if words["layer"] else [], compress_ratio=words["ratio"],
    )  # fmt: skip
    query, passage = ("", "") if "no_prefix" in parts else (QUERY, PASSAGE)
    pairs = [json.loads(line) for line in (GOLDEN / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = reranker.score([(query + pair["query"], passage + pair["passage"]) for pair in pairs])
    np.testing.assert_allclose(scores, CASES[name], rtol=0, atol=1e-4)
