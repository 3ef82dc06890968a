"""Options of `bgectl doctor`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bgectl.options.base import Options


class DoctorOptions(Options):
    """Options of `bgectl doctor`."""

    panel: ClassVar[str] = "Checks"

    format: Literal["table", "json"] = "table"
    """What to print on stdout."""
    offline: bool = False
    """Do not ask whether the hub can be reached."""
    timeout: float = Field(5.0, gt=0)
    """Seconds that the hub has to answer."""
