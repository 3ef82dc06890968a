"""Options of `bgectl init` and `bgectl schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from bgectl.options.base import Flag, Options
from bgectl.options.common import Presets, known_presets


class InitOptions(Options):
    """Options of `bgectl init`."""

    panel: ClassVar[str] = "File"

    path: Annotated[Path, Flag(positional=True, metavar="FILE")] = Path("bgectl.yaml")
    """The file to write, or a folder to write `bgectl.yaml` into."""
    model: Annotated[str | None, Flag("-m")] = None
    """Name on the hub or folder of the model that the file names. Default: the preset's, else
    BAAI/bge-small-en-v1.5."""
    preset: Presets = Field(default_factory=list)
    """Write the values of these presets; of several, the later win over the earlier."""
    force: bool = False
    """Replace the file if it is there."""

    _known = field_validator("preset")(known_presets)


class PresetsOptions(Options):
    """Options of `bgectl presets`."""

    panel: ClassVar[str] = "Preset"

    name: Annotated[str | None, Flag(positional=True, metavar="NAME")] = None
    """Print this one. Default: list all."""
    format: Annotated[Literal["table", "yaml", "json"] | None, Flag()] = None
    """How. Default: a table of all; the YAML of one."""


class TranslateOptions(Options):
    """Options of `bgectl translate`."""

    panel: ClassVar[str] = "Command line"

    words: Annotated[list[str], Flag("--command", positional=True, metavar="WORD...")] = Field(min_length=1)
    """The command line as one word in quotes, or its words after `--`; or a shell script: its name, or
    `-` for stdin."""
    format: Literal["shell", "json"] = "shell"
    """What to print on stdout: command lines to paste, or for each a line of JSON with `command` and `notes`."""


class SchemaOptions(Options):
    """Options of `bgectl schema`."""

    panel: ClassVar[str] = "Command"

    command: Annotated[list[str], Flag(positional=True, metavar="COMMAND")] = Field(default_factory=list)
    """The command's words, such as `train base`."""
