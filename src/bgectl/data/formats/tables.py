"""Tables: CSV, TSV, JSON lines, Parquet, and data sets of Hugging Face; records with named columns, one by one."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bgectl import jsonl
from bgectl.data.formats.columns import read_table
from bgectl.data.formats.source import Placed, Raw, Source, compressed, files_of, needed, read_objects
from bgectl.errors import DataError, UsageError

ROWS = 1000
"""Rows of a Parquet file in memory at a time when reading."""
GROUP = 20_000
"""Rows of a row group when writing Parquet, which are in memory."""


def container_of(path: Path) -> str:
    """`csv`, `tsv`, `parquet` or `jsonl`, by the ending."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if path.is_dir():
        for kind in ("parquet", "csv", "tsv"):
            if any(entry.name.endswith(tuple(compressed(f".{kind}"))) for entry in path.iterdir()):
                return kind
    return next((kind for kind in ("csv", "tsv", "parquet") if name.endswith(f".{kind}")), "jsonl")


def read_jsonl(source: Source) -> Iterator[Placed]:
    """Half-rows of JSON lines with named columns."""
    return read_table(source, read_objects(source), None, cells=False)


def read_csv(source: Source, delimiter: str = ",") -> Iterator[Placed]:
    """Half-rows of a CSV file whose first line names the columns."""
    for path in files_of(source.path, compressed(".csv", ".tsv")):
        with _text(path) as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = _header(path, reader)
            if delimiter == "," and len(header) == 1 and ";" in header[0]:
                # What spreadsheets write where the comma is the decimal point.
                reader = csv.reader(stream, delimiter=";", strict=True)
                header = header[0].split(";")
            yield from read_table(source, _cells(path, reader, header, source), header, cells=True)


def read_tsv(source: Source) -> Iterator[Placed]:
    """Half-rows of a TSV file whose first line names the columns."""
    return read_csv(source, "\t")


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    csv.field_size_limit(sys.maxsize)
    with jsonl.open_binary(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            yield text
        except UnicodeDecodeError as problem:
            raise DataError(
                f"is not UTF-8: {problem.reason}", where=str(path), hint="convert it: `iconv -f LATIN1 -t UTF-8`"
            ) from problem
        finally:
            if str(path) == "-":
                # Or stdin would be closed with it.
                text.detach()


def _header(path: Path, reader: Any) -> list[str]:
    try:
        header: list[str] = [name.strip() for name in next(reader)]
    except StopIteration:
        raise DataError("is empty", where=str(path)) from None
    except csv.Error as problem:
        raise DataError(f"the first line does not name columns: {problem}", where=f"{path}:1") from problem
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"has two columns `{twice[0]}`", where=f"{path}:1", hint="the first line names the columns")
    return header


def _cells(path: Path, reader: Any, header: Sequence[str], source: Source) -> Iterator[Placed]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            source.problems.add(f"{path}:{line}", f"not valid CSV: {problem}")
            continue
        if not any(cells):
            continue
        if len(cells) != len(header):
            source.problems.add(f"{path}:{line}", f"{len(cells)} cells, and the first line names {len(header)} columns")
            continue
        yield f"{path}:{line}", dict(zip(header, cells, strict=True))


def read_parquet(source: Source) -> Iterator[Placed]:
    """Half-rows of Parquet files."""
    if str(source.path) == "-":
        raise UsageError("Parquet cannot be read from a pipe", where="-", hint="give the file")
    parquet = needed(_pyarrow, "pyarrow", "parquet")
    import pyarrow

    path = source.path
    try:
        for path in files_of(source.path, [".parquet"]):
            file = parquet.ParquetFile(path)
            yield from read_table(source, _batches(path, file), file.schema_arrow.names, cells=False)
    except (pyarrow.ArrowException, OSError) as problem:
        first = str(problem).split("\n")[0][:200]
        raise DataError(f"is no readable Parquet file: {first}", where=str(path)) from problem


def _pyarrow() -> Any:
    import pyarrow.parquet

    return pyarrow.parquet


def _batches(path: Path, file: Any) -> Iterator[Placed]:
    number = 0
    for batch in file.iter_batches(ROWS):
        for record in batch.to_pylist():
            number += 1
            yield f"{path}: row {number}", record


def read_datasets(source: Source) -> Iterator[Placed]:
    """Half-rows of a data set on the hub, of a folder that `load_dataset` reads, or one that `save_to_disk` wrote.

    Raises:
        UsageError: There is no such split, or it is not said which.
        DataError: It cannot be read.
    """
    records, names = _open_dataset(source)
    placed = ((f"{source.name}: row {number}", record) for number, record in enumerate(records, 1))
    yield from read_table(source, placed, names, cells=False)


def _open_dataset(source: Source) -> tuple[Iterable[Raw], Sequence[str] | None]:
    datasets = needed(_datasets, "datasets", "datasets")
    # It would be loaded for a base class that nothing here uses.
    datasets.config.TORCH_AVAILABLE = False
    datasets.disable_progress_bars()
    saved = any((Path(source.name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            found = datasets.load_from_disk(source.name)
        else:
            found = datasets.load_dataset(source.name, source.subset, streaming=True)
    except Exception as problem:
        # The library raises whatever its readers, the network and the hub's client raise.
        first = (str(problem).strip().split("\n")[0] or type(problem).__name__)[:300]
        raise DataError(f"the data set cannot be read: {first}", where=source.name) from problem
    if isinstance(found, dict):
        splits = sorted(map(str, found))
        split = source.split or ("train" if "train" in splits else splits[0])
        if split not in splits or (source.split is None and split != "train" and len(splits) > 1):
            message = f"has no split `{split}`" if source.split else "has several splits"
            raise UsageError(message, where=source.name, hint=f"--split takes one of {', '.join(splits)}")
        found = found[split]
    elif source.split is not None:
        raise UsageError("has no splits", where=source.name, hint="leave --split out")
    return found, found.column_names


def _datasets() -> Any:
    import datasets

    return datasets


def write_csv(stream: IO[bytes], records: Iterable[Raw], names: Sequence[str], delimiter: str = ",") -> None:
    """Write records as CSV; lists are JSON in their cell."""
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    # Python before 3.13 leaves a bare carriage return without quotes.
    quoting = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    try:
        writer.writerow(names)
        for record in records:
            values = [record.get(name) for name in names]
            cells = [jsonl.dump(value).decode() if isinstance(value, list) else value for value in values]
            returns = any(isinstance(cell, str) and "\r" in cell for cell in cells)
            (quoting if returns else writer).writerow(cells)
    finally:
        # Or the stream would be closed with it.
        text.detach()


def write_jsonl(stream: IO[bytes], records: Iterable[Raw], names: Sequence[str]) -> None:
    """Write records as JSON lines; all have all columns, as `load_dataset` wants them."""
    for record in records:
        stream.write(jsonl.dump({name: record.get(name) for name in names}) + b"\n")


def write_parquet(stream: IO[bytes], records: Iterable[Raw], kinds: dict[str, str]) -> None:
    """Write records as Parquet.

    Args:
        stream: Where to.
        records: The records.
        kinds: Column → kind, see KINDS.
    """
    parquet = needed(_pyarrow, "pyarrow", "parquet")
    import pyarrow

    types = {
        "text": pyarrow.string(), "number": pyarrow.float64(), "integer": pyarrow.int64(), "switch": pyarrow.bool_(),
    }  # fmt: skip
    types |= {f"{name}s": pyarrow.list_(kind) for name, kind in types.items()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in kinds.items()])
    with parquet.ParquetWriter(stream, schema) as writer:
        group: list[Raw] = []
        for record in records:
            group.append({name: record.get(name) for name in kinds})
            if len(group) == GROUP:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pyarrow.Table.from_pylist(group, schema))


KINDS = {
    "query": "text", "pos": "texts", "neg": "texts", "pos_scores": "numbers", "neg_scores": "numbers",
    "prompt": "text", "type": "text", "category": "text", "batch_size": "integer", "train_group_size": "integer",
}  # fmt: skip
"""Columns of bgectl's rows in Parquet."""


def kind_of(value: Any) -> str | None:
    """The kind of a column that can hold a value; None where there is none."""
    if isinstance(value, list):
        kinds = {kind_of(part) for part in value}
        kind = kinds.pop() if len(kinds) == 1 else None
        return f"{kind}s" if kind in ("text", "number", "integer", "switch") else None
    if isinstance(value, bool):
        return "switch"
    if isinstance(value, int):
        return "integer" if -(2**63) <= value < 2**63 else None
    return "text" if isinstance(value, str) else "number" if isinstance(value, float) else None
