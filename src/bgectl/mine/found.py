"""What a search found, as it lies in the work folder until the run ends: a run that was killed searches what is left.

Letters: Q queries, K ranks.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from bgectl import distributed
from bgectl.work.folder import LOCK
from bgectl.work.texts import Hashes, Numbers
from bgectl.work.vault import Values, Vault

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """(Q, K) numbers and scores of passages, best first, by query; -1 and -inf where there are no more."""

    vault: Vault
    hashes: Hashes
    """Of all queries."""
    lock: IO[bytes] | None
    """What tells other runs that it is in use."""

    def of(self, queries: Numbers) -> tuple[Numbers, Scores]:
        """Those of some queries."""
        pair = self.vault.get(self.hashes[queries])
        scores: Scores = np.ascontiguousarray(pair[:, 1]).view(np.float32)
        return pair[:, 0].astype(np.int64), scores

    def forget(self) -> None:
        """Delete what was found, unless another run uses it; the vectors stay."""
        if self.lock is not None:
            with contextlib.suppress(OSError), self.lock:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self.vault.folder, ignore_errors=True)


def in_use(vault: Vault) -> IO[bytes] | None:
    """Hold a vault for this run, by its first process."""
    if distributed.rank():
        return None
    lock = (vault.folder / LOCK).open("a+b")
    fcntl.lockf(lock, fcntl.LOCK_SH)
    return lock


def kept(numbers: Numbers, scores: Scores) -> Values:
    """(Q, 2, K): both as they lie on disk, as 32-bit integers."""
    return np.stack([numbers.astype(np.int32), scores.astype(np.float32).view(np.int32)], axis=1)
