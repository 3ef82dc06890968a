"""How far a stage of the work is, how fast it goes, and how long it still takes."""

from __future__ import annotations

import threading
import time
from collections import deque

WINDOW = 30.0
"""Seconds over which the rate is taken: work changes its pace, as long texts come first."""


class Meter:
    """Counts what is done. It may be told from several threads.

    Args:
        total: How many units there are; None when not known.
        done: How many were done before, which do not count for the rate.

    Attributes:
        done: So many are done.
    """

    def __init__(self, total: int | None, done: int = 0) -> None:
        self.total = total
        self.done = done
        self._started = time.monotonic()
        self._marks = deque([(self._started, done)])
        self._lock = threading.Lock()

    def add(self, amount: int = 1) -> None:
        """Count `amount` more units."""
        with self._lock:
            self.done += amount
            now = time.monotonic()
            if now - self._marks[-1][0] >= 1:
                self._marks.append((now, self.done))
                while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW:
                    self._marks.popleft()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Units a second, of late; 0 where nothing was done."""
        with self._lock:
            since, before = self._marks[0]
            return (self.done - before) / max(time.monotonic() - since, 1e-6)

    @property
    def rate_text(self) -> str:
        """The rate for people: `1,234/s`, `0.25/s`."""
        return f"{self.rate:,.0f}/s" if self.rate >= 10 else f"{self.rate:.3g}/s"

    @property
    def remaining(self) -> float | None:
        """Seconds to the end; None where that is not known."""
        if self.total is None:
            return None
        left = max(self.total - self.done, 0)
        if not left:
            return 0.0
        return left / self.rate if self.rate > 0 else None


def duration(seconds: float) -> str:
    """Seconds for people: `0.4 s`, `1:05`, `2:00:30`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"
