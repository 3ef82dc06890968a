"""One check's result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "warning", "error", "absent"]


@dataclass(frozen=True)
class Finding:
    """What a check found. Its `check` and the keys of `facts` do not change between releases."""

    check: str
    status: Status
    found: str
    """One line for a person."""
    mend: str | None = None
    """The one line that mends it, or says what it would give; None where nothing has to be done."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for a program."""

    def as_json(self) -> dict[str, Any]:
        """An entry of `checks` in the JSON output."""
        return {"check": self.check, "status": self.status, "found": self.found, "mend": self.mend,
                "facts": dict(self.facts)}  # fmt: skip
