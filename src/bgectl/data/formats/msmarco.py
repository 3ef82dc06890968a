"""MS MARCO's triples: tab-separated lines of query, positive and negative, as texts or as ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bgectl import jsonl
from bgectl.data.formats.source import Placed, Problems, Raw, Source, compressed, files_of, text_lines
from bgectl.data.formats.target import TEXTS, Ids, Target
from bgectl.errors import DataError, UsageError

ENDINGS = compressed(".tsv", ".txt")


def _cells(source: Source, least: int, most: int | None) -> Iterator[tuple[str, list[str]]]:
    """(`file:line`, cells) of every line with as many cells as the first."""
    for path in files_of(source.path, ENDINGS):
        wanted = 0
        for where, text in text_lines(path, source.problems):
            cells = text.split("\t")
            if not wanted:
                wanted = len(cells)
                if wanted < least or (most is not None and wanted > most):
                    told = f"{least}" if most == least else f"{least} or more"
                    raise DataError(f"{wanted} columns, and {told} are wanted, with a tab between", where=where)
            if len(cells) != wanted:
                source.problems.add(where, f"{len(cells)} columns, and the first line has {wanted}")
            elif empty := [number for number, cell in enumerate(cells, 1) if not cell.strip()]:
                source.problems.add(where, f"column {empty[0]} is empty")
            else:
                yield where, cells


def read(source: Source) -> Iterator[Placed]:
    """Half-rows of lines of query, positive, and any number of negatives; no line with names."""
    for where, cells in _cells(source, 2, None):
        yield where, {"query": cells[0], "pos": [cells[1]], "neg": cells[2:]}


def write(rows: Iterable[Raw], target: Target) -> list[Path]:
    """A line for each positive with each negative; tabs and line ends in texts become spaces."""
    with jsonl.replace_file(target.path) as stream:

        def put(query: str, positive: str, negative: str) -> None:
            cells = []
            for text in (query, positive, negative):
                plain = text.replace("\r\n", "\n").translate(BREAKS)
                if plain != text:
                    target.notes.counts["texts on lines whose tabs and line ends became spaces"] += 1
                cells.append(plain)
            stream.write("\t".join(cells).encode() + b"\n")

        _triples(rows, target, put, {*TEXTS})
    return [target.path]


BREAKS = {ord(mark): " " for mark in "\t\r\n"}


def _triples(rows: Iterable[Raw], target: Target, put: Callable[[str, str, str], None], held: set[str]) -> None:
    for row in rows:
        target.lose(row, held)
        if not row.get("neg"):
            target.notes.counts["rows left out, since they have no negative and so make no triple"] += 1
        for positive in row["pos"]:
            for negative in row.get("neg") or ():
                put(row["query"], positive, negative)


def files_beside(path: Path, collection: Path | None, queries: Path | None) -> tuple[Path, Path]:
    """The files of passages and of queries that belong to triples of ids.

    Raises:
        UsageError: The triples are a pipe, and it is not said where the others are.
    """
    if str(path) == "-" and (collection is None or queries is None):
        raise UsageError("ids alone say nothing", where="-", hint="give --collection and --queries")
    folder = path if path.is_dir() else path.parent
    return collection or _there(folder / "collection.tsv"), queries or _there(folder / "queries.tsv")


def _there(path: Path) -> Path:
    """The file, or the compressed one in its place."""
    packed = (path.with_name(path.name + ending) for ending in (".gz", ".zst"))
    return path if path.exists() else next((other for other in packed if other.exists()), path)


def read_ids(source: Source) -> Iterator[Placed]:
    """Half-rows of lines of ids of a query, a positive and a negative.

    Memory: the triples, and the texts that they name.

    Raises:
        UsageError: The texts' files are missing.
    """
    collection, queries = files_beside(source.path, source.collection, source.queries)
    for option, path in (("--collection", collection), ("--queries", queries)):
        if not path.is_file():
            raise UsageError("no such file", where=str(path), hint=f"{option} names it; lines are id, tab, text")
    if source.path.is_dir():
        raise UsageError("is a folder; the file of triples is wanted", where=str(source.path))
    triples = list(_cells(source, 3, 3))
    query_texts = _texts(queries, {cells[0] for _, cells in triples}, source.problems)
    passages = _texts(collection, {cell for _, cells in triples for cell in cells[1:]}, source.problems)
    for where, (query, positive, negative) in triples:
        named = ((query, query_texts), (positive, passages), (negative, passages))
        missing = [key for key, texts in named if key not in texts]
        if missing:
            file = queries if query not in query_texts else collection
            source.problems.add(where, f"the id `{missing[0]}` is not in {file}")
            continue
        yield where, {
            "query": query_texts[query], "pos": [passages[positive]], "neg": [passages[negative]], "query_id": query,
        }  # fmt: skip


def _texts(path: Path, wanted: set[str], problems: Problems) -> dict[str, str]:
    """Id → text of those that are wanted."""
    found: dict[str, str] = {}
    for where, line in text_lines(path, problems):
        key, tab, text = line.partition("\t")
        if key not in wanted:
            continue
        if not tab or not text.strip():
            problems.add(where, "expected an id, a tab and a text")
        elif found.setdefault(key, text) != text:
            problems.add(where, f"the id `{key}` stands before with another text")
    return found


def write_ids(rows: Iterable[Raw], target: Target) -> list[Path]:
    """The triples of ids, and beside them collection.tsv and queries.tsv. Memory: each text once."""
    folder = target.path.parent
    collection = target.collection or folder / "collection.tsv"
    queries = target.queries or folder / "queries.tsv"
    of_query, of_passage = Ids(""), Ids("")
    with (
        jsonl.replace_file(collection) as passage_stream,
        jsonl.replace_file(queries) as query_stream,
        jsonl.replace_file(target.path) as stream,
    ):

        def put(query: str, positive: str, negative: str) -> None:
            ids = []
            for text, of, texts in (
                (query, of_query, query_stream), (positive, of_passage, passage_stream),
                (negative, of_passage, passage_stream),
            ):  # fmt: skip
                key, new = of.of(text)
                ids.append(key)
                if new:
                    plain = text.replace("\r\n", "\n").translate(BREAKS)
                    if plain != text:
                        target.notes.counts["texts whose tabs and line ends became spaces"] += 1
                    texts.write(f"{key}\t{plain}\n".encode())
            stream.write("\t".join(ids).encode() + b"\n")

        _triples(rows, target, put, {*TEXTS, "query_id"})
    return [target.path, collection, queries]
