"""A small file beside an output that says what it was made from, and with what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bgectl import __version__
from bgectl.jsonl import MANIFEST as ENDING
from bgectl.jsonl import replace_file

PACKAGES = ("torch", "transformers")


def manifest_of(path: Path) -> Path:
    """Where the manifest of a file is: beside it."""
    return path.with_name(path.name + ENDING)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a file; None where it has none that can be read."""
    try:
        found = json.loads(manifest_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def described(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The inputs of a command, by option, with digests of those that are files: to be asked for before an output takes
    the place of one.
    """
    return {
        name: {"path": str(source), "blake2b": file_digest(source)} if source.is_file() else {"path": str(source)}
        for name, source in inputs.items()
    }


def write_manifest(path: Path, command: str, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the manifest of a file; of what is no file (a pipe, stdout) there is none.

    Args:
        path: The output.
        command: What made it.
        inputs: What it was made from; see `described`.
        facts: What else decided its contents.
    """
    if str(path) == "-" or (path.exists() and not path.is_file()):
        return
    said = {"command": f"bgectl {command}", "bgectl": __version__, **versions(), "inputs": inputs, **facts}
    with replace_file(manifest_of(path)) as stream:
        stream.write((json.dumps(said, indent=2, ensure_ascii=False, default=str) + "\n").encode())


def versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on."""
    return {name: version(name) for name in PACKAGES}


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    add_file(digest, path)
    return digest.hexdigest()


def add_file(digest: hashlib.blake2b, path: Path) -> None:
    """Take a file's bytes into a digest."""
    with path.open("rb") as stream:
        while data := stream.read(1 << 22):
            digest.update(data)
