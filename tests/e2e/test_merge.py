"""`merge-lora`: what it takes, what it refuses, and that nothing half-made is left."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import make_decoder
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bgectl.encode import load_embedder
from bgectl.models.adapter import WEIGHTS
from bgectl.models.hub import Hub
from bgectl.models.weights import open_weights, plan_shards, write_weights
from bgectl.options.merge import shard_bytes

TEXTS = ["kaban lodor", "mifel rugus", "tenim vodor xaban zifel kagus"]


def vectors(folder):
    return load_embedder(str(folder), devices=["cpu"]).encode_passages(TEXTS)


@pytest.fixture(scope="module")
def trained(decoders, tiny_words, tmp_path_factory):
    """Output folder of a short training with adapters and new tokens, two checkpoints in it."""
    from bgectl.cli import main

    folder = tmp_path_factory.mktemp("trained")
    rows = [{"query": word, "pos": [f"{word} a"], "neg": [f"{other} a" for other in tiny_words[9:12]]}
            for word in tiny_words[:8]]  # fmt: skip
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "train", "llm", "-m", decoders["mistral"], "-t", data, "-o", folder / "out", "-b", 4, "--train-group-size", 2,
        "--max-steps", 4, "--save-steps", 2, "--lora-rank", 4, "--learning-rate", 0.01, "--dataloader-num-workers", 0,
        "--additional-special-tokens", "<new>",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ending:
        main([str(word) for word in words])
    assert ending.value.code == 0
    return folder / "out"


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the training's folder."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def without(path, key):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name != key}))


def refused(done, *said, out):
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(words in done.stderr for words in said), done.stderr
    assert not out.exists()
    assert not list(out.parent.glob(".*.part"))


def test_shards_and_precision(trained, inside, tmp_path):
    done = inside("merge-lora", trained, tmp_path / "small", "--max-shard-size", "20KB", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    shards = sorted((tmp_path / "small").glob("model-*.safetensors"))
    assert len(shards) == 3
    assert all(path.stat().st_size < 25_000 for path in shards)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in shards)
    with safe_open(shards[0], framework="pt") as stream:
        assert {stream.get_tensor(name).dtype for name in stream.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((tmp_path / "small" / "config.json").read_text())["dtype"] == "bfloat16"
    np.testing.assert_allclose(vectors(tmp_path / "small"), vectors(trained), atol=0.02)


def test_a_run_means_its_adapter_else_its_newest_whole_checkpoint(copy, inside, tmp_path):
    assert inside("merge-lora", copy / "checkpoint-2", tmp_path / "two").returncode == 0
    np.testing.assert_allclose(vectors(tmp_path / "two"), vectors(copy / "checkpoint-2"), atol=1e-6)
    assert np.abs(vectors(copy / "checkpoint-2") - vectors(copy)).max() > 1e-4
    (copy / "adapter_config.json").unlink()
    (copy / "checkpoint-4" / WEIGHTS).write_bytes(b"cut off")
    done = inside("merge-lora", copy, tmp_path / "newest")
    assert done.returncode == 0, done.stderr
    assert "newest whole checkpoint, checkpoint-2" in done.stderr
    np.testing.assert_allclose(vectors(tmp_path / "newest"), vectors(tmp_path / "two"), atol=1e-6)
    refused(
        inside("merge-lora", copy / "checkpoint-4", tmp_path / "none"),
        "not written to its end", "the newest whole one is", "checkpoint-2", out=tmp_path / "none",
    )  # fmt: skip
    (copy / "checkpoint-2" / "bgectl-checkpoint.json").unlink()
    refused(inside("merge-lora", copy, tmp_path / "none"), "no checkpoint in it is whole", out=tmp_path / "none")


def test_another_base_is_refused(trained, inside, decoders, tiny_words, tmp_path):
    out = tmp_path / "out"
    values = make_decoder("mistral", tiny_words, tmp_path / "values", seed=1)
    sizes = make_decoder("mistral", tiny_words, tmp_path / "sizes", intermediate_size=48)
    for base, said in ((values, "the weights of"), (sizes, "another base model"), (decoders["llama"], "another base")):
        refused(inside("merge-lora", trained, out, "--base", base), said, str(trained), out=out)
    # Without a record of the base, the shapes still tell.
    bare = Path(shutil.copytree(trained, tmp_path / "bare"))
    (bare / "bgectl_adapter.json").unlink()
    for base, said in ((sizes, "another base model"), (tmp_path / "nowhere", "the base model cannot be loaded")):
        refused(inside("merge-lora", bare, out, "--base", base), said, out=out)


def test_a_copy_of_the_base_is_the_base(trained, inside, decoders, tmp_path):
    """In other files, in half the precision, and as the language model it was."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(decoders["mistral"], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "copy", max_shard_size="20KB")
    assert (tmp_path / "copy" / "model.safetensors.index.json").is_file()
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    assert {"lm_head.weight", "model.norm.weight"} <= index["weight_map"].keys()
    done = inside("merge-lora", trained, tmp_path / "out", "--base", tmp_path / "copy", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(trained), atol=0.02)


def test_a_base_in_torchs_own_files(trained, inside, decoders, tmp_path):
    base = Path(shutil.copytree(decoders["mistral"], tmp_path / "base"))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    done = inside("merge-lora", trained, tmp_path / "out", "--base", base)
    assert done.returncode == 0, done.stderr
    assert "only the shapes of its weights can tell" in done.stderr
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(trained), atol=1e-6)


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda f: (f / WEIGHTS).write_bytes(b"{"), "weights are damaged"),
    (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]), "weights are damaged"),
    (lambda f: (f / WEIGHTS).unlink(), "lacks the adapter's weights"),
    (lambda f: (f / "adapter_config.json").write_text("{"), "is not valid JSON"),
    (lambda f: (f / "adapter_config.json").write_text('{"peft_type": "IA3"}'), "LoRA is what can be merged"),
    (lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}'), "LoRA with use_dora"),
    (lambda f: without(f / "adapter_config.json", "base_model_name_or_path"), "does not name its base model"),
])  # fmt: skip
def test_damaged_adapters(spoil, said, copy, inside, tmp_path):
    for checkpoint in copy.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    spoil(copy)
    refused(inside("merge-lora", copy, tmp_path / "out"), said, "copy", out=tmp_path / "out")


def test_a_merged_model_that_does_not_agree_is_not_kept(trained, inside, tmp_path, monkeypatch):
    from bgectl.models.adapter import Adapter

    monkeypatch.setattr(Adapter, "added", lambda self, name, weight, embedding: weight)
    refused(inside("merge-lora", trained, tmp_path / "out"), "does not agree with the adapter", out=tmp_path / "out")


def test_what_is_there_stays(trained, inside, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    done = inside("merge-lora", trained, out)
    assert (done.returncode, "not empty" in done.stderr) == (2, True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert inside("merge-lora", trained, out).returncode == 0


def test_a_full_disk(trained, tmp_path, monkeypatch):
    """The write fails where a file may not grow further; and what cannot fit is not begun."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); "
    limit += (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from bgectl.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", limit, "merge-lora", str(trained), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "160"})
    refused(done, "cannot be written", out=tmp_path / "out")


def test_too_small_a_disk(trained, inside, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("bgectl.train.merge.shutil.disk_usage", lambda _: usage._replace(free=1000))
    refused(inside("merge-lora", trained, tmp_path / "out"), "the disk is too small", out=tmp_path / "out")


def test_foreign_adapters(inside, decoders, tmp_path):
    """peft's own: alpha and rank by layer, rank-stabilised, in the old format, without tokenizer or prompts."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(decoders["llama"])
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2},
        alpha_pattern={"down_proj": 3}, use_rslora=True, init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "theirs", safe_serialization=True)
    stored = load_file(tmp_path / "theirs" / WEIGHTS)
    torch.save(stored, tmp_path / "theirs" / "adapter_model.bin")
    (tmp_path / "theirs" / WEIGHTS).unlink()
    done = inside("merge-lora", tmp_path / "theirs", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    theirs = adapted.merge_and_unload().model.state_dict()
    ours = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=1e-5)


def test_flagembeddings_adapter_with_new_tokens(trained, inside, decoders, tmp_path):
    """It keeps the whole table as a pickled layer, which is read without running what a pickle could hold."""
    merged = tmp_path / "merged"
    assert inside("merge-lora", trained, merged).returncode == 0
    table = load_file(merged / "model.safetensors")["embed_tokens.weight"]
    theirs = Path(
        shutil.copytree(trained, tmp_path / "theirs", ignore=shutil.ignore_patterns("checkpoint-*", "*.jsonl"))
    )
    stored = load_file(theirs / WEIGHTS)
    save_file({key: value for key, value in stored.items() if "token_adapter" not in key}, theirs / WEIGHTS)
    config = json.loads((theirs / "adapter_config.json").read_text())
    (theirs / "adapter_config.json").write_text(json.dumps({**config, "trainable_token_indices": None}))
    (theirs / "embedding").mkdir()
    torch.save(torch.nn.Embedding.from_pretrained(table), theirs / "embedding" / "emb.pth")
    done = inside("merge-lora", theirs, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ours, expected = load_file(tmp_path / "out" / "model.safetensors"), load_file(merged / "model.safetensors")
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    (theirs / "embedding" / "emb.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    refused(inside("merge-lora", theirs, tmp_path / "bad"), "cannot be read as a table", out=tmp_path / "bad")


def test_an_encoders_adapter(inside, tiny_bert, write_rows, toy_rows, tmp_path):
    done = inside(
        "train", "base", "-m", tiny_bert, "-t", write_rows(toy_rows()), "-o", tmp_path / "out", "--use-lora", "-b", 4,
        "--max-steps", 2, "--learning-rate", 0.01, "--lora-rank", 4, "--dataloader-num-workers", 0,
        "--sentence-pooling-method", "mean", "--train-group-size", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = inside("merge-lora", tmp_path / "out" / "adapter", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    for folder in (tmp_path / "merged", tmp_path / "out" / "adapter"):
        np.testing.assert_allclose(vectors(folder), vectors(tmp_path / "out"), atol=1e-6)


def test_writer_and_reader(tmp_path):
    weights = {"a.0.weight": torch.randn(7, 3), "b": torch.randn(5), "c.1.weight": torch.randn(4, 4)}
    shapes = {name: list(weight.shape) for name, weight in weights.items()}
    for dtype, most, files in ((torch.float32, 10**9, 1), (torch.bfloat16, 40, 3)):
        folder = tmp_path / str(files)
        folder.mkdir()
        paths = write_weights(folder, weights.items(), shapes, dtype, most)
        assert len(paths) == files
        stored = {name: tensor for path in paths for name, tensor in load_file(path).items()}
        assert all(torch.equal(stored[name], weights[name].to(dtype)) for name in weights)
        source = open_weights(str(folder), Hub())
        assert all(torch.equal(source.get(name), weights[name].to(dtype)) for name in weights)
    prints = {open_weights(str(tmp_path / name), Hub()).fingerprint() for name in ("1", "3")}
    assert len(prints) == 1
    weights["c.1.weight"][0, 0] += 1
    write_weights(tmp_path / "1", weights.items(), shapes, torch.float32, 10**9)
    assert open_weights(str(tmp_path / "1"), Hub()).fingerprint() not in prints


def test_sizes():
    assert plan_shards([("a", 5), ("b", 5), ("c", 11), ("d", 1)], 10) == [["a", "b"], ["c"], ["d"]]
    assert [shard_bytes(text) for text in ("5GB", "1GiB", "500 mb", "1.5k", "7")] == [
        5_000_000_000, 1 << 30, 500_000_000, 1500, 7,
    ]  # fmt: skip


PEAK = """
import resource, sys
from bgectl.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ending:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    raise
"""


@pytest.mark.slow
def test_memory_of_merging_a_billion_weights(decoders, tiny_words, tmp_path):
    """A billion weights in float32 are 4.0 GB; merging and checking take less than 1.3 times that."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(
        "mistral", vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=21,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    make_decoder("mistral", tiny_words, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    child = os.fork()
    if child == 0:  # what this takes is not to be kept in the tests' process
        torch.set_default_dtype(torch.float32)
        model = AutoModel.from_config(config)
        model.save_pretrained(tmp_path / "base")
        targets = LoraConfig(r=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        adapted = get_peft_model(model, targets)
        adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        adapted.save_pretrained(tmp_path / "adapter")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    size = sum(path.stat().st_size for path in (tmp_path / "base").glob("*.safetensors"))
    assert size > 4_000_000_000
    command = [sys.executable, "-c", PEAK, "merge-lora", str(tmp_path / "adapter"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1])
    print(f"peak {peak / 1e9:.2f} GB, {peak / size:.2f} times the model")
    assert peak < 1.3 * size, done.stderr
