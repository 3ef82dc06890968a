"""Rows that several processes read, and one writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bgectl import console, distributed, jsonl
from bgectl.data.rows import read_rows
from bgectl.errors import DataError
from bgectl.models.encoder import quiet_libraries
from bgectl.work.folder import run_folder, work_folder


@contextmanager
def rows_at_work(source: Path, target: Path, given: Path | None) -> Iterator[tuple[Path, Path]]:
    """Join the processes of a run over some rows, checked before hours are spent on them.

    Args:
        source: The rows; `-` is stdin.
        target: Where they will go.
        given: The work folder that was asked for.

    Yields:
        The rows as a file that can be read again, and by all processes; and the work folder.

    Raises:
        UsageError: The target cannot be written.
        DataError: A row is defective, and named; or there is none.
    """
    jsonl.check_target(target)
    quiet_libraries()
    work = work_folder(given, target)
    with distributed.together(), run_folder(work) as folder:
        file = source
        if str(source) == "-":
            file = folder / "rows.jsonl"
            if distributed.rank() == 0:
                jsonl.write_objects(file, (row.raw for _, row in read_rows(source)))
            distributed.wait()
        if not sum(1 for _ in console.counted(read_rows(file), "Reading rows", "rows")):
            raise DataError("holds no rows", where=str(source))
        yield file, work


def write_together(target: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows that all processes go through together; the first one writes."""
    if distributed.rank() == 0:
        jsonl.write_objects(target, rows)
    else:
        for _ in rows:
            pass
    distributed.wait()
