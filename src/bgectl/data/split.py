"""`data split`: rows held out without leaks, or sorted into files by length.

Rows are read twice. Memory: 16 bytes for each query and positive, and with --near the texts of those and what
`near_edges` needs.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson

from bgectl import console, jsonl
from bgectl.data.check import row_flaws
from bgectl.data.copies import same_text
from bgectl.data.datasets import NO_IN_BATCH_NEG, own_negatives_only
from bgectl.data.fix import readable_twice
from bgectl.data.formats import beir
from bgectl.data.formats.source import Problems, Raw, counted
from bgectl.data.formats.target import Target, check_folder
from bgectl.data.near import near_edges
from bgectl.data.tokens import BATCH, length_counter
from bgectl.errors import DataError, UsageError
from bgectl.manifest import described, write_manifest
from bgectl.options.split import SplitOptions, length_range

SIDES = ("train", "held-out")
EVAL = "eval"
STDIN = "rows.jsonl"
"""Name of what comes from stdin."""
TOLERANCE = 0.1
"""How far, relatively, the rows held out may be from those asked for, where groups allow no nearer."""

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


def run(options: SplitOptions) -> None:
    """Split files of rows.

    Raises:
        UsageError: A path does not exist, or there are files already where output would go.
        DataError: Rows are defective, or what is asked for cannot be without leaks.
    """
    files = list(dict.fromkeys(jsonl.expand_paths(options.paths)))
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise UsageError("is a file, not a folder", where=f"--output-dir {options.output_dir}")
    inputs = described({f"paths[{number}]": path for number, path in enumerate(files)})
    with readable_twice(files) as places:
        reading = Reading(places, Problems(options.max_problems, options.skip_bad))
        facts = sort_by_length(options, files, reading) if options.by_length else hold_out(options, files, reading)
    write_manifest(options.output_dir / "split", "data split", inputs, facts)


@dataclass
class Reading:
    """How the inputs are read.

    Args:
        places: Where each is read from.
        problems: Take the defects of the first reading.
    """

    places: Mapping[Path, Path]
    problems: Problems

    def rows(self, path: Path, *, again: bool = False) -> Iterator[tuple[bytes, Raw]]:
        """(line, row) of a file, without defective rows."""
        problems = Problems(0) if again else self.problems
        for line in jsonl.read_lines(self.places[path]):
            where = f"{path}:{line.number}"
            try:
                raw = orjson.loads(line.data)
            except orjson.JSONDecodeError as problem:
                problems.add(f"{where}:{problem.colno}", f"not valid JSON: {problem.msg}")
                continue
            if not isinstance(raw, dict):
                problems.add(where, f"expected a JSON object, found {jsonl.json_type(raw)}")
                continue
            flaw = next((flaw for flaw in row_flaws(raw) if flaw.severity == "error"), None)
            if flaw is None:
                yield line.data, raw
            else:
                problems.add(f"{where}: `{flaw.field}`" if flaw.field else where, flaw.message, flaw.hint)


@dataclass
class Outputs:
    """Files that are written together; a file without lines is not made."""

    stack: ExitStack
    streams: dict[Path, IO[bytes]] = field(default_factory=dict)

    def add(self, path: Path, line: bytes) -> None:
        """Write a line."""
        stream = self.streams.get(path)
        if stream is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = self.streams[path] = self.stack.enter_context(jsonl.replace_file(path))
        stream.write(line + b"\n")

    def forget(self, planned: Sequence[Path]) -> None:
        """Delete what an earlier run wrote in places where this one has nothing to write."""
        for path in planned:
            if path not in self.streams:
                path.unlink(missing_ok=True)


def refuse(planned: Sequence[Path], inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Check where files will go.

    Raises:
        UsageError: One is an input, or is there already.
    """
    for path in planned:
        if any(path.resolve() == file.resolve() for file in inputs):
            raise UsageError("is one of the inputs", where=str(path), hint="give another --output-dir")
        if path.exists() and not overwrite:
            raise UsageError("exists already", where=str(path), hint="--overwrite replaces it, or name another folder")


def names_of(files: Sequence[Path]) -> dict[Path, str]:
    """A name for the output of each file: its own; with its directory's where two are the same.

    Raises:
        UsageError: Two are the same even then.
    """
    names = {}
    plain = Counter(path.name for path in files)
    for path in files:
        name = STDIN if str(path) == "-" else path.name
        if plain[path.name] > 1:
            name = f"{path.resolve().parent.name}-{name}"
        stem = jsonl.dataset_stem(path)
        if str(path) != "-" and own_negatives_only(path) and not stem.endswith(NO_IN_BATCH_NEG):
            # The directory said so, and the output is in another.
            name = name.replace(stem, f"{stem}-{NO_IN_BATCH_NEG}", 1)
        names[path] = name
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise UsageError(f"two inputs would both be written to {twice[0]}", hint="split them one by one")
    return names


# Holding out.


def hold_out(options: SplitOptions, files: Sequence[Path], reading: Reading) -> dict[str, Any]:
    """Write train/ and held-out/; returns the facts for the manifest.

    Raises:
        DataError: No whole groups of rows make the share that is asked for.
    """
    out, names = options.output_dir, names_of(files)
    planned = [out / side / name for side in SIDES for name in names.values()]
    refuse(planned, files, overwrite=options.overwrite)
    target = Target(out / EVAL, "beir")
    if options.beir and target.path.exists():
        check_folder(target.path, overwrite=options.overwrite)
    keys = read_keys(files, reading, texts=options.near)
    reading.problems.settle()
    if len(keys) < 2:
        raise DataError(f"{counted(len(keys), 'row')} cannot be split", where=", ".join(map(str, files)))
    groups = groups_of(keys)
    sizes = np.bincount(groups)
    wanted = round(options.held_out * len(keys)) if options.held_out < 1 else int(options.held_out)
    chosen = choose(sizes, max(1, wanted), options.seed)
    _check_share(sizes, chosen, max(1, wanted), len(keys), near=options.near)
    held = chosen[groups]
    known = set(keys.hashes[held[keys.rows]].tolist())
    leaks = Leaks(known, drop=options.drop_leaked_negatives)
    written: Counter[Path] = Counter()
    with ExitStack() as stack:
        outputs = Outputs(stack)
        for path, side, line, raw in _sides(files, reading, held):
            place = out / SIDES[side] / names[path]
            outputs.add(place, line if side else leaks.mended(line, raw))
            written[place] += 1
        if options.beir:
            rows = (raw for _, side, _, raw in _sides(files, reading, held) if side)
            beir.write_folder(rows, target, "test", _passages(files, reading) if options.corpus == "all" else ())
    outputs.forget(planned)
    _tell(options, sizes, held, leaks, [(path, written[path]) for path in planned if written[path]], target)
    return {
        "held_out": options.held_out, "seed": options.seed, "near": options.near, "rows": len(keys),
        "held_out_rows": int(held.sum()), "groups": len(sizes), "largest_group": int(sizes.max()),
        "skipped": reading.problems.records, "leaked_negatives": leaks.texts, "dropped": leaks.drop,
        "files": {str(path.relative_to(out)): count for path, count in written.items()},
    }  # fmt: skip


@dataclass
class Keys:
    """The queries and positives of all rows.

    Attributes:
        rows: (K,) the row of each.
        hashes: (K,) its hash, the same for texts that differ in case and white space only.
        texts: Hash → text, where they are wanted.
        count: Rows.
    """

    rows: Numbers
    hashes: npt.NDArray[np.uint64]
    texts: dict[int, str]
    count: int

    def __len__(self) -> int:
        return self.count


def read_keys(files: Sequence[Path], reading: Reading, *, texts: bool) -> Keys:
    """Read what connects rows."""
    rows, hashes = array("q"), array("Q")
    known: dict[int, str] = {}
    count = 0
    for path in files:
        for _, raw in reading.rows(path):
            for text in (raw["query"], *raw["pos"]):
                key = key_of(text)
                rows.append(count)
                hashes.append(key)
                if texts:
                    known.setdefault(key, text)
            count += 1
    return Keys(np.array(rows, dtype=np.int64), np.array(hashes, dtype=np.uint64), known, count)


def key_of(text: str) -> int:
    """A hash of 64 bits, the same for texts that differ in case and white space only. Two texts with the same by chance
    would put their rows on one side, no more."""
    plain = same_text(text).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "little")


def groups_of(keys: Keys) -> Numbers:
    """(R,) the group of each row: rows that share a text, directly or by way of others, are one group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    hashes, places = np.unique(keys.hashes, return_inverse=True)
    nodes = len(keys) + len(hashes)
    one, other = [keys.rows], [places.reshape(-1) + len(keys)]
    if keys.texts:
        with console.progress("Comparing texts", len(keys.texts), "texts") as advance:
            edges = list(near_edges(list(keys.texts.values()), advance))
        order = np.searchsorted(hashes, np.fromiter(keys.texts, dtype=np.uint64, count=len(keys.texts)))
        pairs = order[np.array(edges, dtype=np.int64).reshape(-1, 2)] + len(keys)
        one.append(pairs[:, 0])
        other.append(pairs[:, 1])
    rows, columns = np.concatenate(one), np.concatenate(other)
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(nodes, nodes))
    _, labels = connected_components(graph, directed=False)
    _, groups = np.unique(labels[: len(keys)], return_inverse=True)
    result: Numbers = groups.reshape(-1).astype(np.int64)
    return result


def choose(sizes: Numbers, wanted: int, seed: int) -> Flags:
    """Which groups to hold out, at random, so that their rows come as near to `wanted` as can be found.

    Args:
        sizes: (C,) rows of each group.
        wanted: Rows.
        seed: Of the order in which groups are tried.

    Returns:
        (C,) whether a group is held out; at least one is not.
    """
    order = np.random.default_rng(seed).permutation(len(sizes))
    total = int(sizes.sum())
    # If what a random order leaves open can be filled by no group, the large ones are tried first.
    largest_first = order[np.argsort(-sizes[order], kind="stable")]
    ways = [_fill(sizes, way, wanted) for way in (order, largest_first)]
    best = min(ways, key=lambda chosen: wanted - int(sizes[chosen].sum()))
    short = wanted - int(sizes[best].sum())
    left = np.flatnonzero(~best)
    if short and len(left) > 1:
        smallest = left[np.argmin(sizes[left])]
        over = int(sizes[smallest]) - short
        if over < short and total - wanted - over > 0:
            best[smallest] = True
    return best


def _fill(sizes: Numbers, order: Numbers, wanted: int) -> Flags:
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    left = min(wanted, int(sizes.sum()) - 1)
    for group in order.tolist():
        size = int(sizes[group])
        if size <= left:
            chosen[group] = True
            left -= size
        if not left:
            break
    return chosen


def _check_share(sizes: Numbers, chosen: Flags, wanted: int, rows: int, *, near: bool) -> None:
    """Refuse a choice whose rows are too far from what was wanted.

    Raises:
        UsageError: That is all there are.
        DataError: Whole groups make no better one.
    """
    if wanted >= rows:
        raise UsageError(f"there are {counted(rows, 'row')}; some must be left to train on", where="--held-out")
    taken = int(sizes[chosen].sum())
    if 0 < taken < rows and abs(taken - wanted) <= max(1, TOLERANCE * wanted):
        return
    shared = "a query, a positive or a near copy of one" if near else "a query or a positive"
    raise DataError(
        f"{counted(wanted, 'row')} cannot be held out without a leak: rows that share {shared} make "
        f"{counted(len(sizes), 'group')}, the largest of {int(sizes.max()):,} of {rows:,} rows, and the nearest that "
        f"whole groups add up to is {taken:,}",
        where="--held-out",
        hint=f"--held-out {taken} takes these" if 0 < taken < rows else "no group can be spared",
    )


@dataclass
class Leaks:
    """Negatives of training rows that are a query or a positive of a held-out row.

    Args:
        known: Hashes of these.
        drop: Take them out.
    """

    known: set[int]
    drop: bool
    rows: int = 0
    texts: int = 0
    emptied: int = 0

    def mended(self, line: bytes, raw: Raw) -> bytes:
        """The row to write, as it was if there is nothing to take out."""
        negatives = raw.get("neg") or []
        kept = [place for place, text in enumerate(negatives) if key_of(text) not in self.known]
        if len(kept) == len(negatives):
            return line
        self.rows += 1
        self.texts += len(negatives) - len(kept)
        if not self.drop:
            return line
        self.emptied += not kept
        for name in ("neg_scores", "mined_neg_scores", "neg"):
            values = raw.get(name)
            if isinstance(values, list) and len(values) == len(negatives):
                raw[name] = [values[place] for place in kept]
        return jsonl.dump(raw)


def _sides(files: Sequence[Path], reading: Reading, held: Flags) -> Iterator[tuple[Path, int, bytes, Raw]]:
    """(file, 1 if held out, line, row) of every row, read again."""
    number = 0
    for path in files:
        for line, raw in reading.rows(path, again=True):
            yield path, int(held[number]), line, raw
            number += 1


def _passages(files: Sequence[Path], reading: Reading) -> Iterator[str]:
    for path in files:
        for _, raw in reading.rows(path, again=True):
            yield from raw["pos"]
            yield from raw.get("neg") or ()


def _tell(
    options: SplitOptions, sizes: Numbers, held: Flags, leaks: Leaks, written: Sequence[tuple[Path, int]],
    target: Target,
) -> None:  # fmt: skip
    console.table("Rows", ["file", "rows"], [[str(path), f"{count:,}"] for path, count in written])
    shared = "text or near copy" if options.near else "text"
    groups, largest = counted(len(sizes), "group"), counted(int(sizes.max()), "row")
    console.info(
        f"held out {int(held.sum()):,} of {len(held):,} rows; rows that share a {shared} make {groups}, the largest of "
        f"{largest}"
    )
    if leaks.texts:
        done = "taken out" if leaks.drop else "--drop-leaked-negatives takes them out"
        console.warn(
            f"{counted(leaks.texts, 'negative')} of {counted(leaks.rows, 'training row')} are a query or a positive of "
            f"a held-out row ({done})"
        )
    if leaks.emptied:
        console.warn(f"{counted(leaks.emptied, 'training row')} have no negative left; `bgectl mine` finds some")
    if options.beir:
        target.notes.tell("beir")
        console.info(f"judged data: {target.path}")


# By length.


def sort_by_length(options: SplitOptions, files: Sequence[Path], reading: Reading) -> dict[str, Any]:
    """Write a file for each range of lengths that has rows; returns the facts for the manifest."""
    ranges = sorted(options.by_length, key=length_range)
    bounds = list(map(length_range, ranges))
    stems = {path: jsonl.dataset_stem(Path(name)) for path, name in names_of(files).items()}
    places = {
        path: [_folder(options.output_dir, stem) / f"{stem}_len-{text}.jsonl" for text in ranges]
        for path, stem in stems.items()
    }
    planned = [place for of_file in places.values() for place in of_file]
    refuse(planned, files, overwrite=options.overwrite)
    if options.unit == "tokens":
        assert options.tokenizer is not None
        lengths_of = length_counter(options.tokenizer)
    else:
        lengths_of = _characters
    written: Counter[Path] = Counter()
    outside = 0
    with ExitStack() as stack:
        outputs = Outputs(stack)
        for path in files:
            for rows in _batches(reading.rows(path)):
                texts = [[raw["query"], *raw["pos"], *(raw.get("neg") or ())] for _, raw in rows]
                lengths = iter(lengths_of([text for of_row in texts for text in of_row]))
                for (line, _), of_row in zip(rows, texts, strict=True):
                    longest = max(next(lengths) for _ in of_row)
                    index = next((index for index, (low, high) in enumerate(bounds) if low <= longest < high), None)
                    if index is None:
                        outside += 1
                        continue
                    outputs.add(places[path][index], line)
                    written[places[path][index]] += 1
        reading.problems.settle()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    outputs.forget(planned)
    console.table("Rows", ["file", "rows"], [[str(path), f"{written[path]:,}"] for path in planned if written[path]])
    if outside:
        console.warn(f"{counted(outside, 'row')} left out: their longest text is in none of the ranges")
    return {
        "by_length": ranges, "unit": options.unit, "tokenizer": options.tokenizer, "outside": outside,
        "skipped": reading.problems.records,
        "files": {str(path.relative_to(options.output_dir)): written[path] for path in planned if written[path]},
    }  # fmt: skip


def _folder(out: Path, stem: str) -> Path:
    """Where a file's parts go: those of a file whose name turns in-batch negatives off into a folder of that name."""
    return out / stem if stem.endswith(NO_IN_BATCH_NEG) else out


def _batches(rows: Iterator[tuple[bytes, Raw]]) -> Iterator[list[tuple[bytes, Raw]]]:
    batch: list[tuple[bytes, Raw]] = []
    texts = 0
    for line, raw in rows:
        batch.append((line, raw))
        texts += 1 + len(raw["pos"]) + len(raw.get("neg") or ())
        if texts >= BATCH:
            yield batch
            batch, texts = [], 0
    if batch:
        yield batch


def _characters(texts: Sequence[str]) -> list[int]:
    return list(map(len, texts))
