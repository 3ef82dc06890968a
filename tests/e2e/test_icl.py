"""`train icl`, and icl embedders in `mine` and `eval`: examples before queries, a suffix behind."""

import json
import random
import shutil

import numpy as np
import pytest
from decoders import KINDS, tokenizer_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer

from bgectl.data.draw import Group
from bgectl.data.icl import IclTexts, Wording, read_examples
from bgectl.encode import load_embedder, tokenize
from bgectl.errors import DataError
from bgectl.models.decoder import end_texts

EXAMPLES = [
    {"instruct": "find the word", "query": "kaban", "response": "lodor a"},
    {"query": "mifel rugus", "response": "tenim vodor"},
]
FORMAT = ["--query-instruction-for-retrieval", "find it", "--query-instruction-format", r"<instruct>{}\n<query>{}"]


@pytest.fixture
def train(inside, tmp_path, toy_rows, write_rows):
    """Train for a moment; `out` is the folder."""

    def call(model, *words, out="out", rows=None):
        done = inside(
            "train", "icl", "--model", model, "--train-data", write_rows(rows or toy_rows()), "--output-dir",
            tmp_path / out, "--batch-size", 4, "--train-group-size", 3, "--learning-rate", "0.01", "--lora-rank", 4,
            "--query-max-len", 640, "--passage-max-len", 40, *FORMAT, *words,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return tmp_path / out

    return call


def test_the_same_seed_gives_the_same_examples(train, decoders, monkeypatch):
    seen = []
    queries = IclTexts.queries
    monkeypatch.setattr(IclTexts, "queries", lambda *given: seen.append(queries(*given)) or seen[-1])

    def run(out, *words):
        seen.clear()
        folder = train(decoders["mistral"], "--max-steps", 6, *words, out=out)
        return load_file(folder / "adapter_model.safetensors"), list(seen)

    first, texts = run("first", "--dataloader-num-workers", 0)
    again, same = run("again", "--dataloader-num-workers", 0)
    workers, _ = run("workers", "--dataloader-num-workers", 2)
    other, others = run("other", "--dataloader-num-workers", 0, "--seed", 7)
    assert texts == same
    assert texts != others
    assert all(first[key].equal(again[key]) and first[key].equal(workers[key]) for key in first)
    assert any(not first[key].equal(other[key]) for key in first)
    counts = [text.count("<instruct>") for step in texts for text in step]
    assert max(counts) > 1
    assert min(counts) == 1
    assert all(text.endswith("\nResponse:") for step in texts for text in step)


def test_resume_takes_the_same_examples(train, decoders):
    words = [decoders["qwen2"], "--max-steps", 6, "--save-steps", 2, "--dataloader-num-workers", 0]
    whole, cut = train(*words, out="whole"), train(*words, out="cut")
    shutil.rmtree(cut / "checkpoint-6")
    (cut / "adapter_model.safetensors").unlink()
    train(*words, "--resume", "auto", out="cut")
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, cut))
    assert all(one[key].equal(other[key]) for key in one)


def test_the_folder_says_how_queries_are_worded(train, inside, decoders, write_rows, toy_rows, tmp_path):
    """Neither `eval` nor `mine` has to be told, and FlagICLModel gives the same vectors."""
    flag = pytest.importorskip("FlagEmbedding")
    out = train(
        decoders["mistral"], "--max-steps", 3, "--save-merged-lora-model", "--icl-suffix-str", r"\n<response>",
        "--additional-special-tokens", "<instruct>", "<query>", "<response>", "--dataloader-num-workers", 0,
    )  # fmt: skip
    assert json.loads((out / "prompt_format.json").read_text()) == {
        "query_instruction": "find it", "query_format": "<instruct>{}\n<query>{}", "query_suffix": "\n<response>",
    }  # fmt: skip
    assert "FlagICLModel" in (out / "merged_model" / "README.md").read_text()
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))
    queries = ["kaban", "lodor mifel " * 30, "naïve 模型?", "tenim.", ""]
    for examples in (None, EXAMPLES):
        theirs = flag.FlagICLModel(
            str(out / "merged_model"), use_fp16=False, devices="cpu", query_max_length=40, passage_max_length=40,
            query_instruction_for_retrieval="find it", query_instruction_format="<instruct>{}\n<query>{}",
            suffix="\n<response>", examples_for_task=examples,
        )  # fmt: skip
        for folder in (out, out / "merged_model"):
            ours = load_embedder(
                str(folder), devices=["cpu"], query_max_length=40, passage_max_length=40,
                examples=file if examples else None,
            )  # fmt: skip
            np.testing.assert_allclose(ours.encode_queries(queries), theirs.encode_queries(queries), atol=2e-5)
            np.testing.assert_allclose(ours.encode_passages(queries), theirs.encode_corpus(queries), atol=2e-5)
        assert ours.cut > 0
    data = write_rows(toy_rows(), "held_out.jsonl")
    done = inside("eval", out, "--eval-data", data, "--examples-for-task", file, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert r"query suffix '\n<response>' (model files)" in json.loads(done.stdout)["models"][0]["description"]
    done = inside(
        "mine", data, tmp_path / "mined.jsonl", "--embedder-name-or-path", out, "--examples-for-task", file,
        "--range", "0-9", "-n", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_icl_embedder_of_others_is_named(inside, decoders, write_rows, toy_rows, tmp_path):
    data = write_rows(toy_rows())
    file = tmp_path / "examples.json"
    file.write_text(json.dumps(EXAMPLES))
    words = ["eval", decoders["llama"], "--eval-data", data, "--examples-for-task", file]
    done = inside(*words)
    assert (done.returncode, "--embedder-model-class decoder-only-icl" in done.stderr) == (2, True), done.stderr
    done = inside(*words, "--embedder-model-class", "decoder-only-icl", "--query-instruction-for-retrieval", "x")
    assert done.returncode == 0, done.stderr
    assert r"query prompt '<instruct>x\n<query>' (option)" in done.stderr
    assert r"query suffix '\n<response>' (icl)" in done.stderr
    done = inside(*words, "--embedder-model-class", "encoder-only-base")
    assert (done.returncode, "is a decoder" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(("text", "said"), [
    ("", "holds no examples"),
    ('{"query": "a"}', ":1: `response`"),
    ('{"query": "a", "response": "b"}\n{"query": " ", "response": "b"}', ":2: `query`"),
    ('{"query": "a", "response": "b", "instruct": 3}', "`instruct`: is not a text"),
    ("[1]", "item 1: expected a JSON object"),
    ('[{"query": "a",\n', "not valid JSON"),
    ("{", "not valid JSON"),
])  # fmt: skip
def test_bad_examples(text, said, tmp_path):
    path = tmp_path / "examples.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_examples(path, "{}{}{}", None)
    assert said in str(caught.value)


def test_examples_as_text(tmp_path):
    path = tmp_path / "examples.json"
    for content in (json.dumps(EXAMPLES), "\n".join(map(json.dumps, EXAMPLES))):
        path.write_text(content)
        assert read_examples(path, "<i>{}<q>{}<r>{}", "own") == (
            "<i>find the word<q>kaban<r>lodor a\n\n<i>own<q>mifel rugus<r>tenim vodor\n\n"
        )


ANY = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=80)


@pytest.mark.parametrize("kind", list(KINDS))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(ANY, min_size=2, max_size=5), length=st.integers(24, 60), seed=st.integers(0, 9))
def test_queries_fit_and_end_as_they_should(kind, texts, length, seed, decoders, tiny_words):
    tokenizer = AutoTokenizer.from_pretrained(decoders[kind])
    end = end_texts(tokenizer)
    wording = Wording(tokenizer, "\n<response>", end)
    icl = IclTexts(wording, 512 + length, length, 8, 8)
    groups = [Group(f"q {text}", [text], None, [text], type="symmetric_sts", answer=text) for text in texts]
    queries = icl.queries(groups, lambda place: random.Random(f"{seed}/{place}"))
    for text, query in zip(texts, queries, strict=True):
        assert query.endswith(f"q {text}\n<response>"), "a short query is whole, behind its examples"
        examples = query.removesuffix(f"q {text}\n<response>")
        assert wording.length(examples) <= length
        ids = tokenize(tokenizer, [query], icl.query_max_len, end)[0][0]
        assert ids[-1] == tokenizer.eos_token_id
        assert len(ids) <= icl.query_max_len
    for text, group in zip(texts, groups, strict=True):
        passage = icl.passage(text * 5, group)
        assert passage.endswith("\n<response>")
        assert (text * 5).startswith(passage.removesuffix("\n<response>"))
        ids = tokenize(tokenizer, [passage], 1000, end)[0][0]
        assert len(ids) <= length + 2  # tokens across the cut may join in another way


def test_examples_of_other_rows_only_and_at_most_five(decoders):
    tokenizer = AutoTokenizer.from_pretrained(decoders["mistral"])
    icl = IclTexts(Wording(tokenizer, "|"), 4096, 64, 64, 64)
    groups = [Group(f"<{number}>", ["p"], None, ["p"], answer=f"a{number}") for number in range(12)]
    counts = set()
    for seed in range(60):
        for place, query in enumerate(icl.queries(groups, lambda place, seed=seed: random.Random(f"{seed}/{place}"))):
            *examples, own = query.split("\n\n")
            assert own == f"<{place}>|"
            assert len(set(examples)) == len(examples)
            assert f"<{place}>|a{place}" not in examples
            counts.add(len(examples))
    assert counts == set(range(6))


def test_clustering_answers_by_category(train, decoders, monkeypatch, toy_rows):
    seen = []
    queries = IclTexts.queries
    monkeypatch.setattr(IclTexts, "queries", lambda *given: seen.append(queries(*given)) or seen[-1])
    rows = toy_rows(12, type="symmetric_clustering", category="the topic")
    train(
        decoders["mistral"], "--max-steps", 6, "--no-retrieval-use-examples", "--dataloader-num-workers", 0, rows=rows
    )
    examples = [part for step in seen for text in step for part in text.split("\n\n")[:-1]]
    assert examples
    assert all(example.endswith("\nResponse:the topic") for example in examples)


def test_dry_run_shows_examples(inside, decoders, write_rows, toy_rows, tmp_path):
    done = inside(
        "train", "icl", "-m", decoders["llama"], "-t", write_rows(toy_rows()), "-o", tmp_path / "o", "--dry-run",
        "--query-max-len", 900, "-b", 8, *FORMAT, "--seed", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\nResponse:</s>" in done.stdout
    assert not (tmp_path / "o").exists()


def test_one_dataset_a_step_is_how_it_works(inside):
    done = inside("train", "icl", "-m", "m", "-t", "t", "-o", "o", "--no-same-dataset-within-batch")
    assert (done.returncode, "is how train icl works" in done.stderr) == (2, True), done.stderr


def test_cutting_keeps_the_text_as_it_is(tiny_words):
    """Offsets, not decoding: spaces stay, and a character of several tokens is not cut within."""
    wording = Wording(tokenizer_of("mistral", tiny_words))
    text = "kaban  lodor 模型 mifel"
    cuts = {wording.cut(text, tokens) for tokens in range(40)}
    assert text in cuts
    assert "" in cuts
    assert all(text.startswith(cut) for cut in cuts)
