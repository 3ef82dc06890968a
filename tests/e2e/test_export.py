"""`bgectl export --to onnx`: the graph computes what the model does, for any batch and length."""

import json
from pathlib import Path

import numpy as np
import pytest

from bgectl.encode import load_embedder
from bgectl.export import onnx as export
from bgectl.models.m3 import with_heads

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TEXTS = ["kaban", "kaban lodor mifel", "rugus tenim vo a b c d e " * 4]


def answer(folder, texts, *names):
    """What the exported model says to texts, tokenised by the exported tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=60, return_tensors="np")
    wanted = {node.name for node in session.get_inputs()}
    return inputs, session.run(list(names), {name: ids for name, ids in inputs.items() if name in wanted})


def vectors(folder, texts):
    return answer(folder, texts, "sentence_embedding")[1][0]


def expected(model, texts, **more):
    return load_embedder(model, devices=["cpu"], passage_max_length=60, **more).encode_passages(texts)


@pytest.fixture(scope="module")
def exported(tiny_bert, tmp_path_factory):
    """The folder of an exported BERT."""
    out = tmp_path_factory.mktemp("export") / "bert-onnx"
    export.export(tiny_bert, out, hub=export.Hub(), pooling="mean")
    return out


def test_the_graph_gives_the_vectors_of_the_model(exported, tiny_bert):
    for texts in (TEXTS, TEXTS[:1], TEXTS * 5):
        assert np.abs(vectors(exported, texts) - expected(tiny_bert, texts, pooling="mean")).max() < 1e-5
    assert np.abs(np.linalg.norm(vectors(exported, TEXTS), axis=1) - 1).max() < 1e-5
    alone = np.concatenate([vectors(exported, [text]) for text in TEXTS])
    assert np.abs(alone - vectors(exported, TEXTS)).max() < 1e-5, "padding changes nothing"


def test_the_folder_is_one_that_others_open(exported):
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    wanted = {
        "onnx/model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json",
        "1_Pooling/config.json", "2_Normalize/config.json", "sentence_bert_config.json", "README.md",
        "config_sentence_transformers.json", "bgectl-manifest.json",
    }  # fmt: skip
    assert files == wanted, "no weights but the graph's"
    assert json.loads((exported / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True
    graph = onnx.load(exported / "onnx" / "model.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert shapes == {
        "input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"],
        "token_type_ids": ["batch", "sequence"], "last_hidden_state": ["batch", "sequence", 32],
        "sentence_embedding": ["batch", 32],
    }  # fmt: skip
    assert list(exported.parent.iterdir()) == [exported]


def test_the_graph_does_not_tell_where_it_was_made(exported):
    data = (exported / "onnx" / "model.onnx").read_bytes()
    assert b"transformers/" not in data
    assert str(Path(export.__file__).parent).encode() not in data


def test_the_usage_in_the_card_runs(exported, monkeypatch):
    text = (exported / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(exported.parent)
    names = {}
    exec(code, names)
    assert names["vectors"].shape == (1, 32)


@pytest.mark.slow
def test_heads_of_m3_are_outputs(inside, m3, tmp_path):
    import torch

    done = inside("export", m3, tmp_path / "out", "--to", "onnx", "--opset", "18")
    assert done.returncode == 0, done.stderr
    assert "largest differences" in done.stderr
    assert onnx.load(tmp_path / "out" / "onnx" / "model.onnx").opset_import[0].version == 18
    embedder = load_embedder(m3, devices=["cpu"])
    encoder = with_heads(embedder.encoders[0], m3, embedder.tokenizer, export.Hub())
    names = ("sentence_embedding", "sparse_weights", "colbert_vectors")
    inputs, (dense, sparse, colbert) = answer(tmp_path / "out", TEXTS, *names)
    ids, mask = (torch.from_numpy(inputs[name]) for name in ("input_ids", "attention_mask"))
    with torch.inference_mode():
        told = encoder.outputs(ids, mask)
    assert np.abs(dense - torch.nn.functional.normalize(told["dense"], dim=-1).numpy()).max() < 1e-5
    real = mask.bool().numpy()
    assert np.abs(sparse[real] - told["sparse"].numpy()).max() < 1e-4
    assert not sparse[~real].any()
    assert sparse.any()
    assert np.abs(colbert[real[:, 1:]] - torch.nn.functional.normalize(told["colbert"], dim=-1).numpy()).max() < 1e-5
    assert not colbert[~real[:, 1:]].any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma2", "qwen3"])
def test_a_decoder_ends_texts_and_takes_the_last_token(inside, decoders, tmp_path, kind):
    done = inside("export", decoders[kind], tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert np.abs(vectors(tmp_path / "out", TEXTS) - expected(decoders[kind], TEXTS)).max() < 1e-5


@pytest.mark.slow
def test_half_precision_and_weights_beside(inside, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONE_FILE", 1000)
    done = inside("export", tiny_bert, tmp_path / "out", "--dtype", "float16", "--no-normalize-embeddings")
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "out" / "onnx" / export.WEIGHTS
    assert weights.stat().st_mode & 0o044, "others may read what they may read of the graph"
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx", load_external_data=False).graph
    kinds = {weight.data_type for weight in graph.initializer if weight.external_data}
    assert kinds == {onnx.TensorProto.FLOAT16}
    one, other = vectors(tmp_path / "out", TEXTS), expected(tiny_bert, TEXTS, normalize=False)
    assert np.abs(np.linalg.norm(other, axis=1) - 1).min() > 0.1, "else nothing is tested of --no-normalize"
    assert np.abs(one - other).max() < 0.02 * np.abs(other).max()


def test_a_model_that_differs_fails_and_leaves_nothing(inside, tiny_bert, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(export, "TOLERANCE", {torch.float32: 0.0})
    done = inside("export", tiny_bert, tmp_path / "out")
    assert done.returncode == 1
    assert "does not agree with the given one in" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_told(inside, tiny_bert, tmp_path, monkeypatch):
    import torch

    def fail(*_, **__):
        raise RuntimeError("a long story") from ValueError("no operator for this\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    done = inside("export", tiny_bert, tmp_path / "out")
    assert done.returncode == 1
    assert "cannot export this kind of model: no operator for this\n" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_refusals(inside, tiny_bert, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    done = inside("export", tiny_bert, tmp_path / "full")
    assert (done.returncode, "is not empty" in done.stderr) == (2, True)
    assert (tmp_path / "full" / "file").read_text() == "mine"
    monkeypatch.setattr(export, "installed", lambda name: None if name == "onnxscript" else "1")
    done = inside("export", tiny_bert, tmp_path / "out")
    assert done.returncode == 2
    assert "onnxscript is not installed" in done.stderr
    assert "pip install 'bgectl[onnx]'" in done.stderr
