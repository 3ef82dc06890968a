"""`data convert`: training data of other tools to bgectl's rows, and back.

Rows stream from reader to writer. What is held in memory beside them: with --group, all rows of a format that has one
pair or triplet a line; of formats with ids, the texts that ids stand for; of LlamaIndex's, the file. Parquet, data sets
and the formats with one text a column go through a temporary file, since their columns are known at the end only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from bgectl import console, jsonl
from bgectl.data.formats import beir, flat, llamaindex, msmarco, own, tables, tevatron
from bgectl.data.formats.columns import NAMES
from bgectl.data.formats.source import Notes, Placed, Problems, Raw, Source, counted
from bgectl.data.formats.target import Target, check_folder, spooled
from bgectl.data.formats.tidy import checked, grouped
from bgectl.errors import DataError, UsageError
from bgectl.manifest import described, write_manifest
from bgectl.options.convert import ConvertOptions

Reader = Callable[[Source], Iterator[Placed]]
Writer = Callable[[Iterable[Raw], Target], list[Path]]

FORMATS: dict[str, tuple[Reader, Writer]] = {
    "bgectl": (own.read, own.write),
    "sentence-transformers": (flat.read, flat.write),
    "jsonl": (tables.read_jsonl, flat.write),
    "csv": (tables.read_csv, flat.write),
    "tsv": (tables.read_tsv, flat.write),
    "parquet": (tables.read_parquet, own.write_lists),
    "datasets": (tables.read_datasets, own.write_dataset),
    "tevatron": (tevatron.read, tevatron.write),
    "beir": (beir.read, beir.write),
    "llamaindex": (llamaindex.read, llamaindex.write),
    "msmarco": (msmarco.read, msmarco.write),
    "msmarco-ids": (msmarco.read_ids, msmarco.write_ids),
}
ONE_PAIR_A_LINE = {"sentence-transformers", "jsonl", "csv", "tsv", "parquet", "datasets", "msmarco", "msmarco-ids"}
TABLES = {"sentence-transformers", "jsonl", "csv", "tsv", "parquet", "datasets"}
FLAT = {"sentence-transformers", "jsonl", "csv", "tsv"}
FOLDERS = {"beir", "datasets"}


def run(options: ConvertOptions) -> None:
    """Read one format and write the other.

    Raises:
        UsageError: A format is not said and cannot be seen, or an option does not go with the format.
        DataError: Records are defective; all of them are told.
    """
    path = Path(options.input_file)
    source_format = options.from_format or guess_input(path)
    target_format = options.to_format or guess_output(options.output_file)
    _check_options(options, source_format, target_format)
    if target_format in FOLDERS:
        check_folder(options.output_file, overwrite=options.overwrite)
    else:
        jsonl.check_target(options.output_file)
    problems, notes = Problems(options.max_problems, options.skip_bad), Notes()
    source = Source(
        path, options.input_file, problems, notes, options.columns, options.keep, options.split, options.subset,
        options.collection, options.queries, options.positive_from,
    )  # fmt: skip
    target = Target(
        options.output_file, target_format, notes, options.shape, options.negatives, options.output_columns,
        # Of two formats with splits it is the input's; the output is then named after it.
        options.split, options.collection, options.queries,
    )  # fmt: skip
    inputs = described({"input_file": path})
    count = 0

    def rows() -> Iterator[Raw]:
        nonlocal count
        records = FORMATS[source_format][0](source)
        if options.group and source_format in ONE_PAIR_A_LINE:
            records = grouped(records)
        for row in checked(records, problems, notes, whole=source_format == "bgectl"):
            count += 1
            yield row
        # While nothing has taken its place yet.
        problems.settle()
        if not count:
            raise DataError("holds no row that could be written", where=options.input_file, hint=_why_none(notes))

    write = FORMATS[target_format][1]
    if str(options.output_file) == "-" and not options.skip_bad:
        # What went into a pipe cannot be taken back when a defect comes up.
        with spooled(rows()) as spool:
            outputs = write(spool, target)
    else:
        outputs = write(rows(), target)
    notes.tell(target_format)
    facts: dict[str, Any] = {
        "from": source_format, "to": target_format, "rows": count, "skipped": problems.records,
        "columns": options.columns, "group": options.group, "lost": dict(notes.lost), "left_out": dict(notes.counts),
    }  # fmt: skip
    write_manifest(_manifest_place(outputs, target), "data convert", inputs, facts)
    console.info(f"wrote {counted(count, 'row')} as {target_format}: {', '.join(map(str, outputs))}")


def _why_none(notes: Notes) -> str | None:
    said = "; ".join(f"{phrase}: {number:,}" for phrase, number in notes.counts.items())
    return said or None


def _manifest_place(outputs: list[Path], target: Target) -> Path:
    """What the manifest is named after; it must not lie among a data set's files."""
    return target.path / "dataset" if target.format == "datasets" else outputs[0]


def _check_options(options: ConvertOptions, source: str, target: str) -> None:
    """Refuse options that would do nothing.

    Raises:
        UsageError: There is one.
    """
    ids = "msmarco-ids" in (source, target)
    splits = FOLDERS & {source, target}
    for option, given, fits, wanted in (
        ("--columns", options.columns, source in TABLES, f"input in one of {', '.join(sorted(TABLES))}"),
        ("--keep", options.keep, source in TABLES, f"input in one of {', '.join(sorted(TABLES))}"),
        ("--positive-from", options.positive_from is not None, source in TABLES, "input that is a table"),
        ("--output-columns", options.output_columns, target in FLAT, f"output in one of {', '.join(sorted(FLAT))}"),
        ("--shape", options.shape != "tuple", target in FLAT, f"output in one of {', '.join(sorted(FLAT))}"),
        ("--negatives", options.negatives, target in FLAT, f"output in one of {', '.join(sorted(FLAT))}"),
        ("--split", options.split, splits, "beir or datasets"),
        ("--subset", options.subset, source == "datasets", "--from datasets"),
        ("--collection", options.collection, ids, "msmarco-ids"),
        ("--queries", options.queries, ids, "msmarco-ids"),
        ("--overwrite", options.overwrite, target in FOLDERS, "output that is a folder; files are replaced anyway"),
    ):
        if given and not fits:
            raise UsageError(f"goes with {wanted}; this is {source} to {target}", where=option)
    if source == target == "msmarco-ids" and (options.collection or options.queries):
        raise UsageError("would name the files of both", where="--collection", hint="convert by way of bgectl's rows")


# What a file is.


def guess_input(path: Path) -> str:
    """The format of the input, where that leaves no doubt.

    Raises:
        UsageError: It does.
    """
    found, why = _seen(path)
    if found is None:
        raise UsageError(f"{why}; say the format", where=str(path), hint=f"--from takes one of {', '.join(FORMATS)}")
    console.info(f"{path}: read as {found} ({why})")
    return found


def _seen(path: Path) -> tuple[str | None, str]:
    """The format, or None, and why."""
    if str(path) == "-":
        return None, "stdin is read once only"
    if not path.exists():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            raise UsageError("no such file or folder", where=str(path), hint="of a name on the hub say --from datasets")
        raise UsageError("no such file or folder", where=str(path))
    if not path.is_dir() and not path.is_file():
        return None, "a pipe is read once only"
    if path.is_dir():
        if beir.is_beir(path):
            return "beir", "the folder has a corpus.jsonl and qrels"
        if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return "datasets", "the folder was written by save_to_disk"
        kind = tables.container_of(path)
        if kind in ("parquet", "csv", "tsv"):
            return kind, f"the folder holds .{kind} files"
        files = [file for file in sorted(path.iterdir()) if jsonl.is_data(file)]
        return _seen(files[0]) if files else (None, "the folder holds no data file")
    kind = tables.container_of(path)
    if kind in ("parquet", "csv"):
        return kind, "by its ending"
    if kind == "tsv":
        return _seen_tsv(path)
    if path.name.endswith(jsonl.SUFFIXES):
        return _seen_json(path)
    return None, "its ending says nothing"


def _seen_tsv(path: Path) -> tuple[str | None, str]:
    first = next(jsonl.read_lines(path), None)
    cells = first.data.decode("utf-8", "replace").split("\t") if first else []
    if any(cell in NAMES["query"] for cell in cells) and any(cell in NAMES["positive"] for cell in cells):
        return "tsv", "its first line names columns"
    if len(cells) == 3 and all(cell.strip().isdigit() for cell in cells):
        return "msmarco-ids", "lines of three numbers"
    return None, "may have names in its first line (tsv) or none (msmarco)"


def _seen_json(path: Path) -> tuple[str | None, str]:
    line = next(jsonl.read_lines(path), None)
    if line is None:
        raise DataError("is empty", where=str(path))
    try:
        record = orjson.loads(line.data)
    except orjson.JSONDecodeError:
        # One object over many lines, or an array.
        with jsonl.open_binary(path) as stream:
            try:
                record = orjson.loads(stream.read().removeprefix(jsonl.UTF8_BOM))
            except orjson.JSONDecodeError:
                return None, "its first line is not valid JSON"
    if isinstance(record, list):
        record = record[0] if record else None
    if not isinstance(record, dict):
        return None, "its first line is no JSON object"
    if all(isinstance(record.get(name), dict) for name in llamaindex.PARTS):
        return "llamaindex", "an object of queries, corpus and relevant_docs"
    if "positive_passages" in record:
        return "tevatron", "it has positive_passages"
    if "query" in record and isinstance(record.get("pos"), list):
        return "bgectl", "it has query and pos"
    if any(name in record for name in NAMES["query"]) and any(name in record for name in NAMES["positive"]):
        return "jsonl", f"JSON lines with the columns {', '.join(record)}"
    return None, f"has the keys {', '.join(record)}"


def guess_output(path: Path) -> str:
    """The format of the output by its ending.

    Raises:
        UsageError: It says nothing.
    """
    kind = tables.container_of(path) if not path.is_dir() else ""
    if kind in ("parquet", "csv", "tsv"):
        return kind
    if str(path) == "-" or path.name.endswith(jsonl.SUFFIXES):
        return "bgectl"
    raise UsageError("its ending says nothing; say the format", where=str(path), hint=f"--to: {', '.join(FORMATS)}")
