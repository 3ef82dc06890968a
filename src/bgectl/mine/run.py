"""`bgectl mine`: rows → pool and queries encoded → ranks → negatives → rows."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bgectl import console, jsonl
from bgectl.data.rows import Row, read_rows
from bgectl.encode import Embedder, load_embedder
from bgectl.errors import DataError
from bgectl.heads import search
from bgectl.mine.rule import Ranked, Rule, Scores
from bgectl.mine.search import load_faiss, rank
from bgectl.mine.select import Negatives, candidates_of, same_text, select_negatives
from bgectl.models.hub import Hub
from bgectl.options.mine import MineOptions, ranks
from bgectl.score.run import pair_scores


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
    rule = Rule(options.percent, options.absolute_margin, options.min_score, options.max_score)
    wanted = options.cross_encoder is None and (options.keep_scores or rule.by_positive)
    searched = Searched(embedder, rows, pool, options, positives=wanted)
    found = searched.rank(high)
    if options.cross_encoder is not None:
        found = judged_by(options, rows, pool, found, low)
        low = 0
    chosen, report = choose(rows, pool, found, low, options, rule, searched)
    embedder.close()
    jsonl.write_objects(options.output_file, mined(rows, pool, chosen, report if options.keep_scores else None))
    tell(rows, pool, chosen, report, options, embedder.cut, time.monotonic() - started)


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


class Searched:
    """The pool and the queries of the rows, encoded once, and searched as deep as is asked for.

    Args:
        embedder: What encodes; its weights are given back when that is done.
        rows: The rows; each distinct query is encoded and searched once.
        pool: The texts that are ranked.
        options: What ranks.
        positives: The scores of positives are wanted.
    """

    def __init__(
        self, embedder: Embedder, rows: Sequence[Row], pool: Sequence[str], options: MineOptions, *, positives: bool
    ) -> None:
        places: dict[tuple[str, str | None], int] = {}
        self.query_of = [places.setdefault((row.query, row.prompt), len(places)) for row in rows]
        self.queries, self.prompts = [query for query, _ in places], [prompt for _, prompt in places]
        self.embedder, self.pool, self.options = embedder, pool, options
        self.positives: list[Scores] = []
        if options.score != "dense":
            return
        self.passages = embedder.encode_passages(pool)
        self.vectors = embedder.encode_queries(self.queries, self.prompts)
        if positives:
            self.positives = self._positive_scores(rows)
        embedder.close()

    def _positive_scores(self, rows: Sequence[Row]) -> list[Scores]:
        place = {text: number for number, text in enumerate(self.pool)}
        others = list(dict.fromkeys(text for row in rows for text in row.pos if text not in place))
        place |= {text: len(self.pool) + number for number, text in enumerate(others)}
        table = self.passages
        if others:
            table = np.concatenate([self.passages, self.embedder.encode_passages(others)])
        return [
            table[[place[text] for text in row.pos]] @ self.vectors[query]
            for row, query in zip(rows, self.query_of, strict=True)
        ]

    def rank(self, depth: int, only: Sequence[int] | None = None) -> Ranked:
        """The best of the pool for each row.

        Args:
            depth: Ranks wanted.
            only: Numbers of the rows; None for all.
        """
        chosen = list(range(len(self.query_of))) if only is None else list(only)
        queries = list(dict.fromkeys(self.query_of[row] for row in chosen))
        place = {query: number for number, query in enumerate(queries)}
        of_rows = [place[self.query_of[row]] for row in chosen]
        options = self.options
        if options.score == "dense":
            indices, scores = rank(
                self.vectors[queries], self.passages, depth, batch=options.search_batch_size,
                gpu=options.use_gpu_for_searching,
            )  # fmt: skip
        else:
            found = search(
                self.embedder, [self.queries[query] for query in queries], [self.prompts[query] for query in queries],
                self.pool, depth, scores=[options.score], weights=options.weights,
            )[options.score]  # fmt: skip
            indices, scores = found.indices, found.scores
        positives = [self.positives[row] for row in chosen] if self.positives else []
        return Ranked(indices[of_rows], scores[of_rows], positives)


def judged_by(options: MineOptions, rows: Sequence[Row], pool: Sequence[str], found: Ranked, low: int) -> Ranked:
    """The candidates of the range, ranked and scored by a reranker, which also scores the positives."""
    assert options.cross_encoder is not None
    hub = Hub(None, options.cache_dir, options.token, options.trust_remote_code)
    score = pair_scores(
        options.cross_encoder, hub=hub, devices=options.devices, dtype=options.dtype, use_fp16=options.use_fp16,
        use_bf16=options.use_bf16, max_length=options.cross_encoder_max_length, batch_tokens=options.batch_tokens,
    )  # fmt: skip
    ranges = [[index for index in found.indices[number, low:].tolist() if index >= 0] for number in range(len(rows))]
    places: dict[tuple[str, str], int] = {}
    wanted = [
        [places.setdefault((row.query, text), len(places)) for text in (*row.pos, *(pool[index] for index in range_))]
        for row, range_ in zip(rows, ranges, strict=True)
    ]
    values = score(list(places))
    indices = np.full((len(rows), max(map(len, ranges), default=0)), -1, dtype=np.int64)
    scores = np.full(indices.shape, -np.inf, dtype=np.float32)
    positives = []
    for number, (row, own, chosen) in enumerate(zip(rows, ranges, wanted, strict=True)):
        positives.append(values[chosen[: len(row.pos)]])
        theirs = values[chosen[len(row.pos) :]]
        order = np.argsort(-theirs, kind="stable")
        indices[number, : len(own)] = np.array(own, dtype=np.int64)[order]
        scores[number, : len(own)] = theirs[order]
    return Ranked(indices, scores, positives)


@dataclass
class Report:
    """What mining saw.

    Attributes:
        left_out: Candidates that the rule left out, by reason.
        negatives: For each row the scores of its negatives; NaN for a random one.
        positives: For each row the scores of its positives, where they are known.
        ranks: For each row the rank of its best positive in the pool; None where it is below the ranks searched.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    negatives: list[list[float]] = field(default_factory=list)
    positives: list[Scores] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)


DEEPER = 10
"""`--fill deeper` looks at ranks up to this many times the end of the range."""


def choose(
    rows: Sequence[Row], pool: Sequence[str], found: Ranked, low: int, options: MineOptions, rule: Rule,
    searched: Searched,
) -> tuple[list[Negatives], Report]:  # fmt: skip
    """The negatives of each row; a row's draw depends on the seed and the row's place alone."""
    numbers: dict[str, int] = {}
    keys = [numbers.setdefault(same_text(text), len(numbers)) for text in pool]
    forbidden = [
        {numbers[key] for key in map(same_text, (row.query, *row.pos)) if key in numbers} for row in rows
    ]  # fmt: skip
    report = Report(positives=found.positives)

    def candidates(ranked: Ranked, place: int, row: int, first: int, left_out: Counter[str]) -> list[int]:
        scores = ranked.scores[place, first:]
        allowed = rule.allowed(scores, ranked.positive(place), left_out) if rule.active else None
        return candidates_of(ranked.indices[place, first:], keys, forbidden[row], allowed)

    ranges = [candidates(found, row, row, low, report.left_out) for row in range(len(rows))]
    lower: dict[int, list[int]] = {}
    deep = found
    if options.fill == "deeper":
        short = [row for row, own in enumerate(ranges) if len(own) < options.negative_number]
        high = found.indices.shape[1]
        if short and high < len(pool):
            deep = searched.rank(min(DEEPER * high, len(pool)), short)
            lower = {row: candidates(deep, place, row, high, Counter()) for place, row in enumerate(short)}
    fill = options.fill == "random"
    chosen, table = [], np.array(keys, dtype=np.int64)
    places = {row: place for place, row in enumerate(lower)}
    for row in range(len(rows)):
        generator = np.random.default_rng([options.seed, row])
        negatives = select_negatives(
            ranges[row], keys, forbidden[row], options.negative_number, generator, how=options.sampling,
            lower=lower.get(row, ()), fill=fill,
        )  # fmt: skip
        chosen.append(negatives)
        looked_at = (deep, places[row]) if row in places else (found, row)
        report.negatives.append(scores_of(*looked_at, negatives.passages))
        own = [numbers[key] for key in map(same_text, rows[row].pos) if key in numbers]
        ranked = found.indices[row]
        hits = np.flatnonzero((ranked >= 0) & np.isin(table[ranked], own))
        report.ranks.append(int(hits[0]) if len(hits) else None)
    return chosen, report


def scores_of(ranked: Ranked, place: int, passages: Sequence[int]) -> list[float]:
    """The scores of some passages for a row; NaN for those that were not found."""
    known = [np.flatnonzero(ranked.indices[place] == index) for index in passages]
    return [float(ranked.scores[place, hits[0]]) if len(hits) else float("nan") for hits in known]


def mined(
    rows: Sequence[Row], pool: Sequence[str], chosen: Sequence[Negatives], report: Report | None
) -> Iterator[dict[str, Any]]:
    """The rows as read with their new `neg`; scores of other negatives would be wrong and go. With a report, also the
    scores of what was mined; those of random texts are not known, and null.
    """
    for number, (row, negatives) in enumerate(zip(rows, chosen, strict=True)):
        kept = {key: value for key, value in row.raw.items() if key not in {"neg", "pos_scores", "neg_scores"}}
        neg = [pool[index] for index in negatives.passages]
        if "neg" in row.raw:
            result = {key: neg if key == "neg" else row.raw[key] for key in row.raw if key in kept or key == "neg"}
        else:
            result = kept | {"neg": neg}
        if report is not None:
            result["mined_pos_scores"] = [rounded(score) for score in report.positives[number].tolist()]
            result["mined_neg_scores"] = [rounded(score) for score in report.negatives[number]]
        yield result


def rounded(score: float) -> float | None:
    """A score as it is written; None for one that is not known."""
    return None if math.isnan(score) else round(score, 6)


def tell(
    rows: Sequence[Row],
    pool: Sequence[str],
    chosen: Sequence[Negatives],
    report: Report,
    options: MineOptions,
    cut: int,
    seconds: float,
) -> None:
    """What was done, and what a careful user wants to know of it."""
    total = sum(len(negatives.passages) for negatives in chosen)
    filled = sum(negatives.filled > 0 for negatives in chosen)
    short = sum(len(negatives.passages) < options.negative_number for negatives in chosen)
    console.info(
        f"mined {total:,} negatives for {len(rows):,} rows from {len(pool):,} texts in {seconds:.1f} s: "
        f"{options.output_file}"
    )
    show(report, options)
    if filled:
        what = "random ones" if options.fill == "random" else "some of lower ranks"
        console.warn(f"{filled:,} rows had too few texts in the range and got {what}")
    if short:
        why = "the pool has no more" if options.fill == "random" else "no other candidate keeps to the rule"
        console.warn(f"{short:,} rows have fewer than {options.negative_number} negatives: {why}")
    if cut:
        console.warn(f"{cut:,} texts were cut to their length")
    if any(row.neg_scores is not None for row in rows):
        console.warn("teacher scores of the former negatives were left out; `bgectl score` adds new ones")


def show(report: Report, options: MineOptions) -> None:
    """A table of the scores, where the positives rank, and what the rule left out."""
    groups = {"positives": [score for scores in report.positives for score in scores.tolist()]}
    groups["negatives"] = [score for scores in report.negatives for score in scores if not math.isnan(score)]
    rows = []
    for name, scores in groups.items():
        if scores:
            low, middle, high = np.percentile(scores, [10, 50, 90])
            rows.append([name, f"{len(scores):,}", *(f"{x:.3f}" for x in (np.mean(scores), low, middle, high))])
    judge = "cross-encoder" if options.cross_encoder else options.score
    console.table(f"Scores ({judge})", ["texts", "number", "mean", "10 %", "median", "90 %"], rows)
    ranks = sorted(rank for rank in report.ranks if rank is not None)
    if ranks and options.cross_encoder is None:
        unseen = len(report.ranks) - len(ranks)
        console.info(
            f"the best positive ranks first for {sum(rank == 0 for rank in ranks):,} of {len(report.ranks):,} rows"
            + (f", and not among the ranks searched for {unseen:,}" if unseen else "")
        )
    for reason, count in report.left_out.items():
        console.info(f"left out: {count:,} candidates {reason}")
