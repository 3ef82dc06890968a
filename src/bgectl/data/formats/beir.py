"""BEIR's layout: a folder of corpus.jsonl, queries.jsonl and qrels/<split>.tsv."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bgectl import jsonl
from bgectl.data.formats.source import Placed, Raw, Source, read_objects, text_lines
from bgectl.data.formats.target import TEXTS, Ids, Target, folder_beside
from bgectl.data.formats.tevatron import joined
from bgectl.errors import DataError, UsageError

ENDINGS = ("", ".gz", ".zst")


def is_beir(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return folder.is_dir() and (folder / "qrels").is_dir() and part(folder, "corpus.jsonl") is not None


def part(folder: Path, name: str) -> Path | None:
    """A file of the folder, plain or compressed; None where it is missing."""
    return next((found for ending in ENDINGS if (found := folder / f"{name}{ending}").exists()), None)


def needed(folder: Path, name: str) -> Path:
    """A file of the folder.

    Raises:
        UsageError: It is missing.
    """
    found = part(folder, name)
    if found is None:
        raise UsageError(
            f"the folder holds no {name}", where=str(folder),
            hint="the BEIR layout is corpus.jsonl, queries.jsonl and qrels/<split>.tsv",
        )  # fmt: skip
    return found


def grade_of(cell: str) -> int | None:
    """A score of the judgments; None for what is no whole number."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def read(source: Source) -> Iterator[Placed]:
    """A row for each judged query, in the order of the judgments: passages with a score above 0 are positives, the
    others negatives.

    Memory: the judgments, and the texts that they name.

    Raises:
        UsageError: A part of the layout is missing, or there is no such split.
    """
    files = [needed(source.path, name) for name in ("queries.jsonl", "corpus.jsonl")]
    qrels, file = _qrels(source)
    judged = {passage for grades in qrels.values() for passage in grades}
    queries = _texts(files[0], set(qrels), source, titled=False)
    corpus = _texts(files[1], judged, source, titled=True)
    grades = {grade for found in qrels.values() for _, grade in found.values()}
    if grades - {-1, 0, 1}:
        source.notes.said.append("scores above 1 are taken as 1: training rows know no grades")
    for query, found in qrels.items():
        where = next(iter(found.values()))[0]
        if query not in queries:
            source.problems.add(where, f"the query id `{query}` is not in {files[0]}")
            continue
        row: Raw = {"query": queries[query], "pos": [], "neg": [], "query_id": query}
        for passage, (line, grade) in found.items():
            if passage in corpus:
                row["pos" if grade > 0 else "neg"].append(corpus[passage])
            else:
                source.problems.add(line, f"the passage id `{passage}` is not in {files[1]}")
        if not row["pos"]:
            source.notes.counts["judged queries left out, since they have no relevant passage"] += 1
            continue
        yield where, row
    if not qrels:
        raise DataError("holds no judgments", where=str(file))


def _qrels(source: Source) -> tuple[dict[str, dict[str, tuple[str, int]]], Path]:
    """Query id → passage id → (`file:line`, grade), and the file."""
    folder = source.path / "qrels"
    splits = sorted({file.name.partition(".tsv")[0] for file in folder.glob("*.tsv*")}) if folder.is_dir() else []
    split = source.split or ("train" if "train" in splits or not splits else splits[0])
    file = part(folder, f"{split}.tsv")
    if file is None or (source.split is None and split != "train" and len(splits) > 1):
        hint = f"--split takes one of {', '.join(splits)}" if splits else "judgments belong in qrels/<split>.tsv"
        message = f"has no split `{split}`" if source.split else "has several splits"
        raise UsageError(message, where=str(source.path), hint=hint)
    qrels: dict[str, dict[str, tuple[str, int]]] = {}
    first = True
    for where, text in text_lines(file, source.problems):
        cells = [cell.strip() for cell in (text.split("\t") if "\t" in text else text.split())]
        heads, first = first, False
        if len(cells) not in (3, 4) or not all(cells):
            source.problems.add(where, f"expected query-id, corpus-id and score, found {len(cells)} columns")
            continue
        grade = grade_of(cells[-1])
        if grade is None:
            if not heads:
                source.problems.add(where, f"the score should be a whole number, found `{cells[-1]}`")
            continue
        known = qrels.setdefault(cells[0], {}).setdefault(cells[-2], (where, grade))
        if known[1] != grade:
            source.problems.add(where, f"`{cells[0]}` and `{cells[-2]}` are judged before with another score")
    return qrels, file


def _texts(path: Path, wanted: set[str], source: Source, *, titled: bool) -> dict[str, str]:
    """Id → text of those that are wanted; a title is put before its text."""
    found: dict[str, str] = {}
    inside = Source(path, str(path), source.problems)
    for where, record in read_objects(inside):
        key: Any = record.get("_id")
        key = str(key) if isinstance(key, int) else key
        if key not in wanted:
            continue
        text, title = record.get("text"), record.get("title") if titled else None
        if not isinstance(text, str) or not isinstance(title, str | None):
            source.problems.add(where, "`text` and `title` should be strings")
        elif key in found:
            source.problems.add(where, f"the id `{key}` stands before")
        else:
            found[key] = joined(title, text)
    return found


def write(rows: Iterable[Raw], target: Target) -> list[Path]:
    """The folder; see `write_folder`."""
    split = target.split or "test"
    write_folder(rows, target, split)
    return [target.path / "corpus.jsonl", target.path / "queries.jsonl", target.path / "qrels" / f"{split}.tsv"]


def write_folder(rows: Iterable[Raw], target: Target, split: str, passages: Iterable[str] = ()) -> None:
    """Write the folder: rows of the same query are one query, its positives get the score 1 and its negatives 0.

    Memory: each text once, and the judgments.

    Args:
        rows: Rows.
        target: The folder.
        split: Name of the judgments.
        passages: Further passages of the corpus.
    """
    of_query, of_passage = Ids("q"), Ids("p")
    grades: dict[str, dict[str, int]] = {}
    with folder_beside(target.path) as folder:
        (folder / "qrels").mkdir()
        with (
            jsonl.replace_file(folder / "corpus.jsonl") as corpus,
            jsonl.replace_file(folder / "queries.jsonl") as queries,
        ):

            def passage_id(text: str) -> str:
                key, new = of_passage.of(text)
                if new:
                    corpus.write(jsonl.dump({"_id": key, "title": "", "text": text}) + b"\n")
                return key

            for row in rows:
                target.lose(row, {*TEXTS, "query_id"})
                query, new = of_query.of(row["query"], row.get("query_id"))
                if new:
                    queries.write(jsonl.dump({"_id": query, "text": row["query"]}) + b"\n")
                judged = grades.setdefault(query, {})
                judged |= dict.fromkeys([passage_id(text) for text in row["pos"]], 1)
                for text in row.get("neg") or ():
                    judged.setdefault(passage_id(text), 0)
            for text in passages:
                passage_id(text)
        with jsonl.replace_file(folder / "qrels" / f"{split}.tsv") as stream:
            stream.write(b"query-id\tcorpus-id\tscore\n")
            for query, judged in grades.items():
                # Positives first, which is the order they are read in.
                for passage, grade in sorted(judged.items(), key=lambda item: -item[1]):
                    stream.write(f"{query}\t{passage}\t{grade}\n".encode())
