"""bgectl's own rows: in JSON lines, and as columns with lists in Parquet and data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from bgectl import jsonl
from bgectl.data.formats.source import Placed, Raw, Source, read_objects
from bgectl.data.formats.tables import KINDS, write_parquet
from bgectl.data.formats.target import Spool, Target, folder_beside, spooled


def read(source: Source) -> Iterator[Placed]:
    """The rows as they are."""
    return read_objects(source)


def write(rows: Iterable[Raw], target: Target) -> list[Path]:
    """One row a line."""
    with jsonl.replace_file(target.path) as stream:
        for row in rows:
            stream.write(jsonl.dump(row) + b"\n")
    return [target.path]


def write_lists(rows: Iterable[Raw], target: Target) -> list[Path]:
    """Parquet: a column for each field, lists for texts and scores."""
    with spooled(rows) as spool, jsonl.replace_file(target.path) as stream:
        write_parquet(stream, _held(spool, target), _kinds(spool))
    return [target.path]


def write_dataset(rows: Iterable[Raw], target: Target) -> list[Path]:
    """A folder that `datasets.load_dataset` reads: data/<split>-00000-of-00001.parquet."""
    split = target.split or "train"
    name = Path("data", f"{split}-00000-of-00001.parquet")
    with spooled(rows) as spool, folder_beside(target.path) as folder:
        (folder / "data").mkdir()
        with jsonl.replace_file(folder / name) as stream:
            write_parquet(stream, _held(spool, target), _kinds(spool))
    return [target.path / name]


def _kinds(spool: Spool) -> dict[str, str]:
    known = {name: kind for name, kind in KINDS.items() if name in ("query", "pos", "neg") or name in spool.kinds}
    return known | {name: kind for name, kind in spool.kinds.items() if kind is not None}


def _held(spool: Spool, target: Target) -> Iterator[Raw]:
    kinds = _kinds(spool)
    for row in spool:
        target.lose(row, kinds)
        yield row
