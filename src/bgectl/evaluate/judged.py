"""Queries, passages, and which passages are relevant: from a folder in BEIR layout, or from training rows held out."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bgectl import console, jsonl
from bgectl.data.formats.beir import grade_of, needed, part
from bgectl.data.rows import read_rows
from bgectl.errors import DataError, UsageError

SHOWN = 10
"""Problems of one file that a message lists; more are only counted."""


@dataclass(frozen=True)
class Judged:
    """Judged retrieval data. Every query has at least one relevant passage.

    Args:
        name: Where it came from, for messages.
        query_ids: Q ids, each once.
        queries: Q texts.
        passage_ids: N ids, each once.
        passages: N texts.
        qrels: Query id → passage id → grade; above 0 is relevant. A passage may be missing from `passage_ids`:
            it counts as never found, as trec_eval counts it.
        prompts: Q instructions of the rows themselves, which replace the model's; None where a query has none.
        left_out: Queries read that have no relevant passage.
        itself: Query index → index of the passage that is the query itself. It ranks first for any model and says
            nothing, so it is passed over (as in BEIR, for collections such as ArguAna whose queries are passages).
    """

    name: str
    query_ids: list[str]
    queries: list[str]
    passage_ids: list[str]
    passages: list[str]
    qrels: dict[str, dict[str, int]]
    prompts: list[str | None]
    left_out: int = 0
    itself: dict[int, int] = field(default_factory=dict)

    @cached_property
    def places(self) -> dict[str, int]:
        """Passage id → its index."""
        return {passage: number for number, passage in enumerate(self.passage_ids)}

    @property
    def judgments(self) -> int:
        """How many (query, passage) pairs are judged relevant."""
        return sum(grade > 0 for grades in self.qrels.values() for grade in grades.values())


def load_judged(path: Path, split: str = "test") -> Judged:
    """Load judged data.

    Args:
        path: A folder that holds corpus.jsonl, queries.jsonl and qrels/<split>.tsv (each may end in .gz or .zst), or a
            file or folder of training rows; there all `pos` and `neg` texts are the passages and `pos` are relevant.
        split: Which judgments of a folder in BEIR layout; training rows have only one.

    Raises:
        UsageError: Nothing is there, a part of the layout is missing, or there is no such split.
        DataError: A file holds what cannot be used; the message names file and line.
    """
    parts = ("corpus.jsonl", "queries.jsonl", "qrels")
    if path.is_dir() and any(part(path, name) for name in parts):
        return _load_beir(path, split)
    return _load_rows(path)


def _load_beir(folder: Path, split: str) -> Judged:
    queries_path, corpus_path, qrels_path = needed(folder, "queries.jsonl"), needed(folder, "corpus.jsonl"), None
    if (folder / "qrels").is_dir():
        qrels_path = part(folder / "qrels", f"{split}.tsv")
    if qrels_path is None:
        there = sorted({file.name.split(".tsv")[0] for file in folder.glob("qrels/*.tsv*")})
        hint = f"there is: {', '.join(there)} (choose by --split)" if there else "judgments belong in qrels/<split>.tsv"
        raise UsageError(f"no judgments for the split `{split}`", where=str(folder), hint=hint)
    queries = _read_texts(queries_path)
    corpus = _read_texts(corpus_path, titled=True)
    qrels = _read_qrels(qrels_path, queries)
    _check_known(qrels, queries, corpus, qrels_path)
    relevant = {query: grades for query, grades in qrels.items() if max(grades.values()) > 0}
    ids = [query for query in queries if query in relevant]
    if not ids:
        raise DataError("no query has a relevant passage (a score above 0)", where=str(qrels_path))
    empty = [query for query in ids if not queries[query].strip()]
    if empty:
        raise DataError(f"the query `{empty[0]}` is judged and its text is empty", where=str(queries_path))
    index = {passage: number for number, passage in enumerate(corpus)}
    itself = {
        number: index[query]
        for number, query in enumerate(ids)
        # Ids alone prove nothing: queries and passages may both be numbered from 1.
        if query in index and corpus[query].endswith(queries[query]) and relevant[query].get(query, 0) <= 0
    }
    return Judged(
        name=f"{folder} ({split})",
        query_ids=ids,
        queries=[queries[query] for query in ids],
        passage_ids=list(corpus),
        passages=list(corpus.values()),
        qrels={query: relevant[query] for query in ids},
        prompts=[None] * len(ids),
        left_out=len(queries) - len(ids),
        itself=itself,
    )


def _read_texts(path: Path, *, titled: bool = False) -> dict[str, str]:
    """Id → text of a corpus.jsonl or queries.jsonl, in the file's order; a title is put before its text."""
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems: list[tuple[int, str]] = []
    for number, item in jsonl.read_objects(path):
        key, text, title = item.get("_id"), item.get("text"), item.get("title") if titled else None
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if not isinstance(key, str) or not key:
            problems.append((number, _mistyped(item, "_id", "a string that is not empty")))
        elif not isinstance(text, str):
            problems.append((number, _mistyped(item, "text", "a string")))
        elif not isinstance(title, str | None):
            problems.append((number, _mistyped(item, "title", "a string")))
        elif key in lines:
            problems.append((number, f"the id `{key}` stands on line {lines[key]} too"))
        else:
            lines[key] = number
            texts[key] = f"{title} {text}".strip() if title else text
    _refuse(path, problems, 'each line is one object such as {"_id": "p1", "text": "..."}; ids are unique')
    if not texts:
        raise DataError("is empty", where=str(path))
    return texts


def _mistyped(item: dict[str, Any], name: str, wanted: str) -> str:
    found = jsonl.json_type(item[name]) if name in item else "nothing"
    return f"`{name}` should be {wanted}, found {'an empty one' if item.get(name) == '' else found}"


def _read_qrels(path: Path, queries: Container[str]) -> dict[str, dict[str, int]]:
    """Query id → passage id → grade. Lines hold query, passage, grade, or TREC's query, iteration, passage, grade."""
    qrels: dict[str, dict[str, int]] = {}
    problems: list[tuple[int, str]] = []
    for count, line in enumerate(jsonl.read_lines(path)):
        try:
            text = line.data.decode("utf-8")
        except UnicodeDecodeError as problem:
            problems.append((line.number, f"is not UTF-8 (byte {problem.start + 1})"))
            continue
        cells = [cell.strip() for cell in (text.split("\t") if "\t" in text else text.split())]
        if len(cells) not in (3, 4) or not all(cells):
            problems.append((line.number, f"expected 3 columns (or TREC's 4), found {len(list(filter(None, cells)))}"))
            continue
        query, passage, grade = cells[0], cells[-2], grade_of(cells[-1])
        if grade is None:
            # A first line that judges no known query is taken for column heads.
            if count or query in queries:
                problems.append((line.number, f"the score should be a whole number, found `{cells[-1]}`"))
        elif qrels.setdefault(query, {}).setdefault(passage, grade) != grade:
            problems.append((line.number, f"`{query}` and `{passage}` are judged before with another score"))
    _refuse(path, problems, "each line is query-id, corpus-id and score, with a tab between")
    if not qrels:
        raise DataError("holds no judgments", where=str(path))
    return qrels


def _check_known(qrels: dict[str, dict[str, int]], queries: Container[str], corpus: Container[str], path: Path) -> None:
    """Warn of ids that the other files do not have.

    Raises:
        DataError: None of them is known.
    """
    judged = {passage for grades in qrels.values() for passage in grades}
    for kind, ids, known, effect in (
        ("query", qrels.keys(), queries, "not evaluated"),
        ("passage", judged, corpus, "counted as never found"),
    ):
        unknown = [key for key in ids if key not in known]
        if len(unknown) == len(ids):
            raise DataError(
                f"none of its {kind} ids is known (such as `{unknown[0]}`)", where=str(path),
                hint="columns are query-id, corpus-id, score; ids are those in queries.jsonl and corpus.jsonl",
            )  # fmt: skip
        if unknown:
            console.warn(
                f"{path}: {len(unknown):,} of {len(ids):,} {kind} ids are unknown, such as `{min(unknown)}`; {effect}"
            )


def _refuse(path: Path, problems: list[tuple[int, str]], hint: str) -> None:
    """Raise one DataError for all the problems of a file, each with its line."""
    if not problems:
        return
    first, message = problems[0]
    others = [f"{path}:{number}: {text}" for number, text in problems[1:SHOWN]]
    more = [f"and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
    raise DataError("\n".join([message, *others, *more]), where=f"{path}:{first}", hint=hint)


def _load_rows(path: Path) -> Judged:
    """Rows of the same query and prompt are one query; passages are told apart by their text."""
    passages: dict[str, int] = {}
    positives: dict[tuple[str, str | None], dict[int, int]] = {}
    for file in jsonl.expand_paths([path]):
        for _, row in read_rows(file):
            relevant = positives.setdefault((row.query, row.prompt or None), {})
            relevant.update({passages.setdefault(text, len(passages)): 1 for text in row.pos})
            for text in row.neg:
                passages.setdefault(text, len(passages))
    if not positives:
        raise DataError("holds no rows", where=str(path))
    queries = [query for query, _ in positives]
    return Judged(
        name=str(path),
        query_ids=[f"q{number}" for number in range(1, len(queries) + 1)],
        queries=queries,
        passage_ids=[f"p{number}" for number in range(1, len(passages) + 1)],
        passages=list(passages),
        qrels={
            f"q{number}": {f"p{passage + 1}": grade for passage, grade in relevant.items()}
            for number, relevant in enumerate(positives.values(), 1)
        },
        prompts=[prompt for _, prompt in positives],
        itself={
            number: passages[query]
            for number, ((query, _), relevant) in enumerate(positives.items())
            if query in passages and passages[query] not in relevant
        },
    )
