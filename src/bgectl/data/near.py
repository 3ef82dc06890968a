"""Near copies among many texts, found without comparing each with each.

Two sets of which four fifths are shared cannot both lack the other's rarest fifth: with all 5-grams in one order, rare
ones first, near copies share one of the first n - ceil(0.8 n) + 1 of theirs (prefix filter; Bayardo et al., WWW 2007).
So only texts that share such a 5-gram are compared, and they exactly. Nothing is missed, and boilerplate costs little,
for its 5-grams are frequent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bgectl.data.copies import NEAR, near_copies, same_text, shingles

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

LENGTH = 5
COUNTERS = 1 << 22
"""How often a 5-gram occurs is counted in as many cells; texts that share one are found whatever the order is."""
BASE, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD)
CELLS = 1 << 20
CACHED = 2000
"""Texts whose 5-grams are kept as sets."""


def near_edges(texts: Sequence[str], advance: Callable[[int], None] | None = None) -> Iterator[tuple[int, int]]:
    """Pairs of texts that are near copies; they connect all that are near copies, directly or by way of others.

    Memory: 30 bytes for a fifth of the characters of all texts, twice while sorting.

    Args:
        texts: Texts.
        advance: Is told of the texts that were compared.
    """
    sizes, tokens, owners, positions = _prefixes(texts)
    order = np.argsort(tokens, kind="stable")
    tokens, owners, positions = tokens[order], owners[order], positions[order]
    starts = np.flatnonzero(np.concatenate(([True], tokens[1:] != tokens[:-1])))
    counts = np.diff(np.append(starts, len(tokens)))
    start_of = np.repeat(starts, counts)
    # A 5-gram of one text leads nowhere.
    shared = np.flatnonzero(np.repeat(counts > 1, counts))
    by_owner = shared[np.argsort(owners[shared], kind="stable")]
    ends = np.searchsorted(owners[by_owner], np.arange(len(texts) + 1))
    # 5-grams of a text that come after the shared one in the order, which bounds what else can be shared.
    after = sizes[owners] - positions
    parent = np.arange(len(texts))
    uniform: dict[int, bool] = {}
    compare = _comparison(texts)
    for number in range(len(texts)):
        tried: set[int] = set()
        for place in by_owner[ends[number] : ends[number + 1]].tolist():
            start = int(start_of[place])
            if start == place:
                uniform[start] = True
                continue
            # Where all texts that share the 5-gram are connected already, one stands for them.
            root = _root(parent, number)
            if uniform[start] and _root(parent, int(owners[start])) == root:
                continue
            before = owners[start:place]
            wanted = NEAR / (1 + NEAR) * (sizes[before] + sizes[number]) - 1e-9
            fitting = np.minimum(after[start:place], after[place]) >= wanted
            left = before[fitting & (_roots(parent, before) != root)]
            while len(left):
                other, left = int(left[0]), left[1:]
                if other in tried:
                    continue
                tried.add(other)
                if compare(number, other):
                    parent[_root(parent, number)] = root = _root(parent, other)
                    yield other, number
                    left = left[_roots(parent, left) != root]
            roots = _roots(parent, owners[start : place + 1])
            uniform[start] = bool((roots == roots[0]).all())
        if advance:
            advance(1)


def _comparison(texts: Sequence[str]) -> Callable[[int, int], bool]:
    """Whether two texts are near copies. Cells that hashes fall into tell of most pairs that they are not."""
    sets = lru_cache(CACHED)(lambda number: shingles(texts[number]))
    cells = lru_cache(8 * CACHED)(lambda number: (_hashes(texts[number]) & np.uint64(CELLS - 1)).astype(np.int64))
    table = np.zeros(CELLS, dtype=np.bool_)
    marked = -1

    def compare(number: int, other: int) -> bool:
        nonlocal marked
        if marked != number:
            if marked >= 0:
                table[cells(marked)] = False
            table[cells(number)] = True
            marked = number
        found = cells(other)
        # At least as many as there are shared.
        shared = int(np.count_nonzero(table[found]))
        size = len(cells(number)) + len(found)
        return shared >= NEAR / (1 + NEAR) * size - 1e-9 and near_copies(sets(other), sets(number))

    return compare


def _root(parent: Numbers, number: int) -> int:
    while (above := int(parent[number])) != number:
        parent[number] = parent[above]
        number = above
    return number


def _roots(parent: Numbers, numbers: Numbers) -> Numbers:
    roots = parent[numbers]
    while True:
        above = parent[roots]
        if (above == roots).all():
            return roots
        roots = above


def _prefixes(texts: Sequence[str]) -> tuple[Numbers, npt.NDArray[np.uint32], Numbers, Numbers]:
    """Sizes of the texts' sets of 5-grams; (P,) the rarest of each, whose they are, and their places there."""
    counts = np.zeros(COUNTERS, dtype=np.uint32)
    mask = np.uint64(COUNTERS - 1)
    for text in texts:
        counts[_hashes(text) & mask] += 1
    sizes: Numbers = np.zeros(len(texts), dtype=np.int64)
    parts = []
    for number, text in enumerate(texts):
        hashes = _hashes(text)
        sizes[number] = size = len(hashes)
        first = size - math.ceil(NEAR * size - 1e-9) + 1
        rarest = np.lexsort((hashes, counts[hashes & mask]))[:first]
        parts.append((hashes[rarest] >> np.uint64(32)).astype(np.uint32))
    tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)
    lengths = np.array(list(map(len, parts)), dtype=np.int64)
    owners = np.repeat(np.arange(len(texts)), lengths)
    positions = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return sizes, tokens, owners, positions


def _hashes(text: str) -> Hashes:
    """Of a text's 5-grams, each once; see `shingles`."""
    codes = np.frombuffer(same_text(text).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    if len(codes) < LENGTH:
        codes = np.pad(codes, (0, LENGTH - len(codes)))
    count = len(codes) - LENGTH + 1
    hashes = codes[:count].copy()
    for offset in range(1, LENGTH):
        hashes = hashes * BASE + codes[offset : offset + count]
    hashes ^= hashes >> np.uint64(33)
    hashes *= MIX
    hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)
