"""Options of `bgectl init` and `bgectl schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from bgectl.options.base import Flag, Options


class InitOptions(Options):
    """Options of `bgectl init`."""

    panel: ClassVar[str] = "File"

    path: Annotated[Path, Flag(positional=True, metavar="FILE")] = Path("bgectl.yaml")
    """The file to write, or a folder to write `bgectl.yaml` into."""
    model: Annotated[str, Flag("-m")] = "BAAI/bge-small-en-v1.5"
    """Name on the hub or folder of the model that the file names."""
    force: bool = False
    """Replace the file if it is there."""


class SchemaOptions(Options):
    """Options of `bgectl schema`."""

    panel: ClassVar[str] = "Command"

    command: Annotated[list[str], Flag(positional=True, metavar="COMMAND")] = Field(default_factory=list)
    """The command's words, such as `train base`."""
