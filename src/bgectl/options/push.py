"""Options of `bgectl push`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import field_validator

from bgectl.options.base import Flag, Options


class PushOptions(Options):
    """Options of `bgectl push`."""

    panel: ClassVar[str] = "Upload"

    folder: Annotated[Path, Flag("--model", positional=True, metavar="FOLDER")]
    """Folder of a model that bgectl trained, merged or exported."""
    name: Annotated[str, Flag("--repo", positional=True, metavar="NAME")]
    """Name on the hub, such as `your-name/your-model`; without a `/` it is put into your own account."""
    # Not `yes`, which is YAML's word for true.
    upload: Annotated[bool, Flag("--yes", "-y")] = False
    """Really upload; without it, only say what would be."""
    private: bool = False
    """Make a new repository private. One that exists and is public is refused."""
    revision: str = "main"
    """Branch to commit to; it is made if it is not there."""
    message: Annotated[str | None, Flag("-m")] = None
    """Message of the commit. Default: names the folder and bgectl's version."""
    license: str | None = None
    """Licence to put into the uploaded card, by the hub's name, such as `mit` or `apache-2.0`; the folder's own card
    stays as it is."""
    token: str | None = None
    """Access token of the hub that may write; the environment variable HF_TOKEN works too and stays out of shell
    histories."""

    @field_validator("name")
    @classmethod
    def _repository(cls, name: str) -> str:
        part = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
        if not re.fullmatch(rf"(?:{part}/)?{part}", name) or "--" in name or ".." in name or len(name) > 96:
            raise ValueError("is no name of a repository, such as your-name/your-model")
        return name

    @field_validator("license")
    @classmethod
    def _licence(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
            raise ValueError("is no licence by the hub's name, such as mit or apache-2.0")
        return name
