"""`bgectl score`: rows → (query, passage) pairs, each distinct one once → teacher scores → rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bgectl import console, jsonl
from bgectl.data.prompts import instruct
from bgectl.data.rows import Row, read_rows
from bgectl.encode import choose_devices, choose_dtype, load_embedder, token_budget, weakest
from bgectl.errors import DataError, RunError, UsageError
from bgectl.models.decoder_rerankers import (
    KINDS,
    LAYERWISE,
    LIGHTWEIGHT,
    PASSAGE,
    QUERY,
    load_decoder_reranker,
    teacher_kind,
)
from bgectl.models.encoder import quiet_libraries
from bgectl.models.hub import Hub
from bgectl.models.rerankers import PairScorer, load_cross_encoder
from bgectl.options.score import ScoreOptions


@dataclass(frozen=True)
class Pair:
    """A query with its row's prompt, and a passage."""

    query: str
    prompt: str | None
    passage: str


Pairs = Sequence[Pair]
Scorer = Callable[[Pairs], npt.NDArray[np.float32]]


def run(options: ScoreOptions) -> None:
    """Score every positive and negative of the input.

    Raises:
        DataError: Rows have defects.
        RunError: The teacher cannot be loaded, a score is not finite, or the disk is full.
    """
    started = time.monotonic()
    jsonl.check_target(options.output_file)
    quiet_libraries()
    rows = [row for _, row in read_rows(options.input_file)]
    if not rows:
        raise DataError("holds no rows", where=str(options.input_file))
    hub = Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code)
    asked = options.reranker_model_class
    kind = teacher_kind(options.reranker_name_or_path, hub) if asked == "auto" else asked
    refuse_options_of_others(options, kind)
    score = embedder_scorer(options, hub) if kind == "embedder" else pair_scorer(options, kind, hub)
    places, index = distinct_pairs(rows)
    values = score(list(places)) * np.float32(options.scale)
    if not np.isfinite(values).all():
        pair = list(places)[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise RunError(
            f"the teacher's score is not finite for {pair.query[:60]!r} and {pair.passage[:60]!r}",
            hint="use --dtype float32 or bfloat16",
        )
    jsonl.write_objects(options.output_file, scored(rows, values, index))
    console.info(
        f"scored {len(values):,} pairs of {len(rows):,} rows in {time.monotonic() - started:.1f} s with "
        f"{options.reranker_name_or_path} ({kind}): {options.output_file}"
    )
    tell(rows, values, index)


def distinct_pairs(rows: Sequence[Row]) -> tuple[dict[Pair, int], list[list[int]]]:
    """Every pair once, and for each row where its positives and negatives stand among them."""
    places: dict[Pair, int] = {}
    index = [
        [places.setdefault(Pair(row.query, row.prompt, text), len(places)) for text in (*row.pos, *row.neg)]
        for row in rows
    ]
    return places, index


def refuse_options_of_others(options: ScoreOptions, kind: str) -> None:
    """Options that mean nothing to a teacher of this kind are mistakes.

    Raises:
        UsageError: Names them.
    """
    of = {
        "reranker_peft_path": KINDS, "prompt": KINDS, "cutoff_layers": (LAYERWISE, LIGHTWEIGHT),
        "compress_layers": (LIGHTWEIGHT,), "compress_ratio": (LIGHTWEIGHT,),
    }  # fmt: skip
    given = [name for name in options.model_fields_set if kind not in of.get(name, (kind,))]
    for name in sorted(given):
        if getattr(options, name) != ScoreOptions.model_fields[name].get_default(call_default_factory=True):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{options.reranker_name_or_path} is of kind {kind}, which has no such thing", where=flag)
    if options.compress_ratio > 1 and not options.compress_layers:
        raise UsageError("nothing is compressed without --compress-layers", where="--compress-ratio")


def pair_scorer(options: ScoreOptions, kind: str, hub: Hub) -> Scorer:
    """The teacher reads query and passage together: its logit, or the logit's sigmoid."""
    logits_of = pair_scores(
        options.reranker_name_or_path, kind, hub=hub, devices=options.devices, dtype=options.dtype,
        use_fp16=options.use_fp16, use_bf16=options.use_bf16, batch_tokens=options.batch_tokens,
        batch_size=options.reranker_batch_size, query_max_length=options.reranker_query_max_length,
        max_length=options.reranker_max_length, query=options.query_instruction_for_rerank,
        query_format=options.query_instruction_format_for_rerank, passage=options.passage_instruction_for_rerank,
        passage_format=options.passage_instruction_format_for_rerank, prompt=options.prompt,
        cutoff_layer=options.cutoff_layers[0] if options.cutoff_layers else None,
        compress_layers=options.compress_layers, compress_ratio=options.compress_ratio,
        adapter=options.reranker_peft_path,
    )  # fmt: skip

    def score(pairs: Pairs) -> npt.NDArray[np.float32]:
        logits = logits_of([(pair.query, pair.passage) for pair in pairs])
        return sigmoid(logits) if options.normalize else logits

    return score


def pair_scores(
    name: str, kind: str | None = None, *, hub: Hub, devices: Sequence[str] = (), dtype: str = "auto",
    use_fp16: bool = False, use_bf16: bool = False, batch_tokens: int | None = None, batch_size: int = 3000,
    query_max_length: int | None = None, max_length: int = 512, query: str | None = None, query_format: str = "{}{}",
    passage: str | None = None, passage_format: str = "{}{}", **of_decoder: Any,
) -> Callable[[Sequence[tuple[str, str]]], npt.NDArray[np.float32]]:  # fmt: skip
    """Load a model that reads query and passage together; returns what gives the logits of pairs.

    Args:
        name: Folder or hub name.
        kind: `encoder-only-base` or one of KINDS; None sees it from the model's files.
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
        of_decoder: See `load_decoder_reranker`.

    Raises:
        UsageError: Devices or precision cannot be had, or the model has no such layer.
        RunError: The model cannot be loaded, or is none that scores pairs.
    """
    kind = kind or teacher_kind(name, hub)
    if kind == "embedder":
        raise RunError("is an embedder; a model that scores pairs is wanted", where=name)
    chosen = choose_devices(devices)
    decoder = kind in KINDS
    precision = choose_dtype(dtype, weakest(chosen), use_fp16=use_fp16, use_bf16=use_bf16, decoder=decoder)
    common: dict[str, Any] = {
        "hub": hub, "devices": chosen, "dtype": precision, "query_max_length": query_max_length,
        "max_length": max_length, "batch_tokens": token_budget(batch_tokens, chosen[0]), "batch_size": batch_size,
    }  # fmt: skip
    model: PairScorer[Any] = (
        load_decoder_reranker(name, kind, **common, **of_decoder) if decoder else load_cross_encoder(name, **common)
    )
    of_query, of_passage = (
        instruction(query, QUERY if decoder else None),
        instruction(passage, PASSAGE if decoder else None),
    )

    def score(pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        logits = model.score([
            (instruct(query_format, of_query, one), instruct(passage_format, of_passage, other)) for one, other in pairs
        ])  # fmt: skip
        if model.cut:
            console.warn(f"{model.cut:,} pairs were cut to their length")
        return logits

    return score


def instruction(given: str | None, own: str | None) -> str | None:
    """What the user gave, an empty text too, else what the teacher was trained with."""
    return own if given is None else given


def sigmoid(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 / (1 + e^-x), without overflow."""
    result: npt.NDArray[np.float32] = (0.5 * (1.0 + np.tanh(0.5 * values))).astype(np.float32)
    return result


def embedder_scorer(options: ScoreOptions, hub: Hub) -> Scorer:
    """The teacher is an embedder: the similarity of its vectors."""
    given = "query_instruction_format_for_rerank" in options.model_fields_set
    embedder = load_embedder(
        options.reranker_name_or_path,
        pooling=options.pooling_method,
        query_instruction=options.query_instruction_for_rerank,
        query_format=options.query_instruction_format_for_rerank if given else None,
        passage_instruction=options.passage_instruction_for_rerank,
        passage_format=options.passage_instruction_format_for_rerank,
        query_max_length=options.reranker_query_max_length or options.reranker_max_length,
        passage_max_length=options.reranker_max_length,
        devices=options.devices,
        dtype=options.dtype,
        use_fp16=options.use_fp16,
        use_bf16=options.use_bf16,
        batch_tokens=options.batch_tokens,
        batch_size=options.reranker_batch_size,
        hub=hub,
    )
    console.info(f"{options.reranker_name_or_path}: {embedder.description}")

    def score(pairs: Pairs) -> npt.NDArray[np.float32]:
        queries: dict[tuple[str, str | None], int] = {}
        passages: dict[str, int] = {}
        left = [queries.setdefault((pair.query, pair.prompt), len(queries)) for pair in pairs]
        right = [passages.setdefault(pair.passage, len(passages)) for pair in pairs]
        query_vectors = embedder.encode_queries([query for query, _ in queries], [prompt for _, prompt in queries])
        passage_vectors = embedder.encode_passages(list(passages))
        result = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(pairs), 65_536):
            part = slice(start, start + 65_536)
            result[part] = np.einsum("nd,nd->n", query_vectors[left[part]], passage_vectors[right[part]])
        return result

    return score


def scored(
    rows: Sequence[Row], values: npt.NDArray[np.float32], index: Sequence[Sequence[int]]
) -> Iterator[dict[str, Any]]:
    """The rows as read with `pos_scores` and `neg_scores`; numbers as short as their precision allows."""
    for row, places in zip(rows, index, strict=True):
        scores = [float(str(values[place])) for place in places]
        positives = len(row.pos)
        yield row.raw | {"neg": row.neg, "pos_scores": scores[:positives], "neg_scores": scores[positives:]}


def tell(rows: Sequence[Row], values: npt.NDArray[np.float32], index: Sequence[Sequence[int]]) -> None:
    """How the teacher sees the data: rows where a negative scores above every positive are suspicious."""
    above = 0
    for row, places in zip(rows, index, strict=True):
        scores = values[list(places)]
        count = len(row.pos)
        above += len(row.neg) > 0 and scores[count:].max() > scores[:count].max()
    if above:
        console.warn(f"in {above:,} rows the teacher puts a negative above every positive: likely false negatives")
