"""`bgectl score`: the teacher's numbers, aligned with the texts they belong to."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def cross_encoder(tiny_bert, tmp_path_factory):
    """The tiny BERT with a pooler and a head of one logit."""
    folder = tmp_path_factory.mktemp("cross") / "encoder"
    shutil.copytree(tiny_bert, folder)
    torch.manual_seed(3)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    weights |= {"bert.pooler.dense.weight": torch.randn(32, 32), "bert.pooler.dense.bias": torch.zeros(32),
                "classifier.weight": torch.randn(1, 32), "classifier.bias": torch.zeros(1)}  # fmt: skip
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "num_labels": 1, "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def rows(tiny_words):
    words = tiny_words
    return [
        {"neg": [f"{words[i + 1]} y", f"{words[i + 2]} {words[i]} z", "x"][: i % 4], "id": i,
         "query": f"{words[i]} {i}", "pos": [f"{words[i]} x", f"{words[39 - i]}"][: 1 + i % 2]}
        for i in range(16)
    ]  # fmt: skip


@pytest.fixture
def score(inside, tmp_path):
    def call(source, model, *words, target=None):
        out = target or tmp_path / "scored.jsonl"
        return inside("score", source, out, "--reranker-name-or-path", model, "--dtype", "float32", *words)

    return call


def objects(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def flat(rows):
    """(query, passage) → score; fails where counts differ."""
    return {
        (row["query"], text): score
        for row in rows
        for side in ("pos", "neg")
        for text, score in zip(row[side], row[f"{side}_scores"], strict=True)
    }


def scores_of(score, path, model, *words, target):
    done = score(path, model, *words, target=target)
    assert done.returncode == 0, done.stderr
    return flat(objects(target))


def test_embedder_gives_the_cosine_of_sentence_transformers(score, write_rows, rows, minilm, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    ours = scores_of(score, write_rows(rows), minilm, target=tmp_path / "out")
    theirs = library.SentenceTransformer(minilm, device="cpu")
    left = theirs.encode([query for query, _ in ours], normalize_embeddings=True)
    right = theirs.encode([passage for _, passage in ours], normalize_embeddings=True)
    np.testing.assert_allclose(list(ours.values()), (left * right).sum(axis=1), atol=1e-5)


def test_cross_encoder_gives_the_logit_of_transformers(score, write_rows, rows, cross_encoder, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    ours = scores_of(score, write_rows(rows), cross_encoder, target=tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    for (query, passage), value in ours.items():
        ids = tokenizer(query, passage, return_tensors="pt")["input_ids"]
        types = torch.zeros_like(ids)
        types[0, ids[0].tolist().index(tokenizer.sep_token_id) + 1 :] = 1
        with torch.no_grad():
            logit = model(input_ids=ids, token_type_ids=types).logits.item()
        assert value == pytest.approx(logit, abs=1e-4), (query, passage)
    assert np.ptp(list(ours.values())) > 0.1, "the teacher cannot tell texts apart"


def test_rows_and_keys_are_kept(score, write_rows, rows, cross_encoder, tmp_path):
    done = score(write_rows(rows), cross_encoder)
    assert done.returncode == 0, done.stderr
    assert "(encoder-only-base)" in done.stderr
    scored = objects(tmp_path / "scored.jsonl")
    assert [{key: row[key] for key in rows[0]} for row in scored] == rows
    assert [list(row) for row in scored] == [[*rows[0], "pos_scores", "neg_scores"]] * len(rows)
    assert scored[0]["neg_scores"] == []
    missing = [{key: row[key] for key in ("query", "pos")} for row in rows]
    done = score(write_rows(missing), cross_encoder, target=tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert {tuple(row["neg"] + row["neg_scores"]) for row in objects(tmp_path / "two")} == {()}


@pytest.mark.parametrize("teacher", ["minilm", "cross_encoder"])
def test_order_and_batches_do_not_matter(teacher, score, write_rows, rows, tmp_path, request):
    model = request.getfixturevalue(teacher)
    one = scores_of(score, write_rows(rows), model, target=tmp_path / "one")
    mixed = [{**row, "pos": row["pos"][::-1], "neg": row["neg"][::-1]} for row in reversed(rows)]
    two = scores_of(score, write_rows(mixed), model, "--batch-tokens", 30, target=tmp_path / "two")
    assert one.keys() == two.keys()
    for pair, value in one.items():
        assert two[pair] == pytest.approx(value, abs=1e-5)


def test_the_same_bytes_again_and_old_scores_replaced(score, write_rows, rows, cross_encoder, tmp_path):
    score(write_rows(rows), cross_encoder)
    first = (tmp_path / "scored.jsonl").read_bytes()
    done = score(tmp_path / "scored.jsonl", cross_encoder, target=tmp_path / "scored.jsonl")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scored.jsonl").read_bytes() == first
    stale = [row | {"pos_scores": [9.0] * len(row["pos"]), "neg_scores": [9.0] * len(row["neg"])} for row in rows]
    score(write_rows(stale), cross_encoder, target=tmp_path / "again")
    assert flat(objects(tmp_path / "again")) == flat(objects(tmp_path / "scored.jsonl"))


def test_sigmoid_and_scale(score, write_rows, rows, cross_encoder, tmp_path):
    data = write_rows(rows)
    plain = scores_of(score, data, cross_encoder, target=tmp_path / "a")
    normal = scores_of(score, data, cross_encoder, "--normalize", target=tmp_path / "b")
    scaled = scores_of(score, data, cross_encoder, "--scale", 20, target=tmp_path / "c")
    for pair, value in plain.items():
        assert normal[pair] == pytest.approx(1 / (1 + math.exp(-value)), abs=1e-6)
        assert scaled[pair] == pytest.approx(20 * value, rel=1e-6)


@pytest.mark.parametrize("teacher", ["tiny_bert", "cross_encoder"])
def test_instructions_are_put_in_front(teacher, score, write_rows, rows, tmp_path, request):
    model = request.getfixturevalue(teacher)
    words = ["--query-instruction-for-rerank", "A", "--query-instruction-format-for-rerank", "{}: {}",
             "--passage-instruction-for-rerank", "{B}", "--passage-instruction-format-for-rerank", "{} {}"]  # fmt: skip
    told = scores_of(score, write_rows(rows), model, *words, target=tmp_path / "told")
    written = [
        {"query": f"A: {row['query']}", "pos": [f"{{B}} {text}" for text in row["pos"]],
         "neg": [f"{{B}} {text}" for text in row["neg"]]}
        for row in rows
    ]  # fmt: skip
    by_hand = scores_of(score, write_rows(written), model, target=tmp_path / "by-hand")
    assert list(told.values()) == pytest.approx(list(by_hand.values()), abs=1e-6)
    plain = scores_of(score, write_rows(rows), model, target=tmp_path / "plain")
    assert list(told.values()) != pytest.approx(list(plain.values()), abs=1e-4)


def test_rows_prompt_counts_for_an_embedder(score, write_rows, rows, tiny_bert, tmp_path):
    told = scores_of(score, write_rows([row | {"prompt": "A: "} for row in rows]), tiny_bert, target=tmp_path / "a")
    option = scores_of(
        score, write_rows(rows), tiny_bert, "--query-instruction-for-rerank", "A: ", target=tmp_path / "b"
    )
    plain = scores_of(score, write_rows(rows), tiny_bert, target=tmp_path / "c")
    assert told == option != plain


def test_suspicious_negatives_are_told(score, write_rows, minilm):
    rows = [{"query": "Who hunts at night?", "pos": ["Bread needs yeast."], "neg": ["The owl hunts at night."]}]
    assert "in 1 rows the teacher puts a negative above every positive" in score(write_rows(rows), minilm).stderr


def test_cut_pairs_are_told(score, write_rows, cross_encoder):
    rows = [{"query": "a", "pos": ["b " * 500], "neg": []}]
    assert "1 pairs were cut" in score(write_rows(rows), cross_encoder).stderr


def test_an_embedder_asked_to_be_a_cross_encoder(score, write_rows, rows, tiny_bert, tmp_path):
    """transformers would give it a random head, and scores that mean nothing."""
    one_label = Path(shutil.copytree(tiny_bert, tmp_path / "one"))
    config = json.loads((one_label / "config.json").read_text()) | {"num_labels": 1, "id2label": {"0": "x"}}
    (one_label / "config.json").write_text(json.dumps(config))
    for model in (tiny_bert, one_label):
        done = score(write_rows(rows), model, "--reranker-model-class", "encoder-only-base")
        assert done.returncode == 1
        assert "embedder" in done.stderr
        assert not (tmp_path / "scored.jsonl").exists()


def test_scores_that_are_not_finite(score, write_rows, rows, cross_encoder, tmp_path):
    folder = Path(shutil.copytree(cross_encoder, tmp_path / "broken"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    done = score(write_rows(rows), folder)
    assert done.returncode == 1
    assert "not finite" in done.stderr
    assert not (tmp_path / "scored.jsonl").exists()


@pytest.mark.parametrize("model", ["./nowhere", "nobody/no-such-model"])
def test_missing_teacher(model, score, write_rows, rows):
    done = score(write_rows(rows), model)
    assert done.returncode == 1
    assert model in done.stderr
    assert "Traceback" not in done.stderr


def test_defective_row_is_named(score, write_rows, rows, cross_encoder):
    rows[4]["pos"] = []
    data = write_rows(rows)
    done = score(data, cross_encoder)
    assert (done.returncode, f"{data}:5" in done.stderr) == (1, True)


def test_output_is_checked_before_the_model_is_loaded(score, write_rows, rows, tmp_path):
    done = score(write_rows(rows), "./nowhere", target=tmp_path / "no" / "x")
    assert (done.returncode, "directory of this file" in done.stderr) == (2, True)
