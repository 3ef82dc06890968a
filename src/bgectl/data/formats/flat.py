"""One text a column, as sentence-transformers trains on, in JSON lines, CSV, TSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bgectl import jsonl
from bgectl.data.formats import tables
from bgectl.data.formats.columns import LABELS
from bgectl.data.formats.source import Placed, Raw, Source
from bgectl.data.formats.target import SCORES, TEXTS, Spool, Target, spooled

SCALARS = ("text", "number", "integer", "switch")
NAMES = {"query": "query", "positive": "positive", "negative": "negative", "score": "scores", "label": "label"}
SENTENCE_TRANSFORMERS = {"query": "anchor"}
PAIR = {"positive": "passage", "score": "score"}
SENTENCE_TRANSFORMERS_PAIR = {"query": "sentence1", "positive": "sentence2"}


def read(source: Source) -> Iterator[Placed]:
    """Half-rows of whatever the file's ending says."""
    kind = tables.container_of(source.path)
    reader = {"csv": tables.read_csv, "tsv": tables.read_tsv, "parquet": tables.read_parquet}.get(kind)
    return (reader or tables.read_jsonl)(source)


def write(rows: Iterable[Raw], target: Target) -> list[Path]:
    """Lines of one query and one positive, in the container that the format or the file's ending says."""
    container = target.format
    if container == "sentence-transformers":
        container = tables.container_of(target.path)
    with spooled(rows) as spool:
        names, columns = _columns(spool, target)
        records = _records(spool, target, names, columns)
        with jsonl.replace_file(target.path) as stream:
            if container == "parquet":
                tables.write_parquet(stream, records, columns)
            elif container == "jsonl":
                tables.write_jsonl(stream, records, list(columns))
            else:
                tables.write_csv(stream, records, list(columns), "\t" if container == "tsv" else ",")
    return [target.path]


def _columns(spool: Spool, target: Target) -> tuple[dict[str, str], dict[str, str]]:
    """The name of each role, and the kind of each column in order."""
    pair = target.shape == "pair"
    trainer = target.format == "sentence-transformers"
    names = NAMES | (PAIR if pair else {}) | (SENTENCE_TRANSFORMERS if trainer else {})
    names |= SENTENCE_TRANSFORMERS_PAIR if pair and trainer else {}
    names |= {role: name for role, _, name in (text.partition("=") for text in target.columns) if name}
    columns = {names["query"]: "text", names["positive"]: "text"}
    scored = any(spool.rows_with[name] for name in SCORES)
    if pair:
        columns[names["label"]] = "integer"
        columns |= {names["score"]: "number"} if scored else {}
    else:
        columns |= dict.fromkeys(_negative_columns(names["negative"], _most(spool, target)), "text")
        columns |= {names["score"]: "numbers"} if scored else {}
    if not trainer:
        # Its trainer takes every further column for a text.
        columns |= {name: tables.KINDS[name] for name in LABELS if spool.rows_with[name]}
        extra = {name: kind for name, kind in spool.kinds.items() if name not in tables.KINDS}
        columns |= {name: kind for name, kind in extra.items() if kind in SCALARS and name not in columns}
    return names, columns


def _most(spool: Spool, target: Target) -> int:
    """Negatives on a line."""
    most = max(spool.negatives, default=0)
    if target.shape == "triplet":
        return min(most, 1)
    return target.negatives or most


def _negative_columns(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}_{number}" for number in range(1, count + 1)]


def _records(spool: Spool, target: Target, names: dict[str, str], columns: dict[str, str]) -> Iterator[Raw]:
    held = {*TEXTS, *SCORES, *columns}
    most = _most(spool, target)
    places = _negative_columns(names["negative"], most)
    notes = target.notes
    for row in spool:
        target.lose(row, held)
        pos, neg = row["pos"], row.get("neg") or []
        scores = [row.get(name) for name in SCORES]
        of_pos, of_neg = scores[0], scores[1] if neg else []
        if (of_pos is None or of_neg is None) and scores != [None, None] and target.shape != "pair":
            notes.counts["rows whose scores are left out, since one side has none"] += 1
        extra = {name: value for name, value in row.items() if name in columns and name not in names.values()}
        if target.shape == "pair":
            for side, texts, values in (("pos", pos, of_pos), ("neg", neg, of_neg)):
                for place, text in enumerate(texts):
                    yield extra | {
                        names["query"]: row["query"], names["positive"]: text, names["label"]: int(side == "pos"),
                        names["score"]: values[place] if values else None,
                    }  # fmt: skip
            continue
        chosen: Sequence[range] = [range(min(len(neg), most))]
        if target.shape == "triplet":
            chosen = [range(place, place + 1) for place in range(len(neg))]
            if not neg:
                notes.counts["rows left out, since they have no negative and so make no triplet"] += 1
        elif target.negatives is not None:
            if len(neg) < most:
                notes.counts[f"rows left out, since they have fewer negatives than {most}"] += 1
                continue
            if len(neg) > most:
                notes.counts["negatives left out that are beyond --negatives"] += len(neg) - most
        elif len(neg) < most:
            fewer = f"rows with empty columns, since they have fewer negatives than {most}"
            notes.counts[f"{fewer} (--negatives leaves none empty)"] += 1
        for index, positive in enumerate(pos):
            for numbers in chosen:
                record = extra | {names["query"]: row["query"], names["positive"]: positive}
                record |= {column: neg[number] for column, number in zip(places, numbers, strict=False)}
                if of_pos is not None and of_neg is not None:
                    record[names["score"]] = [of_pos[index], *(of_neg[number] for number in numbers)]
                yield record
