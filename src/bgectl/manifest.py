"""A small file beside an output that says what it was made from, and with what; in a folder that is an output, a file
within it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgectl import __version__
from bgectl.jsonl import MANIFEST, replace_file

if TYPE_CHECKING:
    from bgectl.options.base import Options

IN_FOLDER = "bgectl-manifest.json"
PACKAGES = ("torch", "transformers")


def manifest_of(path: Path) -> Path:
    """Where the manifest of a file is: beside it; that of a folder is in it."""
    return path / IN_FOLDER if path.is_dir() else path.with_name(path.name + MANIFEST)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a file; None where it has none that can be read."""
    try:
        found = json.loads(manifest_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def described(inputs: Mapping[str, Path | Sequence[Path] | None]) -> dict[str, Any]:
    """The inputs of a command, by option, with digests of the files: to be asked for before an output takes the place
    of one. Options that are not given are left out.
    """
    given = {name: source for name, source in inputs.items() if source is not None}
    return {
        name: _described(source) if isinstance(source, Path) else [_described(path) for path in source]
        for name, source in given.items()
    }


def _described(path: Path) -> dict[str, Any]:
    if path.is_file():
        return {"path": str(path), "blake2b": file_digest(path)}
    if not path.is_dir():
        return {"path": str(path)}
    files = {str(file.relative_to(path)): file_digest(file) for file in sorted(path.rglob("*")) if file.is_file()}
    return {"path": str(path), "files": files}


def write_manifest(
    path: Path, command: str, inputs: Mapping[str, Any], facts: Mapping[str, Any], options: Options | None = None
) -> None:
    """Write the manifest of a file or a folder; of what is neither (a pipe, stdout) there is none.

    Args:
        path: The output.
        command: What made it.
        inputs: What it was made from; see `described`.
        facts: What else decided its contents, such as the files of the models.
        options: Those of the command; noted are those that decide what is in the output.
    """
    if str(path) == "-" or (path.exists() and not path.is_file() and not path.is_dir()):
        return
    said = {"command": f"bgectl {command}", "bgectl": __version__, **versions(), "inputs": inputs, **facts}
    if options is not None:
        from bgectl.options.common import deciding

        said["all_options"] = deciding(options)
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
