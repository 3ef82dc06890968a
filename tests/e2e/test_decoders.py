"""Decoders as embedders in `eval` and `mine`: every text ends in EOS, and the vectors are FlagEmbedding's."""

import json
import shutil

import numpy as np
import pytest
from decoders import KINDS, tokenizer_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgectl.encode import load_embedder, tokenize
from bgectl.errors import RunError
from bgectl.models.decoder import end_of, is_decoder
from bgectl.models.hub import Hub


@pytest.mark.parametrize("kind", list(KINDS))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=4), length=st.integers(4, 24))
def test_every_text_ends_in_eos(kind, decoders, texts, length):
    tokenizer = load_embedder(decoders[kind], devices=["cpu"]).tokenizer
    ids, cut = tokenize(tokenizer, texts, length, end_of(tokenizer))
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for text, tokens in zip(texts, ids, strict=True):
        whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert tokens == (whole if len(whole) <= length else [*whole[: length - 1], tokenizer.eos_token_id])
        assert tokens[: len(bos)] == bos
    assert cut == sum(len(tokenizer(text)["input_ids"]) > length for text in texts)


def test_a_tokenizer_that_ends_texts_itself_is_left_alone(decoders, tiny_words):
    from tokenizers import processors

    tokenizer = tokenizer_of("mistral", tiny_words)
    assert end_of(tokenizer) == tokenizer.eos_token_id
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=special
    )
    assert end_of(tokenizer) is None
    tokenizer = tokenizer_of("qwen2", tiny_words)
    tokenizer.eos_token = None
    with pytest.raises(RunError, match="no EOS token"):
        end_of(tokenizer)


@pytest.mark.parametrize("kind", list(KINDS))
def test_flagembedding_gives_the_same(kind, decoders, tiny_words, tmp_path):
    """It leaves EOS to the tokenizer, so this one adds it, as the published models' do in its releases."""
    from tokenizers import processors

    flag = pytest.importorskip("FlagEmbedding")
    tokenizer = tokenizer_of(kind, tiny_words)
    ends = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*ends[:-1], "$A", ends[-1]]),
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in ends],
    )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    folder = str(shutil.copytree(decoders[kind], tmp_path / kind))
    tokenizer.save_pretrained(folder)
    texts = [" ".join(tiny_words[start : start + 1 + 3 * start]) for start in range(8)] + ["?", "naïve 模型"]
    instruction = {
        "query_instruction_for_retrieval": "find it", "query_instruction_format": "<i>{}\n<q>{}",
    }  # fmt: skip
    theirs = flag.FlagLLMModel(
        folder, use_fp16=False, devices="cpu", query_max_length=40, passage_max_length=40, **instruction
    )
    ours = load_embedder(
        folder, query_instruction="find it", query_format="<i>{}\n<q>{}", query_max_length=40,
        passage_max_length=40, devices=["cpu"],
    )  # fmt: skip
    assert ours.facts.pooling == "last_token"
    assert ours.end is None
    np.testing.assert_allclose(ours.encode_queries(texts), theirs.encode_queries(texts), atol=2e-5)
    np.testing.assert_allclose(ours.encode_passages(texts), theirs.encode_corpus(texts), atol=2e-5)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_batches_do_not_decide_the_vectors(kind, decoders, tiny_words):
    texts = [" ".join(tiny_words[:count]) for count in (1, 30, 7, 12, 2)]
    alone, together = (
        load_embedder(decoders[kind], devices=["cpu"], batch_size=size).encode_passages(texts) for size in (1, 5)
    )
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_which_models_are_decoders(decoders, tiny_bert, tiny_xlmr):
    assert all(is_decoder(folder, Hub()) for folder in decoders.values())
    assert not any(is_decoder(folder, Hub()) for folder in (tiny_bert, tiny_xlmr))


def test_eval_and_mine(decoders, inside, write_rows, toy_rows, tmp_path):
    data = write_rows(toy_rows())
    done = inside("eval", decoders["qwen2"], "--eval-data", data, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert "pooling last_token (default)" in json.loads(done.stdout)["models"][0]["description"]
    done = inside(
        "mine", data, tmp_path / "mined.jsonl", "--embedder-name-or-path", decoders["mistral"],
        "--embedder-model-class", "decoder-only-base", "--query-instruction-for-retrieval", "find it",
        "--query-instruction-format-for-retrieval", r"<i>{}\n<q>{}", "--range", "0-9", "-n", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "mined.jsonl").read_text().splitlines()) == 24
