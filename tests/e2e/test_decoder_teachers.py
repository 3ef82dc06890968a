"""`score` with decoders: tiny models whose scores are computed here once more, pair by pair and in full."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import make_decoder
from safetensors.torch import load_file, save_file

from bgectl.models.decoder_rerankers import PROMPT, compress

HEADS = 3
"""On the layers 2, 3 and 4."""


@pytest.fixture(scope="module")
def teachers(tiny_words, tmp_path_factory):
    """Folders: a language model, a MiniCPM and a Gemma 2 with a head on each of the last layers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folders = {}
    for kind, shape in (("base", "mistral"), ("layerwise", "granite"), ("lightweight", "gemma2")):
        folder = tmp_path_factory.mktemp(kind)
        make_decoder("llama", tiny_words, folder)
        extra = {"embedding_multiplier": 12, "residual_multiplier": 1.4 / math.sqrt(4),
                 "attention_multiplier": 1 / math.sqrt(8)} if shape == "granite" else {}  # fmt: skip
        extra |= {"attn_logit_softcapping": None, "query_pre_attn_scalar": 8} if shape == "gemma2" else {}
        config = AutoConfig.for_model(
            shape, vocab_size=400, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, intermediate_size=64, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
            pad_token_id=1, initializer_range=0.1, tie_word_embeddings=False, **extra,
        )  # fmt: skip
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)
        if kind != "base":
            weights = load_file(folder / "model.safetensors")
            weights.pop("lm_head.weight")
            weights |= {f"lm_head.{n}.linear_head.weight": torch.randn(1, 32) for n in range(HEADS)}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            given = json.loads((folder / "config.json").read_text())
            name = {"layerwise": "LayerWiseMiniCPMForCausalLM", "lightweight": "CostWiseGemmaForCausalLM"}[kind]
            given |= {
                "architectures": [name],
                "start_layer": 2,
                "model_type": "minicpm" if shape == "granite" else "cost",
            }
            given |= {"scale_emb": 12, "scale_depth": 1.4, "head_type": "simple", "head_multi": True, "layer_sep": 1}
            given["rope_theta"] = given.pop("rope_parameters")["rope_theta"]
            (folder / "config.json").write_text(json.dumps(given))
        folders[kind] = folder, model.eval()
    return folders


def tokens_of(tokenizer, query, passage, prompt=PROMPT):
    """What the model reads, and where the passage lies."""

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    head = [tokenizer.bos_token_id, *ids(f"A: {query}"), *ids("\n")]
    own = ids(f"B: {passage}")
    return [*head, *own, *ids("\n"), *ids(prompt)], len(head), len(head) + len(own)


@pytest.fixture
def score(inside, write_rows, tmp_path, teachers, tiny_words):
    """Score rows of mixed lengths by the command; returns (query, passage) → score."""

    def call(kind, *words):
        rows = [
            {"query": " ".join(tiny_words[n : n + 1 + n % 5]), "pos": [" ".join(tiny_words[: 1 + 3 * n])],
             "neg": [" ".join(tiny_words[n : 2 * n + 2]), "?"]}
            for n in range(8)
        ]  # fmt: skip
        out = tmp_path / "scored.jsonl"
        out.unlink(missing_ok=True)
        done = inside(
            "score", write_rows(rows), out, "--reranker-name-or-path", teachers[kind][0], "--dtype", "float32", *words
        )
        assert done.returncode == 0, done.stderr
        return {
            (row["query"], text): value
            for row in map(json.loads, out.read_text().splitlines())
            for side in ("pos", "neg")
            for text, value in zip(row[side], row[f"{side}_scores"], strict=True)
        }

    return call


def tokenizer_at(folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def test_logit_of_yes(score, teachers):
    folder, model = teachers["base"]
    tokenizer = tokenizer_at(folder)
    yes = tokenizer("Yes", add_special_tokens=False)["input_ids"][0]
    scores = score("base")
    for (query, passage), value in scores.items():
        with torch.no_grad():
            ids = torch.tensor([tokens_of(tokenizer, query, passage)[0]])
            assert value == pytest.approx(model(input_ids=ids).logits[0, -1, yes].item(), abs=1e-4)
    asked = score("base", "--prompt", "Is it so?", "--normalize")
    query, passage = next(iter(asked))
    ids = torch.tensor([tokens_of(tokenizer, query, passage, "Is it so?")[0]])
    with torch.no_grad():
        logit = model(input_ids=ids).logits[0, -1, yes]
    assert asked[query, passage] == pytest.approx(torch.sigmoid(logit).item(), abs=1e-4)
    plain = score("base", "--query-instruction-for-rerank", "", "--passage-instruction-for-rerank", "")
    assert np.abs(np.array(list(plain.values())) - list(scores.values())).max() > 1e-3


def states(model, ids, layers):
    """Normalised states after so many layers."""
    model.config.num_hidden_layers, whole = layers, model.config.num_hidden_layers
    with torch.no_grad():
        result = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    model.config.num_hidden_layers = whole
    return result


@pytest.mark.parametrize("cutoff", [2, 3, None])
def test_head_on_a_layer(cutoff, score, teachers):
    folder, model = teachers["layerwise"]
    heads = load_file(folder / "model.safetensors")
    head = heads[f"lm_head.{(cutoff or 4) - 2}.linear_head.weight"]
    tokenizer = tokenizer_at(folder)
    for (query, passage), value in score("layerwise", *(["--cutoff-layers", cutoff] if cutoff else [])).items():
        ids, _, _ = tokens_of(tokenizer, query, passage)
        last = states(model.model, ids, cutoff or 4)[-1]
        assert value == pytest.approx((last @ head[0]).item(), abs=1e-4)


def test_compressed_passages(score, teachers):
    folder, model = teachers["lightweight"]
    tokenizer = tokenizer_at(folder)
    head = load_file(folder / "model.safetensors")["lm_head.0.linear_head.weight"]
    prompt = "Predict whether passage B contains an answer to query A."

    def capped(logit):
        return (30 * torch.tanh(logit / 30)).item()

    whole = score("lightweight")
    for (query, passage), value in whole.items():
        ids, _, _ = tokens_of(tokenizer, query, passage, prompt)
        assert value == pytest.approx(capped(states(model.model, ids, 4)[-1] @ head[0]), abs=1e-4)
    shorter = score("lightweight", "--compress-layers", 1, 3, "--compress-ratio", 2, "--cutoff-layers", 4)
    assert np.abs(np.array(list(shorter.values())) - list(whole.values())).max() > 1e-3
    inner = model.model
    for (query, passage), value in shorter.items():
        ids, start, end = tokens_of(tokenizer, query, passage, prompt)
        with torch.no_grad():
            hidden = inner.embed_tokens(torch.tensor([ids]))
            for number, layer in enumerate(inner.layers):
                if number in (1, 3):
                    runs = [hidden[:, i : min(i + 2, end)].mean(dim=1, keepdim=True) for i in range(start, end, 2)]
                    hidden = torch.cat([hidden[:, :start], *runs, hidden[:, end:]], dim=1)
                    end = start + len(runs)
                places = torch.arange(hidden.shape[1]).unsqueeze(0)
                causal = torch.full((hidden.shape[1],) * 2, float("-inf")).triu(1)[None, None]
                hidden = layer(
                    hidden, attention_mask=causal, position_embeddings=inner.rotary_emb(hidden, places),
                    position_ids=places,
                )  # fmt: skip
            expected = capped(inner.norm(hidden[0, -1]) @ head[0])
        assert value == pytest.approx(expected, abs=1e-4)


def test_compression_by_hand():
    states_NLH = torch.arange(1.0, 9.0).repeat(2, 1).unsqueeze(-1)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    spans = torch.tensor([[2, 7], [1, 3]])
    new, new_mask, new_spans = compress(states_NLH, mask, spans, 2)
    assert new.squeeze(-1).tolist() == [[1, 2, 3.5, 5.5, 7, 8], [1, 2.5, 4, 5, 0, 0]]
    assert new_mask.tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    assert new_spans.tolist() == [[2, 5], [1, 2]]


def test_an_adapter_on_a_teacher(score, teachers, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder, _ = teachers["base"]
    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer = tokenizer_at(folder)
    yes = tokenizer("Yes", add_special_tokens=False)["input_ids"][0]
    for (query, passage), value in score("base", "--reranker-peft-path", tmp_path / "adapter").items():
        with torch.no_grad():
            ids = torch.tensor([tokens_of(tokenizer, query, passage)[0]])
            assert value == pytest.approx(adapted(input_ids=ids).logits[0, -1, yes].item(), abs=1e-4)


def test_long_pairs_are_cut_in_the_passage(score, teachers, inside):
    folder, model = teachers["base"]
    tokenizer = tokenizer_at(folder)
    yes = tokenizer("Yes", add_special_tokens=False)["input_ids"][0]
    for (query, passage), value in score("base", "--reranker-max-length", 20).items():
        ids, start, end = tokens_of(tokenizer, query, passage)
        room = max(20 + len(ids) - end - start, 0)
        ids = ids[: start + min(end - start, room, 20)] + ids[end:]
        if start - 2 > 15:
            continue  # the query itself is cut
        with torch.no_grad():
            assert value == pytest.approx(model(input_ids=torch.tensor([ids])).logits[0, -1, yes].item(), abs=1e-4)


@pytest.mark.parametrize(("kind", "words", "code", "said"), [
    ("layerwise", ["--cutoff-layers", 1], 2, "has heads on its layers 2 to 4"),
    ("base", ["--cutoff-layers", 3], 2, "is of kind decoder-only-base, which has no such thing"),
    ("layerwise", ["--compress-ratio", 2], 2, "which has no such thing"),
    ("lightweight", ["--compress-ratio", 2], 2, "nothing is compressed without --compress-layers"),
    ("base", ["--reranker-model-class", "decoder-only-layerwise"], 1, "has no heads on its layers"),
    ("base", ["--reranker-peft-path", "./nowhere"], 1, "no such model folder"),
])  # fmt: skip
def test_what_cannot_be(kind, words, code, said, inside, teachers, write_rows, toy_rows, tmp_path):
    data, out = write_rows(toy_rows(4)), tmp_path / "out.jsonl"
    done = inside("score", data, out, "--reranker-name-or-path", teachers[kind][0], "--dtype", "float32", *words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not Path(out).exists()


def test_heads_that_are_missing(inside, teachers, write_rows, toy_rows, tmp_path):
    import shutil

    folder = Path(shutil.copytree(teachers["layerwise"][0], tmp_path / "copy"))
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "lm_head.2" not in k}, folder / "model.safetensors")
    done = inside("score", write_rows(toy_rows(4)), tmp_path / "out.jsonl", "--reranker-name-or-path", folder)
    assert (done.returncode, "the files lack lm_head.2.linear_head.weight" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("kind", ["base", "layerwise", "lightweight"])
def test_scores_of_half_precision_have_all_digits(kind, score):
    """A logit in bfloat16 has three digits, and candidates that differ would tie."""
    exact, half = (list(score(kind, "--dtype", name).values()) for name in ("float32", "bfloat16"))
    assert half != exact
    assert half == pytest.approx(exact, abs=0.05 * max(map(abs, exact)) + 0.02)
    rounded = torch.tensor(half).bfloat16().float().tolist()
    assert sum(one != other for one, other in zip(half, rounded, strict=True)) > len(half) / 2
