"""`bgectl mine`: rows → pool and queries encoded → ranks → negatives → rows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgectl import console, jsonl
from bgectl.data.rows import Row, read_rows
from bgectl.encode import Embedder, load_embedder
from bgectl.errors import DataError
from bgectl.heads import search
from bgectl.mine.search import load_faiss, rank
from bgectl.mine.select import Negatives, same_text, select_negatives
from bgectl.models.hub import Hub
from bgectl.options.mine import MineOptions, ranks


def run(options: MineOptions) -> None:
    """Mine negatives for every row of the input.

    Raises:
        DataError: Rows or pool have defects, or the range lies behind the pool's end.
        RunError: The model cannot be loaded, faiss is missing, or the disk is full.
    """
    started = time.monotonic()
    jsonl.check_target(options.output_file)
    if options.score == "dense":
        load_faiss()
    rows = [row for _, row in read_rows(options.input_file)]
    if not rows:
        raise DataError("holds no rows", where=str(options.input_file))
    pool = read_pool(options.candidate_pool) if options.candidate_pool else pool_of(rows)
    low, high = fit_range(options.range, len(pool))
    embedder = load_embedder(
        options.embedder_name_or_path,
        pooling=options.pooling_method,
        normalize=options.normalize_embeddings,
        query_instruction=options.query_instruction_for_retrieval,
        query_format=options.query_instruction_format_for_retrieval,
        passage_instruction=options.passage_instruction_for_retrieval,
        passage_format=options.passage_instruction_format_for_retrieval,
        query_max_length=options.embedder_query_max_length,
        passage_max_length=options.embedder_passage_max_length,
        devices=options.devices,
        dtype=options.dtype,
        use_fp16=options.use_fp16,
        use_bf16=options.use_bf16,
        batch_tokens=options.batch_tokens,
        batch_size=options.embedder_batch_size,
        heads=options.score != "dense",
        kind=options.embedder_model_class,
        examples=options.examples_for_task,
        examples_format=options.examples_instruction_format,
        hub=Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code),
    )
    console.info(f"{options.embedder_name_or_path}: {embedder.description}")
    rankings = rank_pool(embedder, rows, pool, high, options)[:, low:]
    chosen = choose(rows, pool, rankings, options.negative_number, options.seed)
    jsonl.write_objects(options.output_file, mined(rows, pool, chosen))
    tell(rows, pool, chosen, options, embedder.cut, time.monotonic() - started)


def pool_of(rows: Iterable[Row]) -> list[str]:
    """All positives and negatives of the rows, each text once, in the order of the file."""
    return list(dict.fromkeys(text for row in rows for text in (*row.pos, *row.neg)))


def read_pool(path: Path) -> list[str]:
    """The texts of a candidate pool, each once; a `title` is put before its `text`.

    Raises:
        DataError: A line has no text; named with file and line.
    """
    texts: dict[str, None] = {}
    for number, entry in jsonl.read_objects(path):
        text, title = entry.get("text"), entry.get("title") or ""
        if not isinstance(text, str) or not isinstance(title, str) or not (title + text).strip():
            raise DataError(
                "a text is missing", where=f"{path}:{number}: `text`", hint='a line of the pool is {"text": "..."}'
            )
        texts[f"{title} {text}".strip() if title else text] = None
    if not texts:
        raise DataError("the candidate pool is empty", where=str(path))
    return list(texts)


def fit_range(text: str, pool: int) -> tuple[int, int]:
    """The ranks to draw from, cut to the pool.

    Raises:
        DataError: No rank of the range exists in the pool.
    """
    low, high = ranks(text)
    if low >= pool:
        raise DataError(
            f"the range starts at rank {low} and the pool has {pool} texts", where="--range",
            hint="give a --candidate-pool, or a lower range",
        )  # fmt: skip
    if high > pool:
        console.warn(f"the range {low}-{high} goes beyond the pool of {pool} texts; it is cut to {low}-{pool}")
    return low, min(high, pool)


def rank_pool(embedder: Embedder, rows: Sequence[Row], pool: Sequence[str], depth: int, options: MineOptions) -> Any:
    """(rows, depth) pool indices, best first; each distinct query is encoded and searched once."""
    places: dict[tuple[str, str | None], int] = {}
    query_of = [places.setdefault((row.query, row.prompt), len(places)) for row in rows]
    queries, prompts = [query for query, _ in places], [prompt for _, prompt in places]
    if options.score != "dense":
        found = search(
            embedder, queries, prompts, pool, depth, scores=[options.score], weights=options.weights
        )[options.score]  # fmt: skip
        embedder.close()
        return found.indices[query_of]
    passages = embedder.encode_passages(pool)
    vectors = embedder.encode_queries(queries, prompts)
    embedder.close()
    batch, gpu = options.search_batch_size, options.use_gpu_for_searching
    return rank(vectors, passages, depth, batch=batch, gpu=gpu)[query_of]


def choose(rows: Sequence[Row], pool: Sequence[str], rankings: Any, wanted: int, seed: int) -> list[Negatives]:
    """The negatives of each row; a row's draw depends on the seed and the row's place alone."""
    numbers: dict[str, int] = {}
    keys = [numbers.setdefault(same_text(text), len(numbers)) for text in pool]
    chosen = []
    for index, row in enumerate(rows):
        forbidden = {numbers[key] for key in map(same_text, (row.query, *row.pos)) if key in numbers}
        generator = np.random.default_rng([seed, index])
        chosen.append(select_negatives(rankings[index], keys, forbidden, wanted, generator))
    return chosen


def mined(rows: Sequence[Row], pool: Sequence[str], chosen: Sequence[Negatives]) -> Iterator[dict[str, Any]]:
    """The rows as read with their new `neg`; scores of other negatives would be wrong and go."""
    for row, negatives in zip(rows, chosen, strict=True):
        kept = {key: value for key, value in row.raw.items() if key not in {"neg", "pos_scores", "neg_scores"}}
        place = list(row.raw).index("neg") if "neg" in row.raw else None
        neg = [pool[index] for index in negatives.passages]
        if place is None:
            yield kept | {"neg": neg}
        else:
            yield {key: neg if key == "neg" else row.raw[key] for key in row.raw if key in kept or key == "neg"}


def tell(
    rows: Sequence[Row],
    pool: Sequence[str],
    chosen: Sequence[Negatives],
    options: MineOptions,
    cut: int,
    seconds: float,
) -> None:
    """What was done, and what a careful user wants to know of it."""
    total = sum(len(negatives.passages) for negatives in chosen)
    filled = sum(negatives.random > 0 for negatives in chosen)
    short = sum(len(negatives.passages) < options.negative_number for negatives in chosen)
    console.info(
        f"mined {total:,} negatives for {len(rows):,} rows from {len(pool):,} texts in {seconds:.1f} s: "
        f"{options.output_file}"
    )
    if filled:
        console.warn(f"{filled:,} rows had too few texts in the range and got random ones")
    if short:
        console.warn(f"{short:,} rows have fewer than {options.negative_number} negatives: the pool has no more")
    if cut:
        console.warn(f"{cut:,} texts were cut to their length")
    if any(row.neg_scores is not None for row in rows):
        console.warn("teacher scores of the former negatives were left out; `bgectl score` adds new ones")
