"""From files to datasets: which rows belong together, with which batch and group size, and what is left out.

A dataset is what same-dataset batches are taken from (reference, SPEC §3). Without them all datasets are mixed, and
`type` and the columns `batch_size` and `train_group_size` mean nothing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bgectl import jsonl
from bgectl.data.rows import Row
from bgectl.data.store import RowFile, open_rows
from bgectl.errors import DataError

NO_IN_BATCH_NEG = "no_in_batch_neg"
"""End of the name of a directory or file whose rows have no in-batch negatives."""


@dataclass
class Dataset:
    """Rows that batches may be taken from.

    Attributes:
        name: For the report.
        parts: Files with the positions of their rows that belong to the dataset.
        group_size: G.
        batch_size: Queries in a batch on each device.
        type: The rows' `type`.
        own_negatives_only: In-batch negatives are off.
    """

    name: str
    parts: list[tuple[RowFile, Sequence[int]]]
    group_size: int
    batch_size: int
    type: str = "normal"
    own_negatives_only: bool = False

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.parts)

    def read(self, position: int) -> tuple[str, Row]:
        """`file:line` and the row at a position of the dataset."""
        file, index = self._find(position)
        return f"{file.path}:{file.lines[index]}", file.read(index)

    def size(self, position: int) -> int:
        """Bytes of the row at a position, which nothing is read for."""
        file, index = self._find(position)
        return file.size(index)

    def _find(self, position: int) -> tuple[RowFile, int]:
        """The file that holds the row at a position, and where the row stands in it."""
        for file, rows in self.parts:
            if position < len(rows):
                return file, rows[position]
            position -= len(rows)
        raise IndexError(position)


@dataclass(frozen=True)
class Dropped:
    """Rows that no batch will hold, and why."""

    name: str
    rows: int
    why: str


@dataclass
class Collection:
    """All datasets of a run."""

    datasets: list[Dataset]
    dropped: list[Dropped] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def files(self) -> Iterator[RowFile]:
        """Every file that contributes rows."""
        for dataset in self.datasets:
            for file, _ in dataset.parts:
                yield file

    def names_of(self, places: Iterable[str]) -> list[str]:
        """The datasets that have rows at the places, each a `file:line`."""
        files = {place.rpartition(":")[0] for place in places}
        return [dataset.name for dataset in self.datasets if any(str(file.path) in files for file, _ in dataset.parts)]


def own_negatives_only(path: Path) -> bool:
    """Whether a file's own stem, or a directory's name above it as far as the path was given, ends in NO_IN_BATCH_NEG.

    `./x-no_in_batch_neg.jsonl`, `dir-no_in_batch_neg/` and a file named inside such a directory all count.
    """
    # The directory's own name where the path is `.`, or a file in the working directory.
    directory = os.path.basename(os.path.dirname(os.path.abspath(path)))
    names = [jsonl.dataset_stem(path), directory, *path.parts[:-1]]
    return any(name.endswith(NO_IN_BATCH_NEG) for name in names)


def build_datasets(
    paths: Iterable[Path],
    *,
    group_size: int,
    batch_size: int,
    seed: int,
    unpack_to: Path,
    same_dataset: bool = False,
    small_threshold: int = 0,
    drop_threshold: int = 0,
    most_rows: int | None = None,
) -> Collection:
    """Open, check and group the files.

    Args:
        paths: Files and directories, in the user's order; a directory's files come sorted.
        group_size: G, where a dataset does not say otherwise.
        batch_size: Queries in a batch on each device, likewise.
        seed: Seed of the samples.
        unpack_to: Folder for unpacked copies of compressed files.
        same_dataset: Batches come from one dataset.
        small_threshold: Files of a directory with fewer rows are merged, a single one is left out.
        drop_threshold: A merged dataset with fewer rows is left out.
        most_rows: Take a seeded sample of this many rows of each file.

    Raises:
        UsageError: A path does not exist, or a directory is empty.
        DataError: Rows have errors, a file mixes types, or a row lacks the negatives its group needs.
    """
    collection = Collection([])
    for path in paths:
        files = jsonl.expand_paths([path])
        opened = [open_rows(file, unpack_to) for file in files]
        parts = [(file, sample_rows(file, most_rows, seed)) for file in opened]
        if not same_dataset:
            collection.datasets += [_mixed(part, group_size, batch_size) for part in parts]
            continue
        large = [part for part in parts if len(part[1]) >= small_threshold]
        small = [part for part in parts if len(part[1]) < small_threshold]
        collection.datasets += [_dataset(str(part[0].path), [part], group_size, batch_size) for part in large]
        if small and not path.is_dir():
            why = f"fewer than --small-threshold {small_threshold} rows"
            collection.dropped += [Dropped(str(part[0].path), len(part[1]), why) for part in small]
        elif small:
            _merge(collection, path, small, group_size, batch_size, drop_threshold)
    check_negatives(collection)
    return collection


def sample_rows(file: RowFile, most: int | None, seed: int) -> Sequence[int]:
    """All positions of a file, or a seeded sample of `most` in the file's order."""
    if most is None or most >= len(file):
        return range(len(file))
    return sorted(random.Random(f"{seed}/{file.path.name}").sample(range(len(file)), most))


def _mixed(part: tuple[RowFile, Sequence[int]], group_size: int, batch_size: int) -> Dataset:
    file = part[0]
    return Dataset(str(file.path), [part], group_size, batch_size, own_negatives_only=own_negatives_only(file.path))


def _dataset(name: str, parts: list[tuple[RowFile, Sequence[int]]], group_size: int, batch_size: int) -> Dataset:
    """One dataset of files that hold one type."""
    for file, _ in parts:
        if len(file.types) > 1:
            (first, _), (other, count) = file.types.most_common(2)
            raise DataError(
                f"{count} rows are of type {other!r} while others are {first!r}; a dataset holds one type",
                where=f"{file.path}:{file.type_lines[other]}",
                hint="give each type a file of its own",
            )
    file = parts[0][0]
    kind = next(iter(file.types))
    return Dataset(
        name, parts, _group_size(file, kind, group_size), _batch_size(file, kind, batch_size), kind,
        own_negatives_only(file.path),
    )  # fmt: skip


def _group_size(file: RowFile, kind: str, group_size: int) -> int:
    if file.train_group_size is not None:
        return file.train_group_size
    if kind == "only_1neg":
        return 2
    if kind == "symmetric_class":
        return min(file.first_negatives + 1, group_size)
    return group_size


def _batch_size(file: RowFile, kind: str, batch_size: int) -> int:
    if file.batch_size is not None:
        return file.batch_size
    return max(1, batch_size // 2) if "symmetric" in kind else batch_size


def _merge(
    collection: Collection,
    directory: Path,
    small: list[tuple[RowFile, Sequence[int]]],
    group_size: int,
    batch_size: int,
    drop_threshold: int,
) -> None:
    """Merge the small files of a directory, those of one type together."""
    by_kind: dict[tuple[str, bool], list[tuple[RowFile, Sequence[int]]]] = {}
    for part in small:
        kind = next(iter(part[0].types))
        by_kind.setdefault((kind, own_negatives_only(part[0].path)), []).append(part)
    for (kind, _), parts in by_kind.items():
        rows = sum(len(positions) for _, positions in parts)
        suffix = "" if len(by_kind) == 1 else f", {kind}"
        name = f"{directory} ({len(parts)} small file{'s' * (len(parts) > 1)}{suffix})"
        if rows < drop_threshold:
            collection.dropped.append(Dropped(name, rows, f"fewer than --drop-threshold {drop_threshold} rows"))
        else:
            collection.datasets.append(_dataset(name, parts, group_size, batch_size))


def check_negatives(collection: Collection) -> None:
    """Refuse rows without negatives where a group needs some.

    Raises:
        DataError: Names files and lines.
    """
    places = []
    for dataset in collection.datasets:
        if dataset.group_size == 1 and dataset.own_negatives_only:
            raise DataError(
                "has neither in-batch negatives (by its name) nor negatives of its own (group size 1): its loss is 0",
                where=dataset.name,
                hint="raise --train-group-size, or rename it",
            )
        if dataset.group_size > 1:
            for file, _ in dataset.parts:
                lines = ", ".join(str(line) for line in file.no_negative_lines)
                more = ", …" if file.no_negatives > len(file.no_negative_lines) else ""
                if file.no_negatives:
                    places.append(f"{file.path}:{file.no_negative_lines[0]}: `neg` is empty "
                                  f"({file.no_negatives} rows, lines {lines}{more})")  # fmt: skip
    if places:
        raise DataError(
            "\n       ".join(places),
            hint="`bgectl mine` finds negatives; or train with in-batch negatives alone by --train-group-size 1",
        )
