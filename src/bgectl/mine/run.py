"""`bgectl mine`: rows → pool and queries encoded → ranks → negatives → rows.

Several processes encode, search and score, each a share, through the work folder; the first of them draws and writes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bgectl import console, distributed, jsonl
from bgectl.data.copies import near_copies, shingles
from bgectl.data.rows import Row
from bgectl.encode import Embedder, load_embedder
from bgectl.errors import DataError
from bgectl.manifest import described, write_manifest
from bgectl.mine.approximate import check_factory
from bgectl.mine.by_heads import HeadsFinder
from bgectl.mine.found import Found
from bgectl.mine.inputs import Inputs, open_inputs, read_inputs, read_relevant
from bgectl.mine.rule import Rule, Scores
from bgectl.mine.search import DenseFinder
from bgectl.mine.select import Negatives, candidates_of, select_negatives
from bgectl.mine.space import Space
from bgectl.models.hub import Hub
from bgectl.options.mine import MineOptions, ranks
from bgectl.report import Report, rounded
from bgectl.score.pairs import Pair, PairTeacher, digest, pair_teacher
from bgectl.work.folder import run_folder, work_folder
from bgectl.work.rows import write_together
from bgectl.work.texts import Numbers, encoded, hash_of, read_query
from bgectl.work.vectors import SHARD

ROWS = 2_000
"""Rows looked at together."""
DEEPER = 10
"""`--fill deeper` looks at ranks up to this many times the end of the range."""


def run(options: MineOptions) -> None:
    """Mine negatives for every row of the input; all processes of a run call this.

    Raises:
        DataError: Rows or pool have defects, or the range lies behind the pool's end.
        RunError: The model cannot be loaded, a package is missing, or the disk is full.
    """
    started = time.monotonic()
    jsonl.check_target(options.output_file)
    if options.report is not None:
        jsonl.check_target(options.report)
    with distributed.together(), run_folder(work := work_folder(options.work_folder, options.output_file)) as folder:
        mining = Mining(options, work, folder)
        mining.search()
        first = distributed.rank() == 0
        inputs = described({
            name: getattr(options, name) for name in ("input_file", "candidate_pool", "exclude_qrels")
        }) if first else {}  # fmt: skip
        write_together(options.output_file, mining.rows())
        if first:
            write_manifest(options.output_file, "mine", inputs, mining.decided_by(), options)
            mining.finish(time.monotonic() - started)
            mining.report.show(mining.judge)
            mining.tell()
            if options.report is not None:
                mining.write(options.report)


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


@dataclass
class Ranked:
    """What is known of the candidates of some rows.

    Attributes:
        indices: (rows, K) pool indices, best first; -1 where there are no more.
        scores: (rows, K).
        positives: For each row the scores of its positives; empty where they are not known.
    """

    indices: Numbers
    scores: Scores
    positives: list[Scores]

    def positive(self, row: int) -> float:
        """The least score of a row's positives."""
        return float(self.positives[row].min()) if len(self.positives[row]) else float("nan")


class Mining:
    """One run of mining.

    Args:
        options: What is asked for.
        work: The work folder.
        folder: That of this run alone.
    """

    def __init__(self, options: MineOptions, work: Path, folder: Path) -> None:
        self.options, self.work = options, work
        self.report = Report()
        self.mined = self.filled = self.short = self.bare = self.rescued = self.taught = 0
        self.hub = Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code)
        self.embedder = embedder_of(options, self.hub)
        console.info(f"{options.embedder_name_or_path}: {self.embedder.description}")
        if options.index is not None:
            check_factory(options.index, options.embedder_name_or_path, self.hub)
        with self.report.stage("reading", "passages") as stage:
            self.inputs = self._read(folder)
            stage.amount = len(self.inputs.pool)
        self.low, self.high = fit_range(options.range, len(self.inputs.pool))
        self.rule = Rule(options.percent, options.absolute_margin, options.min_score, options.max_score)
        self.relevant: dict[int, set[int]] = {}
        if options.exclude_qrels is not None:
            self.relevant = read_relevant(options.exclude_qrels, normalize=self.inputs.normalize)
        self.judge = "cross-encoder" if options.cross_encoder else options.score
        self.cross = None if options.cross_encoder is None else cross_encoder(options, work)
        self._shingles = lru_cache(50_000)(shingles)
        self.space: Space | None = None
        self.finder: DenseFinder | HeadsFinder
        self.found: Found
        self.deep: Found | None = None

    def _read(self, folder: Path) -> Inputs:
        options = self.options
        if distributed.rank() == 0:
            inputs = read_inputs(
                options.input_file, options.candidate_pool, folder, normalize=options.dedupe != "exact"
            )
        source = distributed.from_first(str(inputs.source) if distributed.rank() == 0 else None)
        return inputs if distributed.rank() == 0 else open_inputs(Path(source), folder)

    def search(self) -> None:
        """Encode what is missing, score the positives, and find the candidates of every query."""
        options, inputs = self.options, self.inputs
        files = self.files = digest(options.embedder_name_or_path, self.hub)
        if options.score == "dense":
            self.space = Space(self.embedder, files, inputs, self.work, options.shard_size or SHARD)
            with self.report.stage("encoding", "texts") as stage:
                counts = self.space.encode()
                stage.amount = sum(counts)
            tell_encoded(inputs, counts, self.space)
            self.report.cut = self.space.cut()
            self.embedder.close()
            self.finder = DenseFinder(
                self.space, batch=options.search_batch_size, gpu=options.use_gpu_for_searching, index=options.index,
                parameters=options.index_parameters, fuse=options.fuse is not None,
            )  # fmt: skip
            scorer: Callable[[Numbers, Numbers], Scores] = self.space.pair_scores
        else:
            self.finder = HeadsFinder(
                self.embedder, files, inputs, self.work, options.score, options.weights, options.shard_size or SHARD
            )  # fmt: skip
            scorer = self.finder.pair_scores
        self.positive_scores = scorer(inputs.pair_query, inputs.pair_passage) if self.cross is None else None
        with self.report.stage("searching", "queries") as stage:
            stage.amount = len(inputs.queries)
            self.found = self.finder.find(np.arange(len(inputs.queries)), self.high)
            if options.fill == "deeper" and self.high < len(inputs.pool):
                self.deep = self._deeper(self.found)
        self.embedder.close()

    def decided_by(self) -> dict[str, Any]:
        """What decides the negatives beside rows and options, for a manifest."""
        return {
            "embedder": self.options.embedder_name_or_path, "revision": self.options.revision, "files": self.files,
            "dtype": str(self.embedder.dtype), "seed": self.options.seed,
        }  # fmt: skip

    def _deeper(self, found: Found) -> Found | None:
        """Lower ranks for the queries whose range has too few candidates."""
        wanted = self.options.negative_number
        short: set[int] = set()
        for first, rows in self._chunks():
            ranked = self._ranked(found, first, rows)
            short |= {
                int(self.inputs.row_query[first + place])
                for place in range(len(rows))
                if len(self._candidates(ranked, place, self._forbidden(first + place), self.low)[0]) < wanted
            }
        if not short:
            return None
        self._short = np.array(sorted(short), dtype=np.int64)
        return self.finder.find(self._short, min(DEEPER * self.high, len(self.inputs.pool)))

    def _chunks(self) -> Iterator[tuple[int, list[Row]]]:
        """The rows, some at a time, with the number of the first."""
        source = self.inputs.read_again()
        first = 0
        while rows := list(islice(source, ROWS)):
            yield first, rows
            first += len(rows)

    def _ranked(self, found: Found, first: int, rows: Sequence[Row], only: Numbers | None = None) -> Ranked:
        """What was found for some rows next to each other, or for some of them by number."""
        numbers = np.arange(first, first + len(rows)) if only is None else only
        indices, scores = found.of(self.inputs.row_query[numbers])
        starts = self.inputs.row_pairs
        known = self.positive_scores
        nothing = np.empty(0, dtype=np.float32)
        positives = [
            nothing if known is None else known[starts[number] : starts[number + 1]] for number in numbers.tolist()
        ]
        return Ranked(indices, scores, positives)

    def _forbidden(self, row: int) -> set[int]:
        query = int(self.inputs.row_query[row])
        known = self.inputs.known_keys(query)
        if self.relevant:
            text = read_query(self.inputs.queries[query])[0]
            known |= self.relevant.get(hash_of(encoded(text)), set())
        return known

    def _candidates(self, ranked: Ranked, place: int, forbidden: set[int], low: int) -> tuple[list[int], Counter[str]]:
        """What may be a negative of a row, in rank order, and what the rule left out."""
        left_out: Counter[str] = Counter()
        scores = ranked.scores[place, low:]
        ranking = ranked.indices[place, low:]
        real = ranking >= 0
        allowed = None
        if self.rule.active:
            allowed = np.zeros(len(scores), dtype=np.bool_)
            allowed[real] = self.rule.allowed(scores[real], ranked.positive(place), left_out)
        keys = self.inputs.keys[np.maximum(ranking, 0)]
        return candidates_of(ranking, keys, forbidden, allowed), left_out

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows with their new negatives; all processes go through this, the first has the result."""
        with self.report.stage("choosing", "rows") as stage, console.progress(
            "Choosing", self.inputs.rows, "rows"
        ) as advance:  # fmt: skip
            for first, rows in self._chunks():
                ranked = self._ranked(self.found, first, rows)
                low = self.low
                if self.cross is not None:
                    ranked, low = judged_by(self.cross, rows, self.inputs, ranked, low), 0
                if distributed.rank() == 0:
                    lower = self._lower(first, len(rows))
                    for place, row in enumerate(rows):
                        yield self._mined(ranked, place, first + place, row, low, lower)
                        advance()
            stage.amount = self.inputs.rows

    def _lower(self, first: int, count: int) -> tuple[Ranked, dict[int, int]] | None:
        """Lower ranks for those of some rows that need them, and the place of each row's there."""
        if self.deep is None:
            return None
        numbers = first + np.flatnonzero(np.isin(self.inputs.row_query[first : first + count], self._short))
        places = {number: place for place, number in enumerate(numbers.tolist())}
        return (self._ranked(self.deep, 0, (), numbers), places) if places else None

    def _mined(
        self, ranked: Ranked, place: int, number: int, row: Row, low: int,
        deeper: tuple[Ranked, dict[int, int]] | None,
    ) -> dict[str, Any]:  # fmt: skip
        """One row with its negatives; its draw depends on the seed and its place alone."""
        options, inputs, report = self.options, self.inputs, self.report
        forbidden = self._forbidden(number)
        candidates, left_out = self._candidates(ranked, place, forbidden, low)
        looked_at, where = ranked, place
        lower: list[int] = []
        if deeper is not None and len(candidates) < options.negative_number:
            looked_at, where = deeper[0], deeper[1][number]
            lower = self._candidates(looked_at, where, forbidden, self.high)[0]
        negatives = select_negatives(
            candidates, inputs.keys, forbidden, options.negative_number,
            np.random.default_rng([options.seed, number]), how=options.sampling, lower=lower,
            fill=options.fill, near=self._near(row) if options.dedupe == "near" else None,
        )  # fmt: skip
        scores = scores_of(looked_at, where, negatives.passages)
        texts = inputs.pool.of(negatives.passages)
        if options.dedupe == "near":
            left_out["as near copies"] += negatives.copies
        self._count(row, number, negatives, left_out, ranked, place)
        report.negatives.extend(score for score in scores if score == score)
        report.suspect(number + 1, row.query, row.pos, ranked.positives[place], texts, scores)
        return mined(row, texts, ranked.positives[place], scores, keep=options.keep_scores)

    def _near(self, row: Row) -> Callable[[int, Sequence[int]], bool]:
        """Whether a passage is nearly a copy of a row's query or positives, or of other passages."""
        of, pool = self._shingles, self.inputs.pool
        own = [of(row.query), *map(of, row.pos)]

        def near(index: int, others: Sequence[int]) -> bool:
            theirs = of(pool[index])
            return any(near_copies(theirs, one) for one in own) or any(
                near_copies(theirs, of(pool[other])) for other in others
            )

        return near

    def _count(
        self, row: Row, number: int, negatives: Negatives, left_out: Counter[str], ranked: Ranked, place: int
    ) -> None:
        report, inputs = self.report, self.inputs
        report.rows += 1
        self.mined += len(negatives.passages)
        self.filled += negatives.filled > 0
        self.short += len(negatives.passages) < self.options.negative_number
        self.bare += not negatives.passages
        self.rescued += self.options.fill == "deeper" and negatives.random > 0
        self.taught += row.neg_scores is not None
        report.left_out.update(left_out)
        report.rows_touched.update(reason for reason, count in left_out.items() if count)
        for reason in left_out:
            report.rows_touched.setdefault(reason, 0)
        report.positives.extend(ranked.positives[place].tolist())
        pairs = slice(inputs.row_pairs[number], inputs.row_pairs[number + 1])
        if self.cross is None and (inputs.pair_passage[pairs] < len(inputs.pool)).any():
            own = inputs.pair_key[pairs]
            indices = ranked.indices[place]
            hits = np.flatnonzero((indices >= 0) & np.isin(inputs.keys[np.maximum(indices, 0)], own))
            report.ranks.append(int(hits[0]) if len(hits) else -1)

    def finish(self, seconds: float) -> None:
        """Give back what is of no use after the run, and say what was done."""
        options = self.options
        for found in (self.found, self.deep):
            if found is not None:
                found.forget()
        if not options.keep_work:
            for keeper in (self.space, self.finder, self.cross):
                if keeper is not None:
                    keeper.forget()
        console.info(
            f"mined {self.mined:,} negatives for {self.report.rows:,} rows from {len(self.inputs.pool):,} texts "
            f"in {seconds:.1f} s: {options.output_file}"
        )

    def tell(self) -> None:
        """What a careful user wants to know."""
        options = self.options
        if self.filled:
            what = "random ones" if options.fill == "random" else "some of lower ranks"
            if self.rescued:
                what += f", {self.rescued:,} of them random ones, since nothing found keeps to the rule"
            console.warn(f"{self.filled:,} rows had too few texts in the range and got {what}")
        if self.short:
            why = "the pool has no more" if options.fill == "random" else "no other candidate keeps to the rule"
            console.warn(f"{self.short:,} rows have fewer than {options.negative_number} negatives: {why}")
        if self.bare and self.bare < self.report.rows:
            console.warn(f"{self.bare:,} of them have none, and training refuses them: --fill random gives them some")
        if self.report.cut:
            console.warn(f"{self.report.cut:,} texts were cut to their length")
        if self.taught:
            console.warn("teacher scores of the former negatives were left out; `bgectl score` adds new ones")

    def write(self, target: Path) -> None:
        """The page."""
        counts = {
            "with fewer negatives than asked for": self.short,
            "filled from outside the range": self.filled,
            "without a negative": self.bare,
        }  # fmt: skip
        lead = f"{self.mined:,} negatives for {self.report.rows:,} rows."
        title = f"Mined negatives: {self.options.output_file}"
        self.report.write(target, title, lead, self.facts(), self.judge, counts)
        console.info(f"report: {target}")

    def facts(self) -> dict[str, Any]:
        """What the report says of the run."""
        options = self.options
        return {
            "rows": options.input_file, "pool": f"{options.candidate_pool or 'positives and negatives of the rows'} "
            f"({len(self.inputs.pool):,} texts)", "embedder": options.embedder_name_or_path,
            "kind of score": options.score, "ranks": options.range, "negatives a row": options.negative_number,
            "rule": rule_in_words(options), "sampling": options.sampling, "copies": options.dedupe,
            "seed": options.seed,
        }  # fmt: skip


def rule_in_words(options: MineOptions) -> str:
    """The rule against false negatives."""
    values = {
        "preset": " ".join(options.preset) or None, "positive percent": options.percent,
        "absolute margin": options.absolute_margin, "min score": options.min_score, "max score": options.max_score,
        "cross-encoder": options.cross_encoder,
    }  # fmt: skip
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None) or "none"


def embedder_of(options: MineOptions, hub: Hub) -> Embedder:
    """The embedder that the options describe."""
    return load_embedder(
        options.embedder_name_or_path,
        pooling=options.pooling_method,
        normalize=options.normalize_embeddings,
        query_instruction=options.query_instruction_for_retrieval,
        query_format=options.query_instruction_format_for_retrieval,
        passage_instruction=options.passage_instruction_for_retrieval,
        passage_format=options.passage_instruction_format_for_retrieval,
        query_max_length=options.embedder_query_max_length,
        passage_max_length=options.embedder_passage_max_length,
        devices=distributed.own_devices(options.devices),
        dtype=options.dtype,
        use_fp16=options.use_fp16,
        use_bf16=options.use_bf16,
        batch_tokens=options.batch_tokens,
        batch_size=options.embedder_batch_size,
        heads=options.score != "dense",
        kind=options.embedder_model_class,
        examples=options.examples_for_task,
        examples_format=options.examples_instruction_format,
        lazy=True,
        quick=True,
        hub=hub,
    )


def cross_encoder(options: MineOptions, work: Path) -> PairTeacher:
    """The reranker that judges candidates."""
    assert options.cross_encoder is not None
    hub = Hub(None, options.cache_dir, options.token, options.trust_remote_code)
    return pair_teacher(
        options.cross_encoder, digest(options.cross_encoder, hub), work=work, hub=hub,
        devices=distributed.own_devices(options.devices),
        dtype=options.dtype, use_fp16=options.use_fp16, use_bf16=options.use_bf16,
        max_length=options.cross_encoder_max_length, batch_tokens=options.batch_tokens, shard=options.shard_size,
    )  # fmt: skip


def judged_by(cross: PairTeacher, rows: Sequence[Row], inputs: Inputs, found: Ranked, low: int) -> Ranked:
    """The candidates of the range, ranked and scored by a reranker, which also scores the positives."""
    ranges = [[index for index in found.indices[number, low:].tolist() if index >= 0] for number in range(len(rows))]
    pairs: list[Pair] = []
    for row, range_ in zip(rows, ranges, strict=True):
        pairs += [Pair(row.query, None, text) for text in (*row.pos, *inputs.pool.of(range_))]
    values = cross.of(pairs)
    indices = np.full((len(rows), max(map(len, ranges), default=0)), -1, dtype=np.int64)
    scores = np.full(indices.shape, -np.inf, dtype=np.float32)
    positives = []
    place = 0
    for number, (row, own) in enumerate(zip(rows, ranges, strict=True)):
        middle, end = place + len(row.pos), place + len(row.pos) + len(own)
        positives.append(values[place:middle])
        theirs = values[middle:end]
        place = end
        order = np.argsort(-theirs, kind="stable")
        indices[number, : len(own)] = np.array(own, dtype=np.int64)[order]
        scores[number, : len(own)] = theirs[order]
    return Ranked(indices, scores, positives)


def scores_of(ranked: Ranked, place: int, passages: Sequence[int]) -> list[float]:
    """The scores of some passages for a row; NaN for those that were not found."""
    known = [np.flatnonzero(ranked.indices[place] == index) for index in passages]
    return [float(ranked.scores[place, hits[0]]) if len(hits) else float("nan") for hits in known]


def mined(row: Row, neg: list[str], pos_scores: Scores, neg_scores: Sequence[float], *, keep: bool) -> dict[str, Any]:
    """A row as read with its new `neg`; scores of other negatives would be wrong and go.

    Args:
        row: The row.
        neg: Its negatives.
        pos_scores: Of its positives.
        neg_scores: Of the negatives; those of random texts are not known, and null.
        keep: Write the scores too.
    """
    kept: Mapping[str, Any] = {
        key: value for key, value in row.raw.items() if key not in {"pos_scores", "neg_scores"}
    }  # fmt: skip
    result = {key: neg if key == "neg" else value for key, value in kept.items()}
    result.setdefault("neg", neg)
    if keep:
        result["mined_pos_scores"] = [rounded(score) for score in pos_scores.tolist()]
        result["mined_neg_scores"] = [rounded(score) for score in neg_scores]
    return result


def tell_encoded(inputs: Inputs, counts: tuple[int, int], space: Space) -> None:
    """Where vectors are kept, and how many were there already."""
    queries, passages = counts
    known = len(inputs.queries) + len(inputs.used) - queries - passages
    there = f", {known:,} were there already" if known else ""
    size = (space.passages.size() + space.queries.size()) / 1e6
    console.info(
        f"encoded {queries + passages:,} texts in {space.embedder.dtype}{there}; {size:,.1f} MB are in {space.work}"
    )
