"""From pairs and half-rows to rows: lines of one query together, each text once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bgectl.data.check import row_flaws
from bgectl.data.formats.source import Notes, Placed, Problems, Raw

SIDES = ("pos", "neg")
ASKED = ("query", "prompt", "type", "category")
"""Rows that differ in one of these are different rows."""


def grouped(records: Iterable[Placed]) -> Iterator[Placed]:
    """One row for all records that ask the same, where the first of them stands; their texts follow each other.

    Memory: all rows, each text of a query once.

    Args:
        records: Records whose `pos` and `neg` are lists of texts, with a score for each text or none.
    """
    rows: dict[Any, tuple[str, Raw, dict[str, set[str]]]] = {}
    for where, raw in records:
        key = tuple(raw.get(name) for name in ASKED)
        found = rows.get(key)
        if found is None:
            rows[key] = where, raw, {side: set(raw[side]) for side in SIDES}
        else:
            for side in SIDES:
                _join(found[1], raw, side, found[2][side])
    for where, raw, _ in rows.values():
        yield where, raw


def _join(first: Raw, more: Raw, side: str, known: set[str]) -> None:
    """Append the texts of a further record to a row, with their scores if both have some."""
    if not more[side]:
        return
    name = f"{side}_scores"
    own, other = first.get(name), more.get(name)
    if not first[side]:
        first.pop(name, None)
        if other is not None:
            own = first[name] = []
    if (own is None) != (other is None):
        first[PARTLY] = True
    for place, text in enumerate(more[side]):
        if text not in known:
            known.add(text)
            first[side].append(text)
            if own is not None and other is not None:
                own.append(other[place])


PARTLY = "\0partly scored"
"""Marks, within a conversion, a row some of whose lines had no score."""


def checked(records: Iterable[Placed], problems: Problems, notes: Notes, *, whole: bool = False) -> Iterator[Raw]:
    """The rows that training can use, each text once; others are among the problems.

    Args:
        records: Records.
        problems: Takes the defective ones.
        notes: Take what is left out.
        whole: A record without a positive is defective; else it is a query that nothing is known of but negatives.
    """
    for where, raw in records:
        if raw.pop(PARTLY, None):
            raw.pop("pos_scores", None)
            raw.pop("neg_scores", None)
            notes.counts["rows whose scores are left out, since some of their lines have none"] += 1
        _once(raw, notes)
        if not whole and raw.get("pos") == [] and raw.get("neg"):
            notes.counts["queries left out, since they have negatives and no positive"] += 1
            continue
        flaw = next((flaw for flaw in row_flaws(raw) if flaw.severity == "error"), None)
        if flaw is None:
            yield raw
        else:
            problems.add(f"{where}: `{flaw.field}`" if flaw.field else where, flaw.message, flaw.hint)


def _once(raw: Raw, notes: Notes) -> None:
    """Leave out texts that stand before, with their scores; what is a positive is no negative."""
    seen: set[str] = set()
    for side in SIDES:
        texts, scores = raw.get(side), raw.get(f"{side}_scores")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return
        if isinstance(scores, list) and len(scores) != len(texts):
            return
        before = set(seen)
        kept = []
        for place, text in enumerate(texts):
            if text in before:
                notes.counts["negatives left out that are a positive of their row"] += 1
            elif text in seen:
                notes.counts["texts left out that stand in their row before"] += 1
            else:
                seen.add(text)
                kept.append(place)
        if len(kept) == len(texts):
            continue
        for name in (side, f"{side}_scores", f"mined_{side}_scores"):
            values = raw.get(name)
            if isinstance(values, list) and len(values) == len(texts):
                raw[name] = [values[place] for place in kept]
