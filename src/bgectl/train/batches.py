"""Which rows make up which step: one seeded plan, the same on every rank."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bgectl.data.datasets import Collection
from bgectl.errors import DataError


class RowKey(NamedTuple):
    """A row in an epoch: all that its draws depend on beside the seed."""

    epoch: int
    dataset: int
    position: int
    row: int
    """Counted over all datasets."""


@dataclass(frozen=True)
class DatasetPlan:
    """One line of the report before training.

    Attributes:
        name: The dataset.
        rows: Its rows.
        batch_size: Queries in a step on each device.
        group_size: G.
        steps: Steps an epoch; for a mixture, of all datasets together.
        left_out: Rows that no step of an epoch holds.
        why: Why they are left out.
    """

    name: str
    rows: int
    batch_size: int
    group_size: int
    steps: int
    left_out: int
    why: str


class BatchPlan:
    """The batches of every epoch. Iterating yields this rank's rows of each step in the current epoch."""

    def __init__(
        self, collection: Collection, *, batch_size: int, seed: int, same_dataset: bool, drop_last: bool = False,
        rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        self.collection = collection
        self.batch_size = batch_size
        self.seed = seed
        self.same_dataset = same_dataset
        self.drop_last = drop_last
        self.rank = rank
        self.world = world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; transformers' Trainer calls this through the data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(len(sizes) for _, sizes in self._cuts())

    def __iter__(self) -> Iterator[list[RowKey]]:
        return iter(self.batches(self.epoch))

    def _cuts(self) -> list[tuple[int, list[int]]]:
        """(rows, sizes of its steps over all ranks) of each unit that steps are cut from."""
        if not self.same_dataset:
            group = self.collection.datasets[0].group_size
            return [(len(self.collection), self._sizes(len(self.collection), self.batch_size, group))]
        return [(len(d), self._sizes(len(d), d.batch_size, d.group_size)) for d in self.collection.datasets]

    def _sizes(self, rows: int, batch_size: int, group_size: int) -> list[int]:
        whole, rest = divmod(rows, batch_size * self.world)
        sizes = [batch_size * self.world] * whole
        share = rest // self.world
        # A single pair has nothing to be told apart from: its loss is 0.
        useless = share == 0 or (share == 1 and group_size == 1)
        return sizes if self.drop_last or useless else [*sizes, share * self.world]

    def digest(self) -> str:
        """Short name of the data that the plan is made of: its files, their sizes and how many rows are taken."""
        told = [
            [str(Path(dataset.name).name), dataset.group_size, dataset.batch_size]
            + [[file.path.name, len(file), file.plain.stat().st_size, len(rows)] for file, rows in dataset.parts]
            for dataset in self.collection.datasets
        ]
        return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()

    def batches(self, epoch: int) -> list[list[RowKey]]:
        """This rank's rows of each step of an epoch."""
        generator = np.random.default_rng([self.seed, epoch])
        steps: list[list[RowKey]] = []
        firsts = [0, *accumulate(len(dataset) for dataset in self.collection.datasets)]
        for unit, (rows, sizes) in enumerate(self._cuts()):
            order = generator.permutation(rows)
            start = 0
            for size in sizes:
                share = size // self.world
                mine = order[start + self.rank * share : start + (self.rank + 1) * share]
                steps.append([self._key(epoch, unit, int(position), firsts) for position in mine])
                start += size
        if self.same_dataset:
            steps = [steps[index] for index in generator.permutation(len(steps))]
        return steps

    def _key(self, epoch: int, unit: int, position: int, firsts: Sequence[int]) -> RowKey:
        """The row at a position of a unit; `firsts` are the first rows of the datasets, counted over all."""
        row = firsts[unit] + position if self.same_dataset else position
        dataset = unit if self.same_dataset else bisect_right(firsts, row) - 1
        return RowKey(epoch, dataset, row - firsts[dataset], row)

    def report(self) -> list[DatasetPlan]:
        """What each dataset contributes, those left out included."""
        lines = []
        cuts = self._cuts()
        for index, dataset in enumerate(self.collection.datasets):
            rows, sizes = cuts[index] if self.same_dataset else cuts[0]
            left = rows - sum(sizes) if self.same_dataset or index == 0 else 0
            size = dataset.batch_size if self.same_dataset else self.batch_size
            why = "" if not left else ("last incomplete batch" if sizes else "fewer rows than a batch")
            lines.append(DatasetPlan(dataset.name, len(dataset), size, dataset.group_size, len(sizes), left, why))
        return lines + [DatasetPlan(d.name, d.rows, 0, 0, 0, d.rows, d.why) for d in self.collection.dropped]

    def refuse_empty(self, *, allow: bool) -> None:
        """Stop where a dataset contributes nothing, unless that is allowed.

        Raises:
            DataError: Names the datasets.
        """
        empty = [line for line in self.report() if line.steps == 0]
        if not len(self):
            raise DataError("the data gives no batch at all", hint="lower the batch size, or give more rows")
        if empty and not allow:
            raise DataError(
                "; ".join(f"{line.name} gives no batch ({line.rows} rows: {line.why})" for line in empty),
                hint="lower the batch size or the thresholds, or go on without it by --allow-empty-datasets",
            )
        single = [
            d.name for d in self.collection.datasets
            if d.group_size == 1 and (d.batch_size if self.same_dataset else self.batch_size) == 1
        ]  # fmt: skip
        if single:
            raise DataError(
                "one query with one passage has no negatives: its loss is 0", where=single[0],
                hint="raise --per-device-train-batch-size or --train-group-size",
            )  # fmt: skip
