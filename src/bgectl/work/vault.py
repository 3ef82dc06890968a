"""Rows of numbers in shards on disk, found by the hash of the text they were computed from.

Each shard is written once, beside and renamed into place: what a killed run had finished, the next one does not compute
again, and neither does a run whose texts are others but for a few.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bgectl import console, distributed
from bgectl.atomic import put, sweep_parts
from bgectl.errors import RunError
from bgectl.work.texts import Hashes, Numbers, Places, Seen, digest_of

Values = npt.NDArray[Any]

Compute = Callable[[Numbers, console.Advance], tuple[Values, dict[str, str]]]
"""From places to the values there and a note; it tells how far it is."""

SUFFIX = ".safetensors"
PART = ".part"
SECONDS_TO_SHOW = 90
"""How long what another machine wrote may take to be seen here; a network's file system keeps folders in mind for a
minute."""


kept: dict[str, tuple[str, int]] = {}
"""Of this run, by the label of each stage: the unit, and how many of those are kept."""


class Vault:
    """Values by hash, in one folder.

    Args:
        folder: Made if need be; all values in it are of one kind.
        about: What makes this kind, for a person to read.

    Attributes:
        hashes: (N,) of all values there are.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self._files: list[Path] = []
        self._known: set[str] = set()
        self.hashes: Hashes = np.empty(0, dtype=np.uint64)
        self._shard = np.empty(0, dtype=np.int32)
        self._row = np.empty(0, dtype=np.int32)
        self._places = Places(self.hashes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep_parts(folder)
            put(folder / "about.json", (json.dumps(dict(about), indent=1) + "\n").encode())
        except OSError as problem:
            raise unusable(folder, problem) from problem
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that came since.

        Raises:
            RunError: A shard is damaged.
        """
        hashes, shards, rows = [self.hashes], [self._shard], [self._row]
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path.name in self._known:
                continue
            with opened(path) as stream:
                theirs: Hashes = np.array(stream.get_tensor("hashes"))
            self._known.add(path.name)
            hashes.append(theirs)
            shards.append(np.full(len(theirs), len(self._files), dtype=np.int32))
            rows.append(np.arange(len(theirs), dtype=np.int32))
            self._files.append(path)
        if len(hashes) == 1:
            return
        # In the order of their names, whenever they were found: what is numbered by it is the same in the next run.
        order = sorted(range(len(self._files)), key=lambda number: self._files[number].name)
        self._files = [self._files[number] for number in order]
        number_of = np.argsort(np.array(order, dtype=np.int32)).astype(np.int32)
        self.hashes, self._row = np.concatenate(hashes), np.concatenate(rows)
        self._shard = number_of[np.concatenate(shards)]
        self._places = Places(self.hashes)

    def missing(self, hashes: Hashes) -> Numbers:
        """Places of the hashes that have no value here, each hash once, in order."""
        unknown = np.flatnonzero(self._places.find(hashes) < 0)
        result: Numbers = unknown[Seen().first(hashes[unknown])]
        return result

    def add(self, hashes: Hashes, values: Values, note: Mapping[str, str] | None = None) -> None:
        """Write one shard. It is seen after `refresh`.

        Args:
            hashes: (S,).
            values: (S, …).
            note: Kept with the shard; see `notes`.

        Raises:
            RunError: The disk is full, or the folder cannot be written.
        """
        path = self.folder / f"{digest_of(hashes.tobytes())}{SUFFIX}"
        data = save({"hashes": hashes, "values": np.ascontiguousarray(values)}, metadata=dict(note or {}))
        try:
            put(path, data)
        except OSError as problem:
            raise unusable(path, problem) from problem

    def locate(self, hashes: Hashes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The shard of each hash and its row there.

        Raises:
            KeyError: One has no value here.
        """
        places = self._places.find(hashes)
        if (places < 0).any():
            raise KeyError(f"{int((places < 0).sum())} values are missing")
        return self._shard[places], self._row[places]

    def read(self, shard: int) -> Values:
        """(S, …) the values of a shard, in memory of their own."""
        with opened(self._files[shard]) as stream:
            values: Values = stream.get_tensor("values")
        return values

    def get(self, hashes: Hashes) -> Values:
        """(N, …) the values of some hashes; one shard at a time is in memory beside them."""
        shards, rows = self.locate(hashes)
        result: Values | None = None
        for shard in np.unique(shards).tolist():
            values = self.read(shard)
            places = np.flatnonzero(shards == shard)
            if result is None:
                result = np.empty((len(hashes), *values.shape[1:]), dtype=values.dtype)
            result[places] = values[rows[places]]
        return np.empty(0, dtype=np.float32) if result is None else result

    def notes(self, hashes: Hashes, name: str) -> dict[str, str]:
        """By the file of each shard that some hashes lie in, what was noted with it under a name."""
        found = {}
        for shard in np.unique(self.locate(hashes)[0]).tolist():
            with opened(self._files[shard]) as stream:
                found[str(self._files[shard])] = (stream.metadata() or {}).get(name, "")
        return found

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._files)


def total(notes: Mapping[str, str]) -> int:
    """The sum of what was noted as numbers; see `Vault.notes`."""
    return sum(int(note or 0) for note in notes.values())


def fill(
    vault: Vault, hashes: Hashes, shard: int, compute: Compute, label: str, unit: str,
    sizes: Sequence[int] | None = None,
) -> int:  # fmt: skip
    """Compute what a vault lacks, shared out over the processes; all of them call this.

    A shard is the same whoever computes it, so the values do not depend on how many processes there are.

    Args:
        vault: Where values go.
        hashes: (N,) of what is wanted.
        shard: Values in a shard.
        compute: Given places in `hashes`.
        label: What the progress display says.
        unit: What it counts.
        sizes: How many of those each of the hashes stands for; None for one.

    Returns:
        How many values were missing, over all processes.

    Raises:
        RunError: The disk is full, or other machines' shards cannot be seen.
    """
    # What the first finds missing: another run may have written a shard before the others looked.
    missing = distributed.by_first(lambda: vault.missing(hashes))
    kept[label] = unit, len(hashes) - len(missing)
    units = [missing[start : start + shard] for start in range(0, len(missing), shard)]
    own = units[distributed.rank() :: distributed.world()]
    total = sum(map(len, own)) if sizes is None else sum(sizes[int(place)] for places in own for place in places)
    if own:
        with console.progress(label, total, unit) as advance:
            for places in own:
                values, note = compute(places, advance)
                vault.add(hashes[places], values, note)
                kept[label] = unit, kept[label][1] + len(places)
    distributed.wait()
    wait_for(vault, hashes)
    return len(missing)


def wait_for(vault: Vault, hashes: Hashes) -> None:
    """Wait until all values are seen, which other machines may have written.

    Raises:
        RunError: They are not seen.
    """
    until = time.monotonic() + (SECONDS_TO_SHOW if distributed.world() > 1 else 0)
    vault.refresh()
    while len(vault.missing(hashes)):
        if time.monotonic() > until:
            raise RunError(
                "what other processes wrote is not seen here", where=str(vault.folder),
                hint="give a --work-folder that all machines share",
            )  # fmt: skip
        time.sleep(1)
        vault.refresh()


def delete(vaults: Sequence[Vault]) -> None:
    """Delete vaults with all that they keep; the first process does it for all."""
    if distributed.rank() == 0:
        for vault in vaults:
            shutil.rmtree(vault.folder, ignore_errors=True)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A shard's file.

    Raises:
        RunError: It is damaged.
    """
    try:
        with safe_open(path, framework="np") as stream:
            yield stream
    except (SafetensorError, OSError) as problem:
        hint = "delete it: what was in it is computed again"
        raise RunError(f"is damaged: {problem}", where=str(path), hint=hint) from problem


def unusable(path: Path, problem: OSError) -> RunError:
    """The error for a place in the work folder that cannot be written."""
    return RunError(
        f"cannot be written: {problem.strerror or problem}", where=str(path),
        hint="--work-folder names another place for what is kept",
    )  # fmt: skip


def unit_size(count: int, most: int, multiple: int, processes: int) -> int:
    """How many of `count` things to compute as one piece: a multiple of `multiple`, about `most` at most, and so that
    each process has four pieces where there is enough.
    """
    even = -(-count // (4 * processes))
    return -(-min(max(even, 1), most) // multiple) * multiple
