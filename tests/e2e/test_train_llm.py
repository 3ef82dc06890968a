"""`train llm`: decoders with LoRA; the adapter's folder is complete, and whoever opens it gets the trained vectors."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import make_decoder
from safetensors.torch import load_file

from bgectl.doctor.versions import release
from bgectl.encode import load_embedder
from bgectl.models.lora import TOKENS_IN_FILE

TEXTS = ["kaban lodor", "mifel", "rugus " * 30, "tenim <query> vodor xaban <instruct>zifel kagus", "模型 naïve"]
LENGTH = 60
TOKENS = ["--additional-special-tokens", "<instruct>", "<query>"]


@pytest.fixture
def train(inside, tmp_path, toy_rows, write_rows):
    """Train for a moment; `out` is the folder."""

    def call(model, *words, out="out", kind="llm"):
        quick = ["--dataloader-num-workers", 0, "--batch-size", 4, "--train-group-size", 3, "--learning-rate", "0.01"]
        adapters = [] if {"--no-use-lora", "--from-peft"} & set(words) else ["--lora-rank", 4]
        done = inside(
            "train", kind, "--model", model, "--train-data", write_rows(toy_rows()), "--output-dir", tmp_path / out,
            *quick, *adapters, *words,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return tmp_path / out

    return call


def vectors(folder, **given):
    return load_embedder(str(folder), devices=["cpu"], passage_max_length=LENGTH, **given).encode_passages(TEXTS)


def by_transformers(model, tokenizer):
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    ends = inputs["attention_mask"].cumsum(dim=1).argmax(dim=1)
    return torch.nn.functional.normalize(hidden[torch.arange(len(TEXTS)), ends], dim=-1).numpy()


@pytest.mark.parametrize("tokens", [[], TOKENS], ids=["plain", "new-tokens"])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "qwen2"])
def test_train_stop_resume_merge_and_open_elsewhere(kind, tokens, train, inside, decoders, tmp_path):
    words = [decoders[kind], "--max-steps", 6, "--save-steps", 2, *tokens]
    whole, cut = train(*words, out="whole"), train(*words, out="cut")
    shutil.rmtree(cut / "checkpoint-6")
    (cut / "adapter_model.safetensors").unlink()
    train(*words, "--resume", "auto", out="cut")
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(key.endswith(TOKENS_IN_FILE) for key in one) == bool(tokens)

    done = inside("merge-lora", whole, tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert "by adapter and by merged model: cosine 1.000000" in done.stderr
    adapter, merged = vectors(whole), vectors(tmp_path / "merged")
    np.testing.assert_allclose(adapter, merged, atol=1e-6)
    assert np.abs(adapter - vectors(decoders[kind])).max() > 1e-2

    from peft import AutoPeftModelForFeatureExtraction
    from transformers import AutoModel, AutoTokenizer

    adapted = AutoPeftModelForFeatureExtraction.from_pretrained(str(whole)).eval()
    np.testing.assert_allclose(by_transformers(adapted, AutoTokenizer.from_pretrained(whole)), adapter, atol=1e-5)
    plain = AutoModel.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(by_transformers(plain, tokenizer), adapter, atol=1e-5)


def test_opens_in_sentence_transformers_and_flagembedding(train, decoders, tmp_path):
    st, flag = pytest.importorskip("sentence_transformers"), pytest.importorskip("FlagEmbedding")
    out = train(
        decoders["llama"], "--max-steps", 4, "--save-merged-lora-model", "--query-instruction-for-retrieval", "find it",
        "--query-instruction-format", r"<i>{}\n<q>{}", "--passage-max-len", LENGTH,
    )  # fmt: skip
    ours = vectors(out)
    # transformers 5.0 to 5.3, by which it opens an adapter, leave the base's weights as they were.
    early = release(version("transformers")) < (5, 4)
    for folder in (out / "merged_model",) if early else (out, out / "merged_model"):
        model = st.SentenceTransformer(str(folder), device="cpu")
        model.max_seq_length = LENGTH
        np.testing.assert_allclose(model.encode(TEXTS), ours, atol=1e-5)
    queries = load_embedder(str(out), devices=["cpu"], query_max_length=LENGTH).encode_queries(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS, prompt_name="query"), queries, atol=1e-5)
    theirs = flag.FlagLLMModel(
        str(out / "merged_model"), use_fp16=False, devices="cpu", query_max_length=LENGTH, passage_max_length=LENGTH,
        query_instruction_for_retrieval="find it", query_instruction_format="<i>{}\n<q>{}",
    )  # fmt: skip
    np.testing.assert_allclose(theirs.encode_queries(TEXTS), queries, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_corpus(TEXTS), ours, atol=1e-5)
    # Another instruction gets the format that the model was trained with.
    other = load_embedder(str(out), devices=["cpu"], query_instruction="name it")
    assert other.prompts.query("x") == "<i>name it\n<q>x"
    # A hub's card says how the text was worded.
    assert "`<i>{}\\n<q>{}`" in (out / "README.md").read_text()


def test_what_is_merged_at_the_end_of_training_is_what_merge_lora_writes(train, inside, decoders, tmp_path):
    out = train(decoders["qwen2"], "--max-steps", 3, "--save-merged-lora-model", *TOKENS, "--modules-to-save", "norm")
    assert inside("merge-lora", out, tmp_path / "later").returncode == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json", "prompt_format.json"):
        one, later = out / "merged_model" / name, tmp_path / "later" / name
        assert one.is_file() == later.is_file()
        assert not one.is_file() or one.read_bytes() == later.read_bytes(), name
    before = load_file(Path(decoders["qwen2"]) / "model.safetensors")
    after = load_file(out / "merged_model" / "model.safetensors")
    changed = {
        name for name in before if before[name].shape != after[name].shape or not before[name].equal(after[name])
    }
    assert changed == {name for name in before if name.endswith(("proj.weight", "norm.weight", "embed_tokens.weight"))}
    # Rows of known tokens are the base's.
    assert after["embed_tokens.weight"][: len(before["embed_tokens.weight"])].equal(before["embed_tokens.weight"])
    # A run over it starts with nothing of it left.
    train(decoders["qwen2"], "--max-steps", 2, "--overwrite-output-dir")
    assert not (out / "merged_model").exists()


def test_new_tokens_begin_as_their_pieces_and_learn(train, decoders, write_rows, toy_rows):
    base = load_file(Path(decoders["mistral"]) / "model.safetensors")["embed_tokens.weight"]
    from transformers import AutoTokenizer

    pieces = AutoTokenizer.from_pretrained(decoders["mistral"])("<query>", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    format_words = ["--query-instruction-for-retrieval", "x", "--query-instruction-format", "{}<query>{}"]
    start = train(decoders["mistral"], "--max-steps", 1, "--warmup-steps", 1, *TOKENS, *format_words, out="start")
    end = train(decoders["mistral"], "--max-steps", 4, *TOKENS, *format_words, out="end")
    rows = [next(v for k, v in load_file(f / "adapter_model.safetensors").items() if k.endswith(TOKENS_IN_FILE))
            for f in (start, end)]  # fmt: skip
    # The first step of a warm-up has a learning rate of 0.
    torch.testing.assert_close(rows[0][1], base[pieces].mean(dim=0), atol=1e-6, rtol=0)
    assert rows[0][0].equal(rows[1][0]), "a token that no text has does not change"
    assert not rows[0][1].equal(rows[1][1])


def test_adapter_on_adapter(train, inside, decoders, tmp_path):
    """`--from-peft` goes on with one; `--raw-peft` trains a second on top, which brings the first along."""
    first = train(decoders["mistral"], "--max-steps", 3, *TOKENS, out="first")
    on = train(decoders["mistral"], "--max-steps", 3, "--from-peft", first, out="on")
    assert load_file(on / "adapter_model.safetensors").keys() == load_file(first / "adapter_model.safetensors").keys()
    assert json.loads((on / "adapter_config.json").read_text())["r"] == 4
    assert np.abs(vectors(on) - vectors(first)).max() > 1e-3
    more = train(
        decoders["mistral"], "--max-steps", 2, "--from-peft", first, "--additional-special-tokens", "<query>", "<new>",
        out="more",
    )  # fmt: skip
    assert len(json.loads((more / "adapter_config.json").read_text())["trainable_token_indices"]["embed_tokens"]) == 3
    top = train(decoders["mistral"], "--max-steps", 3, "--raw-peft", first, out="top")
    alone = vectors(top)
    for name, words in (("by-top", [top]), ("by-both", [first, top])):
        done = inside("merge-lora", *words, tmp_path / name)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(vectors(tmp_path / name), alone, atol=1e-6)
    # The first adapter's folder may go: what it takes lies in the second's.
    shutil.rmtree(first)
    np.testing.assert_allclose(vectors(top), alone, atol=1e-6)
    further = train(decoders["mistral"], "--max-steps", 1, "--warmup-steps", 1, "--from-peft", top, out="further")
    np.testing.assert_allclose(vectors(further), alone, atol=1e-6)


def test_without_adapters_all_weights_are_trained(train, decoders):
    out = train(decoders["qwen3"], "--no-use-lora", "--max-steps", 2, *TOKENS)
    before, after = load_file(Path(decoders["qwen3"]) / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert len(after["embed_tokens.weight"]) == len(before["embed_tokens.weight"]) + 2
    assert all(name == "embed_tokens.weight" or not before[name].equal(after[name]) for name in before)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(after["embed_tokens.weight"])
    assert vectors(out).shape == (len(TEXTS), 32)


def test_bfloat16_holds_the_frozen_weights_in_half(train, decoders, monkeypatch):
    from bgectl.train import run

    seen, finish = {}, run.finish

    def look(options, model, *rest):
        for parameter in model.encoder.parameters():
            seen.setdefault(parameter.requires_grad, set()).add(parameter.dtype)
        finish(options, model, *rest)

    monkeypatch.setattr(run, "finish", look)
    out = train(
        decoders["gemma2"], "--bf16", "--max-steps", 3, *TOKENS, "--gradient-checkpointing", "--sub-batch-size", 2
    )
    assert seen == {True: {torch.float32}, False: {torch.bfloat16}}
    assert {tensor.dtype for tensor in load_file(out / "adapter_model.safetensors").values()} == {torch.float32}


def test_four_bits(train, inside, decoders, tmp_path):
    pytest.importorskip("bitsandbytes")
    out = train(decoders["llama"], "--load-in-4bit", "--max-steps", 3, *TOKENS, "--save-steps", 2)
    done = inside("merge-lora", out, tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(vectors(out), vectors(tmp_path / "merged"), atol=1e-6)


def test_held_out_data_keeps_the_best_adapter(train, decoders, toy_rows, write_rows):
    held_out = write_rows(toy_rows(), "held_out.jsonl")
    out = train(decoders["mistral"], "--max-steps", 4, "--eval-data", held_out, "--eval-steps", 2, *TOKENS)
    assert "weights are those of step" in (out / "README.md").read_text()
    assert np.isfinite(vectors(out)).all()


def test_dry_run_shows_the_end_of_texts(inside, decoders, write_rows, toy_rows, tmp_path):
    done = inside(
        "train", "llm", "-m", decoders["llama"], "-t", write_rows(toy_rows()), "-o", tmp_path / "o", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    texts = [line for line in done.stdout.splitlines() if line.startswith(("  query", "  positive", "  negative"))]
    assert len(texts) > 2
    assert all(line.endswith("</s>") for line in texts)


@pytest.mark.parametrize(("words", "code", "said"), [
    (["--target-modules", "nowhere"], 2, "--target-modules"),
    (["--modules-to-save", "nowhere"], 2, "no such module"),
    (["--no-use-lora", "--save-merged-lora-model"], 2, "--save-merged-lora-model needs --use-lora"),
    (["--from-peft", "a", "--lora-rank", 8], 2, "--lora-rank cannot be given with --from-peft"),
    (["--from-peft", "./a"], 1, "no such model folder"),
    (["--sentence-pooling-method", "cls"], 2, "sees no other"),
    (["--load-in-4bit", "--no-use-lora"], 2, "--load-in-4bit needs --use-lora"),
    (["--use-flash-attn", "--attn-implementation", "sdpa"], 2, "exclude each other"),
    (["--use-flash-attn"], 1, "flash_attention_2 cannot be had"),
    (["--use-slow-tokenizer"], 2, "no slow tokenizer"),
    (["--additional-special-tokens", " "], 2, "a token is empty"),
])  # fmt: skip
def test_what_cannot_be(words, code, said, inside, decoders, write_rows, toy_rows, tmp_path):
    data = write_rows(toy_rows())
    done = inside("train", "llm", "-m", decoders["mistral"], "-t", data, "-o", tmp_path / "out", *words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_each_kind_of_model_has_its_command(train, inside, decoders, tiny_bert, write_rows, toy_rows, tmp_path):
    words = ["--train-data", write_rows(toy_rows()), "--output-dir", tmp_path / "other"]
    for command, model, said in (("base", decoders["llama"], "train llm"), ("llm", tiny_bert, "train base")):
        done = inside("train", command, "--model", model, *words)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    adapter = train(decoders["llama"], "--max-steps", 1)
    done = inside("train", "llm", "--model", adapter, *words)
    assert (done.returncode, "--from-peft goes on with it" in done.stderr) == (1, True), done.stderr


def test_an_adapter_of_other_weights_is_not_gone_on_with(
    train, inside, decoders, tiny_words, write_rows, toy_rows, tmp_path
):
    first = train(decoders["mistral"], "--max-steps", 1, out="first")
    other = make_decoder("mistral", tiny_words, tmp_path / "other", seed=1)
    done = inside("train", "llm", "-m", other, "-t", write_rows(toy_rows()), "-o", tmp_path / "o", "--from-peft", first)
    assert (done.returncode, "trained on another base model" in done.stderr) == (1, True), done.stderr
