"""Tevatron's training files: JSON lines of a query and its positive and negative passages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bgectl import jsonl
from bgectl.data.formats.source import Placed, Raw, Source, read_objects
from bgectl.data.formats.target import SCORES, TEXTS, Ids, Target

SIDES = {"positive_passages": "pos", "negative_passages": "neg"}


def joined(title: Any, text: str) -> str:
    """A passage with its title before it, as Tevatron and `bgectl eval` join them."""
    return f"{title} {text}".strip() if title else text


def read(source: Source) -> Iterator[Placed]:
    """Rows; scores of the passages are the teacher's if all of a side have one."""
    for where, record in read_objects(source):
        try:
            row = _row(record)
        except ValueError as problem:
            source.problems.add(where, str(problem))
            continue
        yield where, row


def _row(record: Raw) -> Raw:
    """Raises: ValueError: A field is of a wrong type."""
    row: Raw = {"query": record.get("query")}
    if not isinstance(row["query"], str):
        raise ValueError("`query`: expected a string, found " + jsonl.json_type(row["query"]))
    for name, side in SIDES.items():
        passages = record.get(name) or []
        if not isinstance(passages, list):
            raise ValueError(f"`{name}`: expected a list, found {jsonl.json_type(passages)}")
        row[side], scores = [], []
        for place, passage in enumerate(passages):
            field = f"`{name}[{place}]`"
            if not isinstance(passage, dict) or not isinstance(passage.get("text"), str):
                raise ValueError(f'{field}: expected an object such as {{"docid": "1", "title": "", "text": "..."}}')
            if not isinstance(passage.get("title"), str | None):
                raise ValueError(f"{field}: `title` should be a string")
            row[side].append(joined(passage.get("title"), passage["text"]))
            if "score" in passage:
                scores.append(passage["score"])
        if scores and len(scores) == len(passages):
            row[f"{side}_scores"] = scores
    if record.get("query_id") is not None:
        row["query_id"] = str(record["query_id"])
    return row


def write(rows: Iterable[Raw], target: Target) -> list[Path]:
    """One row a line; the same text has the same docid. Memory: each text once."""
    queries, passages = Ids("q"), Ids("p")
    with jsonl.replace_file(target.path) as stream:
        for number, row in enumerate(rows):
            target.lose(row, {*TEXTS, *SCORES, "query_id"})
            record: Raw = {"query_id": queries.of(number, row.get("query_id"))[0], "query": row["query"]}
            for name, side in SIDES.items():
                texts, scores = row.get(side) or [], row.get(f"{side}_scores")
                record[name] = [{"docid": passages.of(text)[0], "title": "", "text": text} for text in texts]
                for passage, score in zip(record[name], scores or [], strict=False):
                    passage["score"] = score
            stream.write(jsonl.dump(record) + b"\n")
    return [target.path]
