"""Installed versions and the ranges that packages ask for, by their metadata alone: nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

OURS = "bgectl"

_OPERATORS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda one, other: one >= other, "<=": lambda one, other: one <= other, "==": lambda one, other: one == other,
    "!=": lambda one, other: one != other, ">": lambda one, other: one > other, "<": lambda one, other: one < other,
    "~=": lambda one, other: one >= other and one[: _last(other)] == other[: _last(other)],
}  # fmt: skip


def _last(release: tuple[int, ...]) -> int:
    """How many numbers `~=` holds fast: all but the last one given, which trailing zeros were cut from."""
    return max(len(release) - 1, 1)


@dataclass(frozen=True)
class Requirement:
    """A package and the versions of it that will do, such as `>=5.0,<6`."""

    name: str
    range: str
    extra: str | None
    """The extra that asks for it."""

    def allows(self, found: str) -> bool:
        """Whether a version is within the range. Pre-releases count as the release they lead to."""
        parts = re.findall(r"([<>=!~]=?|===)\s*([\w.*+!-]+)", self.range)
        return all(_OPERATORS.get(sign, _OPERATORS["=="])(release(found), release(bound)) for sign, bound in parts)

    @property
    def spec(self) -> str:
        """As pip takes it."""
        return f"{self.name}{self.range}"


def release(text: str) -> tuple[int, ...]:
    """`2.13.0+cpu` → (2, 13); trailing zeros say nothing."""
    match = re.match(r"v?(?:\d+!)?(\d+(?:\.\d+)*)", text)
    numbers = [int(part) for part in match.group(1).split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def installed(name: str) -> str | None:
    """The version of a package; None where it is not there."""
    try:
        # The type lies: a damaged dist-info has no version.
        found: str | None = version(name)
    except PackageNotFoundError:
        return None
    return found


def requirements(name: str) -> list[Requirement]:
    """What a package's metadata asks for; empty for a package that is not there."""
    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return []
    found = []
    for line in lines:
        spec, _, marker = line.partition(";")
        match = re.match(r"\s*([\w.-]+)\s*(?:\[[^\]]*\])?\s*\(?([^)]*)\)?", spec)
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)", marker)
        if match and (extra or not marker.strip()):
            found.append(Requirement(canonical(match[1]), match[2].replace(" ", ""), extra and extra[1]))
    return found


def canonical(name: str) -> str:
    """`huggingface_hub` and `Huggingface-Hub` are one package."""
    return re.sub(r"[-_.]+", "-", name).lower()
