"""The command in forked processes, which import nothing anew; and what it left in its work folder."""

import gc
import multiprocessing
import os
import random
import shutil
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def quick_collections():
    """Each run collects garbage once or twice, which takes half a second where all libraries are loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


LASTING = ("passages", "queries", "pairs", "scores")
"""Kinds of values that stay in a work folder after a run."""


def in_a_process(words, said=None, environment=None):
    """Start the command in a forked process, a session of its own.

    Args:
        words: Of the command line.
        said: File that gets what it says; None throws it away.
        environment: Variables beside those there are.
    """

    def call():
        os.setsid()
        os.environ.update(environment or {})
        torch.set_num_threads(1)
        from bgectl import console
        from bgectl.cli import main

        console.stdout.cache_clear()
        console.stderr.cache_clear()
        with Path(said or os.devnull).open("w", buffering=1) as stream:
            sys.stdout = sys.stderr = stream
            main([str(word) for word in words])

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def in_processes(count, words, folder):
    """Run the command in `count` processes that work together; returns their exit codes and what each said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    said = [folder / f"said-{rank}" for rank in range(count)]
    processes = [
        in_a_process(words, said[rank], {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes, [path.read_text() for path in said]


def shards(work, kinds=LASTING):
    """Each shard in a work folder that stays, with what changes when it is written again."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for kind in kinds
        for path in work.glob(f"{kind}-*/*.safetensors")
    }


def leavings(folder):
    """What no run should leave: half-written files, and folders and results of single runs."""
    patterns = ("**/*.part", "**/.*.part", "**/run-*", "**/found-*", "**/parts-*")
    return sorted({str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern)})


def make_cross_encoder(bert, folder):
    """A BERT with a random head of one logit."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(0)
    BertForSequenceClassification.from_pretrained(bert, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return str(folder)


def make_m3(xlmr, folder):
    """An XLM-R with random heads of M3."""
    shutil.copytree(xlmr, folder)
    generator = torch.Generator().manual_seed(1)
    for name, size in (("sparse_linear", 1), ("colbert_linear", 32)):
        weight = torch.randn(size, 32, generator=generator)
        torch.save({"weight": weight, "bias": torch.zeros(size)}, folder / f"{name}.pt")
    return str(folder)


def sentences(words, count, seed=0, longest=9):
    """Different texts of random words."""
    draw = random.Random(seed)
    texts = {}
    while len(texts) < count:
        texts[" ".join(draw.choices(words, k=draw.randint(2, longest)))] = None
    return list(texts)


def rows_of(words, count, seed=1):
    """Rows of random words with two positives and two negatives."""
    texts = iter(sentences(words, 5 * count, seed))
    return [
        {"query": next(texts), "pos": [next(texts), next(texts)], "neg": [next(texts), next(texts)]}
        for _ in range(count)
    ]
