"""When two texts count as the same, or nearly."""

from __future__ import annotations

NEAR = 0.8
"""Share of character 5-grams that two texts have in common from which on they are near copies (Jaccard)."""


def same_text(text: str) -> str:
    """A key that copies of a text share when they differ only in case or white space."""
    return " ".join(text.casefold().split())


def shingles(text: str) -> frozenset[str]:
    """The character 5-grams of a text, without regard to case and white space."""
    plain = same_text(text)
    return frozenset(plain[start : start + 5] for start in range(max(1, len(plain) - 4)))


def near_copies(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two texts, as shingles, are nearly the same."""
    small, large = sorted((len(one), len(other)))
    if small < NEAR * large:
        return False
    shared = len(one & other)
    return shared >= NEAR * (small + large - shared)
