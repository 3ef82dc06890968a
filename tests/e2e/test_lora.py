"""`--use-lora`: only adapters learn, the folder holds the merged model, and the adapter alone gives the same."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bgectl.encode import load_embedder

TEXTS = ["kaban lodor", "mifel", "rugus " * 30, "tenim vodor xaban zifel kagus"]


@pytest.fixture
def train(inside, tmp_path, toy_rows, write_rows):
    """Train with adapters for a moment; `out` is the folder."""

    def call(kind, model, *words, out="out"):
        quick = ["--dataloader-num-workers", 0, "--batch-size", 4, "--train-group-size", 3, "--learning-rate", "0.01"]
        return inside(
            "train", kind, "--model", model, "--train-data", write_rows(toy_rows()), "--output-dir", tmp_path / out,
            "--use-lora", *quick, *words,
        )  # fmt: skip

    return call


@pytest.mark.parametrize(("kind", "architecture"), [("base", "tiny_bert"), ("m3", "tiny_xlmr")])
def test_adapter_and_merged_model_agree(kind, architecture, train, tmp_path, request):
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    model = request.getfixturevalue(architecture)
    done = train(kind, model, "--max-steps", 4, "--lora-rank", 4, "--sentence-pooling-method", "cls")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    before, after = load_file(f"{model}/model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "layer." in name and name.endswith("weight") and "Norm" not in name}
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_mode & 0o044 == 0o044
    base = AutoModel.from_pretrained(model, add_pooling_layer=False)
    adapted = PeftModel.from_pretrained(base, str(out / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=60, return_tensors="pt")
        theirs = adapted(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state[:, 0]
    theirs = torch.nn.functional.normalize(theirs, dim=-1)
    ours = load_embedder(str(out), passage_max_length=60, devices=["cpu"]).encode_passages(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    plain = load_embedder(model, passage_max_length=60, devices=["cpu"]).encode_passages(TEXTS)
    assert np.abs(ours - plain).max() > 1e-2


@pytest.mark.parametrize(("kind", "architecture"), [("base", "tiny_bert"), ("m3", "tiny_xlmr")])
def test_resumed_run_ends_with_the_same_bits(kind, architecture, train, tmp_path, request):
    words = [request.getfixturevalue(architecture), "--max-steps", 6, "--save-steps", 2, "--lora-rank", 4,
             "--sub-batch-size", 3]  # fmt: skip
    assert train(kind, *words, out="whole").returncode == 0
    assert train(kind, *words, out="cut").returncode == 0
    cut = tmp_path / "cut"
    shutil.rmtree(cut / "checkpoint-6")
    (cut / "model.safetensors").unlink()
    done = train(kind, *words, "--resume", "auto", out="cut")
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = load_file(tmp_path / "whole" / name), load_file(cut / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_adapters_of_the_layers_named(train, tmp_path, tiny_bert):
    done = train("base", tiny_bert, "--max-steps", 2, "--target-modules", "query", "value", "--lora-dropout", 0)
    assert done.returncode == 0, done.stderr
    assert "weights are trained" in done.stderr
    names = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors").keys()
    assert {name.split(".")[-3] for name in names} == {"query", "value"}


@pytest.mark.parametrize(("words", "code", "said"), [
    (["--target-modules", "nowhere"], 2, "--target-modules"),
    (["--no-use-lora", "--lora-rank", 4], 2, "--lora-rank needs --use-lora"),
])  # fmt: skip
def test_what_cannot_be(words, code, said, train, tiny_bert, tmp_path):
    done = train("base", tiny_bert, "--max-steps", 2, *words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "out" / "config.json").exists()


def test_best_weights_are_merged_too(train, tmp_path, tiny_bert, toy_rows, write_rows):
    held_out = write_rows(toy_rows(), "held_out.jsonl")
    done = train("base", tiny_bert, "--max-steps", 4, "--eval-data", held_out, "--eval-steps", 2)
    assert done.returncode == 0, done.stderr
    before, after = load_file(f"{tiny_bert}/model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
