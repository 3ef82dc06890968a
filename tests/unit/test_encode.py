"""Vectors do not depend on how texts are batched, on which device, or beside which others."""

import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bgectl.encode import choose_devices, choose_dtype, load_embedder, over_devices, plan_batches, tokenize, weakest
from bgectl.errors import RunError, UsageError

TEXTS = [f"kaban lodor {'mifel ' * (n % 7)} {n}" for n in range(40)] + ["", "a {} \u2028", "x " * 200]


@given(st.lists(st.integers(0, 90), max_size=60), st.integers(1, 300), st.integers(1, 20))
def test_batches(lengths, budget, most):
    batches = plan_batches(lengths, budget, most)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    order = [lengths[index] for batch in batches for index in batch]
    assert order == sorted(order, reverse=True), "the longest first, so that too much memory shows at once"
    for one, two in itertools.pairwise(batches):
        longest = max(1, max(lengths[index] for index in one))
        assert len(one) == most or (len(one) + 1) * longest > budget, f"{two} would fit into {one}"


@pytest.fixture(scope="module")
def reference(tiny_bert):
    """Each text encoded alone."""
    return load_embedder(tiny_bert, batch_size=1).encode_passages(TEXTS)


ALONE = {}
"""Vectors of each model, each text encoded alone."""


@pytest.mark.parametrize(
    "options", [{}, {"batch_tokens": 1}, {"batch_tokens": 100}, {"batch_size": 7}, {"devices": ["cpu", "cpu"]},
                {"devices": ["cpu", "cpu", "cpu"], "batch_tokens": 20}], ids=str
)  # fmt: skip
@pytest.mark.parametrize("architecture", ["tiny_bert", "tiny_xlmr"])
def test_vectors_do_not_depend_on_the_batches(architecture, options, request):
    name = request.getfixturevalue(architecture)
    if name not in ALONE:
        ALONE[name] = load_embedder(name, batch_size=1).encode_passages(TEXTS)
    alone = ALONE[name]
    np.testing.assert_allclose(load_embedder(name, **options).encode_passages(TEXTS), alone, atol=1e-5)


def test_vectors_do_not_depend_on_the_order(tiny_bert, reference):
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = load_embedder(tiny_bert).encode_passages([TEXTS[index] for index in order])
    np.testing.assert_allclose(shuffled, reference[order], atol=1e-5)


def test_chunks_change_nothing(tiny_bert, reference, monkeypatch):
    monkeypatch.setattr("bgectl.encode.CHUNK", 9)
    embedder = load_embedder(tiny_bert)
    np.testing.assert_allclose(embedder.encode_passages(TEXTS), reference, atol=1e-5)
    assert embedder.cut == 1, "texts cut are not counted once"


def test_vectors_have_length_one_unless_asked(tiny_bert, reference):
    np.testing.assert_allclose(np.linalg.norm(reference, axis=1), 1, atol=1e-5)
    bare = load_embedder(tiny_bert, normalize=False).encode_passages(TEXTS)
    assert np.abs(np.linalg.norm(bare, axis=1) - 1).max() > 0.1
    np.testing.assert_allclose(bare / np.linalg.norm(bare, axis=1, keepdims=True), reference, atol=1e-5)


def test_no_texts(tiny_bert):
    embedder = load_embedder(tiny_bert)
    assert embedder.encode_passages([]).shape == (0, 32)
    assert embedder.encode_queries([]).shape == (0, 32)


def test_instructions_and_row_prompts(tiny_bert):
    embedder = load_embedder(
        tiny_bert, query_instruction="kaban", query_format="{}: {}", passage_instruction="lodor", passage_format="{} {}"
    )
    plain = load_embedder(tiny_bert)
    np.testing.assert_allclose(
        embedder.encode_queries(["x", "y", "z"], [None, "mifel", ""]),
        plain.encode_queries(["kaban: x", "mifel: y", "z"]), atol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(
        embedder.encode_passages(["x"]), plain.encode_passages(["lodor x"]), atol=1e-5
    )  # fmt: skip


@pytest.mark.parametrize(("architecture", "limit"), [("tiny_bert", 64), ("tiny_xlmr", 64)])
def test_length_is_that_of_the_position_table(architecture, limit, request):
    """RoBERTa's table has two places that no token takes; one token more and the lookup fails."""
    embedder = load_embedder(request.getfixturevalue(architecture), query_max_length=512, passage_max_length=10)
    assert (embedder.query_max_length, embedder.passage_max_length) == (limit, 10)
    assert np.isfinite(embedder.encode_queries(["a " * 500])).all()


def test_tokenize_counts_what_is_cut(tiny_bert):
    tokenizer = load_embedder(tiny_bert).tokenizer
    ids, cut = tokenize(tokenizer, ["a b c", "a " * 30, "b " * 18, ""], 20)
    assert ([len(text) for text in ids], cut) == ([5, 20, 20, 2], 1)
    assert all(text[0] == tokenizer.cls_token_id and text[-1] == tokenizer.sep_token_id for text in ids)
    assert tokenize(tokenizer, [], 20) == ([], 0)


def test_broken_vectors_are_refused(tiny_bert):
    embedder = load_embedder(tiny_bert)
    with torch.no_grad():
        embedder.encoders[0].backbone.embeddings.word_embeddings.weight[embedder.tokenizer("kaban")["input_ids"][1]] = (
            float("nan")
        )
    with pytest.raises(RunError, match=r"'x kaban' is not finite \(1 of 3 texts\)"):
        embedder.encode_passages(["mifel", "x kaban", "y"])


def test_missing_weights_are_told(tiny_bert, tmp_path, capfd):
    """transformers fills them in at random and says so in a log that nobody sees."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_bert, tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_embedder(str(folder))
    assert "lack 1 weights" in capfd.readouterr().err


def test_damaged_weights(tiny_bert, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_bert, tmp_path / "damaged")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="damaged"):
        load_embedder(str(folder))


def test_encoder_decoders_are_refused(tmp_path):
    from transformers import AutoConfig

    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    with pytest.raises(RunError, match="encoder-decoder"):
        load_embedder(str(tmp_path))


# Devices


def test_every_item_goes_to_one_device():
    seen, lock = [], threading.Lock()

    def work(device, item):
        with lock:
            seen.append((device, item))

    over_devices(50, 3, work)
    assert sorted(item for _, item in seen) == list(range(50))
    assert {device for device, _ in seen} <= {0, 1, 2}


def test_an_error_ends_the_other_devices_work():
    done = []

    def work(device, item):
        if item == 0:
            raise RuntimeError("out of memory")
        threading.Event().wait(0.005)
        done.append(item)

    with pytest.raises(RuntimeError, match="out of memory"):
        over_devices(1000, 2, work)
    assert len(done) < 100


@pytest.mark.parametrize("names", [["cuda:99"], ["nonsense"], ["cpu", "cuda:99"]])
def test_devices_that_do_not_exist(names):
    with pytest.raises(UsageError):
        choose_devices(names)


def test_precision(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    assert choose_dtype("auto", cpu) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("auto", cpu, quick=True) == torch.bfloat16
    assert choose_dtype("float32", cpu, quick=True) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert choose_dtype("auto", cpu, quick=True) == torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_dtype("auto", cpu, quick=True) == torch.float32
    assert choose_dtype("auto", gpu) == choose_dtype("auto", gpu, use_fp16=True) == torch.float16
    assert choose_dtype("bfloat16", cpu) == choose_dtype("auto", cpu, use_bf16=True) == torch.bfloat16
    assert weakest([gpu, cpu]) == cpu
    for asked in ({"name": "auto", "use_fp16": True}, {"name": "float16"}):
        with pytest.raises(UsageError, match="CPU"):
            choose_dtype(device=cpu, **asked)
    with pytest.raises(UsageError, match="exclude"):
        choose_dtype("bfloat16", gpu, use_fp16=True)


def test_bfloat16_is_near(tiny_bert, reference):
    vectors = load_embedder(tiny_bert, dtype="bfloat16").encode_passages(TEXTS)
    assert vectors.dtype == np.float32
    assert (vectors * reference).sum(axis=1).min() > 0.99
