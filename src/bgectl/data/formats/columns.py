"""Which column of a table is what: query, positive, negatives, scores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from bgectl.data.formats.source import Placed, Raw, Source
from bgectl.data.rows import TYPES
from bgectl.errors import UsageError
from bgectl.jsonl import json_type

LABELS = ("prompt", "type", "category", "batch_size", "train_group_size")
ROLES = ("query", "positive", "negative", "score", "label", "pos_scores", "neg_scores", *LABELS)
NAMES = {
    "query": ("query", "anchor", "question", "sentence1", "queries"),
    "positive": ("positive", "pos", "positives", "sentence2", "answer", "answers", "passage", "document", "response"),
    "negative": ("negative", "neg", "negatives", "hard_negative", "hard_negatives"),
    "score": ("score", "scores", "similarity", "similarity_score"),
    "label": ("label", "labels"),
} | {name: (name,) for name in ROLES[5:]}
"""The names in use for each role, the likeliest first. sentence-transformers: query or anchor, positive, negative_1 …,
sentence1, sentence2; its loss takes `label`, `labels`, `score` or `scores`."""
NUMBERED = re.compile(r"(?P<name>[a-z_]+?)_?\d+")
MANY = ("positive", "negative")
"""Roles that several columns may have."""


class Columns:
    """The roles of the columns of one table.

    Args:
        given: `role=column` pairs of the user; an empty column leaves the role out.
        keep: Columns to carry along.
        names: The columns of the table (of JSON lines: the keys of the first).
        where: The table, for messages.

    Raises:
        UsageError: A column is not there, or no column can be told to be the query or the positive.
    """

    def __init__(self, given: Sequence[str], keep: Sequence[str], names: Sequence[str], where: str) -> None:
        self._role: dict[str, str | None] = {}
        self._fixed = {pair.partition("=")[0] for pair in given}
        self._one: dict[str, str] = {}
        self._keep = set(keep)
        self.unused: dict[str, None] = {}
        there = f"columns: {', '.join(map(str, names))}"
        for pair in given:
            role, _, name = pair.partition("=")
            if name and name not in names and role not in MANY[1:]:
                raise UsageError(f"has no column `{name}`", where=where, hint=there)
            if name:
                self._role[name] = role
        for role in ("query", "positive"):
            if role in self._fixed:
                continue
            fitting = [known for known in NAMES[role] if known in names and known not in self._role]
            if fitting:
                self._one[role] = fitting[0]
            elif role == "query" or not any(self.role(name) == role for name in names):
                raise UsageError(
                    f"no column is known to be the {role}", where=where,
                    hint=f"say which: --columns query=COLUMN positive=COLUMN; {there}",
                )  # fmt: skip

    def role(self, name: str) -> str | None:
        """What a column is; None for one that is not used."""
        if name not in self._role:
            self._role[name] = self._known(name)
        return self._role[name]

    def _known(self, name: str) -> str | None:
        for role, known in NAMES.items():
            if role in self._fixed:
                continue
            if role in self._one:
                if name == self._one[role]:
                    return role
            elif name in known:
                return role
        numbered = NUMBERED.fullmatch(name)
        if numbered:
            for role in MANY:
                if role not in self._fixed and numbered["name"] in NAMES[role][:1]:
                    return role
        return None

    def carried(self, name: str) -> bool:
        """Whether a column without a role goes along."""
        if name not in self._keep:
            self.unused[name] = None
        return name in self._keep


def read_table(
    source: Source, records: Iterable[Placed], names: Sequence[str] | None, *, cells: bool
) -> Iterator[Placed]:
    """Half-rows of the records of a table.

    Args:
        source: What is read.
        records: The records, by column.
        names: The columns; None where the first record has them.
        cells: All values are text, as in CSV: an empty one is none, and lists of scores are JSON.
    """
    columns = None
    if names is not None:
        columns = Columns(source.columns, source.keep, names, source.name)
        missing = [name for name in source.keep if name not in names]
        if missing:
            raise UsageError(f"has no column `{missing[0]}`", where=source.name, hint=f"columns: {', '.join(names)}")
    for where, record in records:
        if columns is None:
            columns = Columns(source.columns, source.keep, list(record), where)
        try:
            row = _row(record, columns, source, cells)
        except ValueError as problem:
            source.problems.add(where, str(problem))
            continue
        yield where, row
    if columns is not None and columns.unused:
        source.notes.said.append(f"columns not used: {', '.join(columns.unused)} (--keep carries them along)")


def _row(record: Raw, columns: Columns, source: Source, cells: bool) -> Raw:
    """Raises: ValueError: A value cannot be what its column is."""
    texts: dict[str, list[str]] = {"query": [], "positive": [], "negative": []}
    row: Raw = {"query": None, "pos": texts["positive"], "neg": texts["negative"]}
    score = label = None
    for name, value in record.items():
        if value is None or (cells and value == ""):
            continue
        role = columns.role(name)
        if role in texts:
            texts[role] += _texts(name, value, cells, many=role != "query")
        elif role == "score":
            score = _score(name, value, cells)
        elif role == "label":
            label = _score(name, value, cells)
        elif role in ("pos_scores", "neg_scores"):
            row[role] = _score(name, value, cells)
        elif role == "type":
            if value in TYPES:
                row["type"] = value
            else:
                source.notes.counts[f"values left out of the column `{name}`, which are no type of bgectl"] += 1
        elif role in ("batch_size", "train_group_size"):
            row[role] = int(value) if cells and str(value).isdigit() else value
        elif role is not None:
            row[role] = value
        elif columns.carried(name):
            row[name] = value
    if not texts["query"]:
        raise ValueError("has no query")
    row["query"] = texts["query"][0]
    if not row["pos"] and not row["neg"]:
        raise ValueError(f"`{row['query'][:50]}` has neither a positive nor a negative")
    _label(row, score, label, source)
    for side in ("pos", "neg"):
        scores = row.get(f"{side}_scores")
        if scores is not None and (not isinstance(scores, list) or len(scores) != len(row[side])):
            raise ValueError(f"`{side}_scores`: wanted is a list of {len(row[side])} numbers, one for each text")
    return row


def _texts(name: str, value: Any, cells: bool, *, many: bool) -> list[str]:
    values = value if isinstance(value, list | tuple) and many else [value]
    for text in values:
        if not isinstance(text, str):
            raise ValueError(f"`{name}`: expected a text, found {json_type(text)}")
        if not text.strip():
            raise ValueError(f"`{name}`: the text is empty")
    return list(values)


def _score(name: str, value: Any, cells: bool) -> Any:
    """A number, or a list of them."""
    if cells:
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise ValueError(f"`{name}`: expected a number or a JSON list of them, found `{value[:50]}`") from None
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, bool) or not isinstance(part, int | float):
            raise ValueError(f"`{name}`: expected a number, found {json_type(part)}")
    return value


def _label(row: Raw, score: Any, label: Any, source: Source) -> None:
    """Put a score or label where it belongs.

    A list holds the teacher's scores of the positives and the negatives, in their order (as for MarginMSELoss and
    DistillKLDivLoss of sentence-transformers); a number judges a pair.
    """
    if isinstance(label, list):
        score, label = label, None
    if label is not None and label not in (0, 1):
        score, label = label, None
    if score is None and label is None:
        return
    pos, neg = row["pos"], row["neg"]
    if isinstance(score, list):
        if len(score) != len(pos) + len(neg):
            raise ValueError(f"{len(score)} scores for {len(pos) + len(neg)} texts")
        row["pos_scores"], row["neg_scores"] = score[: len(pos)], score[len(pos) :]
    elif neg or len(pos) != 1:
        if score is not None:
            raise ValueError(
                "one score for several texts is a margin, which is no score of each "
                "(`--columns score= label=` leaves it out)"
            )
        return
    elif label is None and source.positive_from is None:
        raise UsageError(
            "has pairs with a score: from which score on is the second text a positive?", where=source.name,
            hint="say so by --positive-from, such as 0.5; or leave the scores out by --columns score= label=",
        )  # fmt: skip
    else:
        scores = None if score is None else [score]
        right = label == 1 if label is not None else score >= source.positive_from
        row["pos" if right else "neg"], row["neg" if right else "pos"] = pos, []
        if scores:
            row["pos_scores" if right else "neg_scores"] = scores
