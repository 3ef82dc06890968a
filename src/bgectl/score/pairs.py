"""Teachers of pairs whose scores are kept: a pair that was scored once, by this run or one before it, is not again.

Letters: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bgectl import console, distributed, heads
from bgectl.data.prompts import instruct
from bgectl.encode import Embedder, Vectors, choose_devices, choose_dtype, token_budget, weakest
from bgectl.errors import RunError
from bgectl.models.decoder_rerankers import KINDS, PASSAGE, QUERY, load_decoder_reranker, teacher_kind
from bgectl.models.files import files_digest
from bgectl.models.hub import Hub
from bgectl.models.rerankers import PairScorer, load_cross_encoder
from bgectl.work.folder import open_vault
from bgectl.work.texts import Hashes, Numbers, hash_of, hashes_of, paired, spoken
from bgectl.work.vault import Values, Vault, delete, fill, total
from bgectl.work.vectors import SHARD, open_spaces, scores_at

Scores = npt.NDArray[np.float32]

PAIRS = 2048
"""Pairs in a shard: what a killed run loses at most."""
HEADS_PAIRS = 32_768
"""The same for the heads of M3, which encode each text once in a shard."""


@dataclass(frozen=True)
class Pair:
    """A query with its row's prompt, and a passage."""

    query: str
    prompt: str | None
    passage: str


Pairs = Sequence[Pair]


def hashes_of_pairs(pairs: Pairs) -> Hashes:
    """(P,) of query, prompt and passage."""
    queries = np.fromiter((hash_of(spoken(pair.query, pair.prompt)) for pair in pairs), np.uint64, len(pairs))
    return paired(queries, hashes_of(pair.passage for pair in pairs))


class PairTeacher:
    """A model that reads query and passage together.

    Args:
        name: Its name, for a person.
        work: The work folder.
        about: What the logits depend on besides the texts.
        load: Loads the model, when a pair is first to be scored.
        shard: Pairs in a shard.
    """

    def __init__(
        self, name: str, work: Path, about: dict[str, Any], load: Callable[[], PairScorer[Any]], shard: int = PAIRS
    ) -> None:
        self.vault: Vault = open_vault(work, "scores", about, model=name)
        self.scored = 0
        self._cut: dict[str, str] = {}
        self._load, self._shard = load, shard
        self._model: PairScorer[Any] | None = None
        self._about = about

    def _compute(self, pairs: Pairs, advance: console.Advance) -> Scores:
        if self._model is None:
            self._model = self._load()
        about = self._about
        texts = [
            (
                instruct(about["query_format"], about["query"], pair.query),
                instruct(about["passage_format"], about["passage"], pair.passage),
            )
            for pair in pairs
        ]
        return self._model.score(texts, advance)

    @property
    def cut(self) -> int:
        """Pairs that were cut to their length, in the shards that were looked at."""
        return total(self._cut)

    def of(self, pairs: Pairs) -> Scores:
        """(P,) logits; all processes call this together."""
        hashes = hashes_of_pairs(pairs)

        def compute(places: Numbers, advance: console.Advance) -> tuple[Values, dict[str, str]]:
            before = 0 if self._model is None else self._model.cut
            values = self._compute([pairs[place] for place in places.tolist()], advance)
            assert self._model is not None
            return values, {"cut": str(self._model.cut - before)}

        self.scored += fill(self.vault, hashes, self._shard, compute, "Scoring", "pairs")
        self._cut |= self.vault.notes(hashes, "cut")
        return self.vault.get(hashes).astype(np.float32)

    def forget(self) -> None:
        """Delete the scores that are kept."""
        delete([self.vault])


class EmbedderTeacher:
    """An embedder: the similarity of its vectors. They are those that mining keeps.

    Args:
        embedder: What encodes.
        files: The digest of its files.
        work: The work folder.
        shard: Texts in a shard.
    """

    def __init__(self, embedder: Embedder, files: str, work: Path, shard: int = SHARD) -> None:
        self.embedder = embedder
        self.scored = 0
        self._cut: dict[str, str] = {}
        self._shard = shard
        self._passages, self._queries = open_spaces(embedder, files, work)

    @property
    def cut(self) -> int:
        """Texts that were cut to their length, in the shards that were looked at."""
        return total(self._cut)

    def of(self, pairs: Pairs) -> Scores:
        """(P,) inner products; all processes call this together."""
        embedder = self.embedder
        keys = [spoken(pair.query, pair.prompt) for pair in pairs]
        asked = np.fromiter(map(hash_of, keys), np.uint64, len(pairs))
        passages = hashes_of(pair.passage for pair in pairs)

        def of_passages(places: Numbers, advance: console.Advance) -> Vectors:
            return embedder.encode_passages([pairs[place].passage for place in places.tolist()], advance)

        def of_queries(places: Numbers, advance: console.Advance) -> Vectors:
            chosen = [pairs[place] for place in places.tolist()]
            return embedder.encode_queries([pair.query for pair in chosen], [pair.prompt for pair in chosen], advance)

        self.scored += self._passages.fill(passages, self._shard, of_passages, "Encoding passages")
        self.scored += self._queries.fill(asked, self._shard, of_queries, "Encoding queries")
        self._cut |= self._passages.vault.notes(passages, "cut") | self._queries.vault.notes(asked, "cut")
        queries, place = np.unique(asked, return_inverse=True)
        vectors = np.ascontiguousarray(self._queries.vault.get(queries), dtype=np.float32)
        return scores_at(self._passages.vault, passages, vectors, place)

    def forget(self) -> None:
        """Delete the vectors that are kept."""
        delete([self._passages.vault, self._queries.vault])


class HeadsTeacher:
    """An M3 model: its dense, sparse, ColBERT or hybrid score."""

    def __init__(
        self, embedder: Embedder, files: str, work: Path, score: str, weights: Sequence[float],
        shard: int = HEADS_PAIRS,
    ) -> None:  # fmt: skip
        self.embedder = embedder
        self.scored = 0
        self.cut = 0
        self._shard = shard
        self._score, self._weights = score, list(weights)
        self._vault = open_vault(work, "pairs", heads.depends_on(embedder, files, score, weights))

    def of(self, pairs: Pairs) -> Scores:
        """(P,) scores; all processes call this together."""
        hashes = hashes_of_pairs(pairs)

        def compute(places: Numbers, advance: console.Advance) -> tuple[Values, dict[str, str]]:
            chosen = [pairs[place] for place in places.tolist()]
            asked = [(pair.query, pair.prompt) for pair in chosen]
            texts = [pair.passage for pair in chosen]
            return heads.pair_scores(self.embedder, asked, texts, self._score, self._weights, advance), {}

        self.scored += fill(self._vault, hashes, self._shard, compute, "Scoring", "pairs")
        return self._vault.get(hashes).astype(np.float32)

    def forget(self) -> None:
        """Delete the scores that are kept."""
        delete([self._vault])


Teacher = PairTeacher | EmbedderTeacher | HeadsTeacher


def pair_teacher(
    name: str, files: str, kind: str | None = None, *, work: Path, hub: Hub, devices: Sequence[str] = (),
    dtype: str = "auto", use_fp16: bool = False, use_bf16: bool = False, batch_tokens: int | None = None,
    batch_size: int = 3000,
    query_max_length: int | None = None, max_length: int = 512, query: str | None = None, query_format: str = "{}{}",
    passage: str | None = None, passage_format: str = "{}{}", shard: int | None = None, **of_decoder: Any,
) -> PairTeacher:  # fmt: skip
    """A model that reads query and passage together; its weights are loaded when a pair is first to be scored.

    Args:
        name: Folder or hub name.
        files: The digest of its files.
        kind: `encoder-only-base` or one of KINDS; None sees it from the model's files.
        work: The work folder.
        hub: How to reach it.
        devices: Devices by name; empty for the best one.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        use_fp16: The same as float16.
        use_bf16: The same as bfloat16.
        batch_tokens: Tokens of a batch; None chooses by device.
        batch_size: Pairs of a batch at most.
        query_max_length: Tokens of a query; None for three quarters of `max_length`.
        max_length: Tokens of a pair.
        query: Instruction for queries; None for the kind's own.
        query_format: How instruction and query are joined.
        passage: The same for passages.
        passage_format: The same for passages.
        shard: Pairs in a shard; None for PAIRS.
        of_decoder: See `load_decoder_reranker`.

    Raises:
        UsageError: Devices or precision cannot be had, or the model has no such layer.
        RunError: The model cannot be read, or is none that scores pairs.
    """
    kind = kind or teacher_kind(name, hub)
    if kind == "embedder":
        raise RunError("is an embedder; a model that scores pairs is wanted", where=name)
    chosen = choose_devices(devices)
    decoder = kind in KINDS
    precision = choose_dtype(dtype, weakest(chosen), use_fp16=use_fp16, use_bf16=use_bf16, decoder=decoder, quick=True)
    common: dict[str, Any] = {
        "hub": hub, "devices": chosen, "dtype": precision, "query_max_length": query_max_length,
        "max_length": max_length, "batch_tokens": token_budget(batch_tokens, chosen[0]), "batch_size": batch_size,
    }  # fmt: skip

    def load() -> PairScorer[Any]:
        return (
            load_decoder_reranker(name, kind, **common, **of_decoder) if decoder else load_cross_encoder(name, **common)
        )

    adapter = of_decoder.get("adapter")
    about = {
        "files": files, "version": 1, "kind": kind, "dtype": str(precision),
        "query_max_length": query_max_length, "max_length": max_length,
        "query": instruction(query, QUERY if decoder else None), "query_format": query_format,
        "passage": instruction(passage, PASSAGE if decoder else None), "passage_format": passage_format,
        **{key: value for key, value in of_decoder.items() if key != "adapter"},
        "adapter": None if adapter is None else digest(str(adapter), hub),
    }  # fmt: skip
    return PairTeacher(name, work, about, load, shard or PAIRS)


def digest(name: str, hub: Hub) -> str:
    """`files_digest`, reckoned by the first process for all."""
    return distributed.by_first(lambda: files_digest(name, hub))


def instruction(given: str | None, own: str | None) -> str | None:
    """What the user gave, an empty text too, else what the teacher was trained with."""
    return own if given is None else given
