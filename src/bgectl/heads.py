"""Exact search with the heads of an M3 model: dense, sparse, ColBERT, and their weighted sum.

Passages are encoded chunk by chunk and scored against all queries at once, so that the vectors of their tokens are
never all held. Letters: N texts, T tokens of all texts without padding, H and C sizes of the vectors, Q queries,
U passages, K ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bgectl import console
from bgectl.encode import Embedder, over_devices, plan_batches, tokenize
from bgectl.errors import RunError
from bgectl.gradcache import joined
from bgectl.losses.lexical import lexical_scores
from bgectl.losses.maxsim import maxsim
from bgectl.losses.tokens import Tokens
from bgectl.losses.unified import HEADS
from bgectl.topk import Best

SCORES = (*HEADS, "hybrid")
QUERY_BLOCK = 256
CHUNK = 1024
"""Passages encoded, and held, at a time."""


@dataclass(frozen=True)
class Encoded:
    """What the heads give for N texts, in float32 on the device that scores.

    Args:
        dense: (N, H).
        sparse: (T,) weights of the tokens.
        ids: (T,) the tokens' ids.
        colbert: (T - N, C), all tokens but the first of each text.
    """

    dense: Tensor
    sparse: Tokens
    ids: Tensor
    colbert: Tokens

    def of(self, texts: Sequence[int]) -> Encoded:
        """That of some of the texts, in the order given."""
        ids = Tokens(self.ids, self.sparse.lengths).of(texts).values
        return Encoded(self.dense[list(texts)], self.sparse.of(texts), ids, self.colbert.of(texts))


@dataclass(frozen=True)
class Found:
    """(Q, K) scores and indices of the best passages, best first."""

    scores: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int64]


def search(
    embedder: Embedder,
    queries: Sequence[str],
    prompts: Sequence[str | None],
    passages: Sequence[str],
    depth: int,
    *,
    scores: Sequence[str] = SCORES,
    weights: Sequence[float] = (1.0, 0.3, 1.0),
) -> dict[str, Found]:
    """The best passages of each query by each kind of score.

    Args:
        embedder: One that was loaded with its heads.
        queries: Q texts without instruction.
        prompts: For each the prompt of its row, which replaces the instruction; None where there is none.
        passages: N texts without instruction.
        depth: K; at most N are given.
        scores: Kinds of score, of `SCORES`.
        weights: Of dense, sparse and ColBERT in the hybrid score.

    Raises:
        RunError: The model gives what is not finite.
    """
    return search_encoded(
        embedder, encode_queries(embedder, queries, prompts), passages, depth, scores=scores, weights=weights
    )


def encode_queries(embedder: Embedder, queries: Sequence[str], prompts: Sequence[str | None]) -> list[Encoded]:
    """What the heads give for queries, in blocks of QUERY_BLOCK."""
    prompted = [embedder.prompts.query(text, prompt) for text, prompt in zip(queries, prompts, strict=True)]
    with console.progress("Encoding queries", len(queries), "texts") as advance:
        return list(_chunks(embedder, prompted, embedder.query_max_length, QUERY_BLOCK, advance))


def search_encoded(
    embedder: Embedder, blocks: Sequence[Encoded], passages: Sequence[str], depth: int, *,
    scores: Sequence[str] = SCORES, weights: Sequence[float] = (1.0, 0.3, 1.0), told: console.Advance | None = None,
) -> dict[str, Found]:  # fmt: skip
    """`search` with queries that are encoded already.

    Args:
        embedder: One that was loaded with its heads.
        blocks: The queries; see `encode_queries`.
        passages: N texts without instruction.
        depth: K; at most N are given.
        scores: Kinds of score, of `SCORES`.
        weights: Of dense, sparse and ColBERT in the hybrid score.
        told: Is told of passages; None shows a progress bar.

    Raises:
        RunError: The model gives what is not finite.
    """
    depth = min(depth, len(passages))
    best = {name: Best(sum(len(block.dense) for block in blocks), depth) for name in scores}
    spoken = [embedder.prompts.passage(text) for text in passages]
    label = "Encoding and scoring passages"
    with nullcontext(told) if told else console.progress(label, len(passages), "texts") as advance:
        for number, chunk in enumerate(_chunks(embedder, spoken, embedder.passage_max_length, CHUNK, advance)):
            for place, block in enumerate(blocks):
                for name, part in score(block, chunk, scores, weights).items():
                    best[name].add(finite(embedder, name, part), place * QUERY_BLOCK, number * CHUNK)
    return {name: Found(kept.scores, kept.indices) for name, kept in best.items()}


def finite(embedder: Embedder, name: str, part: Tensor) -> npt.NDArray[np.float32]:
    """Scores as an array.

    Raises:
        RunError: One is not finite.
    """
    values: npt.NDArray[np.float32] = part.cpu().numpy()
    if not np.isfinite(values).all():
        raise RunError(
            f"the model gives {name} scores that are not finite", where=embedder.name or None,
            hint="try `--dtype float32`",
        )  # fmt: skip
    return values


def pair_scores(
    embedder: Embedder, queries: Sequence[tuple[str, str | None]], passages: Sequence[str], kind: str,
    weights: Sequence[float] = (1.0, 0.3, 1.0), told: console.Advance | None = None,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """(P,) the score of each query with its passage; a text that stands in several pairs is encoded once.

    Args:
        embedder: One that was loaded with its heads.
        queries: P queries without instruction, each with the prompt of its row. All of them are held, so P is to be
            some ten thousands at most.
        passages: P texts without instruction.
        kind: One of `SCORES`.
        weights: See `search`.
        told: Is told of pairs; None shows a progress bar.

    Raises:
        RunError: The model gives what is not finite.
    """
    rows: dict[tuple[str, str | None], int] = {}
    columns: dict[str, int] = {}
    left = np.array([rows.setdefault(query, len(rows)) for query in queries], dtype=np.int64)
    right = np.array([columns.setdefault(text, len(columns)) for text in passages], dtype=np.int64)
    result = np.empty(len(left), dtype=np.float32)
    if not len(left):
        return result
    quiet = _untold
    asked = [embedder.prompts.query(*query) for query in rows]
    whole = encode(embedder, asked, embedder.query_max_length, quiet)
    spoken = [embedder.prompts.passage(text) for text in columns]
    with nullcontext(told) if told else console.progress("Scoring", len(left), "pairs") as advance:
        for number, chunk in enumerate(_chunks(embedder, spoken, embedder.passage_max_length, CHUNK, quiet)):
            places = np.flatnonzero(right // CHUNK == number)
            for start in range(0, len(places), QUERY_BLOCK):
                part = places[start : start + QUERY_BLOCK]
                theirs, row = np.unique(left[part], return_inverse=True)
                those, column = np.unique(right[part] - number * CHUNK, return_inverse=True)
                table = score(whole.of(theirs.tolist()), chunk.of(those.tolist()), [kind], weights)[kind]
                result[part] = finite(embedder, kind, table)[row, column]
                advance(len(part))
    return result


def _untold(amount: int = 1) -> None:
    """Nobody is told."""


def depends_on(embedder: Embedder, files: str, score: str, weights: Sequence[float]) -> dict[str, Any]:
    """What the scores of an M3 model depend on besides the texts."""
    return {
        "files": files, "version": 1, "score": score, "weights": list(weights),
        "passages": embedder.space(queries=False), "queries": embedder.space(queries=True),
    }  # fmt: skip


def score(queries: Encoded, passages: Encoded, scores: Iterable[str], weights: Sequence[float]) -> Mapping[str, Tensor]:
    """(Q, U) of each kind of score; the hybrid one is the mean of the three by their weights."""
    wanted = set(scores)
    parts = {}
    with torch.inference_mode():
        if wanted & {"dense", "hybrid"}:
            parts["dense"] = queries.dense @ passages.dense.T
        if wanted & {"sparse", "hybrid"}:
            parts["sparse"] = lexical_scores(queries.sparse, queries.ids, passages.sparse, passages.ids)
        if wanted & {"colbert", "hybrid"}:
            parts["colbert"] = maxsim(queries.colbert, passages.colbert)
        if "hybrid" in wanted:
            first, *others = (weight * parts[name] for name, weight in zip(HEADS, weights, strict=True))
            parts["hybrid"] = sum(others, first) / sum(weights)
    return {name: part for name, part in parts.items() if name in wanted}


def _chunks(
    embedder: Embedder, texts: Sequence[str], max_length: int, size: int, advance: console.Advance
) -> Iterator[Encoded]:
    for start in range(0, len(texts), size):
        yield encode(embedder, texts[start : start + size], max_length, advance)


def encode(embedder: Embedder, texts: Sequence[str], max_length: int, advance: console.Advance) -> Encoded:
    """What the heads give for texts, in their order; instructions are in front already."""
    ids, cut = tokenize(embedder.tokenizer, texts, max_length)
    embedder.cut += cut
    batches = plan_batches([len(text) for text in ids], embedder.batch_tokens, embedder.batch_size)
    outputs: list[dict[str, Tensor]] = [{} for _ in batches]
    target = embedder.devices[0]

    def work(device: int, item: int) -> None:
        chosen = [ids[index] for index in batches[item]]
        inputs = embedder.tokenizer.pad({"input_ids": chosen}, return_tensors="pt").to(embedder.devices[device])
        with torch.inference_mode():
            given = embedder.encoders[device].outputs(inputs["input_ids"], inputs["attention_mask"])
        outputs[item] = {name: part.float().to(target) for name, part in given.items()}
        advance(len(chosen))

    over_devices(len(batches), len(embedder.encoders), work)
    with torch.inference_mode():
        whole = joined(outputs)
        order = [index for batch in batches for index in batch]
        lengths = [len(ids[index]) for index in order]
        place_of = np.argsort(order).tolist()
        scale = (lambda vectors: normalize(vectors, dim=-1)) if embedder.facts.normalize else (lambda vectors: vectors)
        flat = torch.tensor([token for text in ids for token in text], device=target)
        return Encoded(
            scale(whole["dense"][torch.tensor(place_of, device=target)]),
            Tokens(whole["sparse"], lengths).of(place_of),
            flat,
            Tokens(scale(whole["colbert"]), [length - 1 for length in lengths]).of(place_of),
        )
