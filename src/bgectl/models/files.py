"""A name for the contents of a model's files, so that what was computed with it is not taken for another's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from bgectl.errors import BgectlError, RunError
from bgectl.manifest import IN_FOLDER, add_file
from bgectl.models.hub import Hub, base_of, model_file, whole_model

LEFT_OUT = (IN_FOLDER, "README.md", ".gitattributes", "log.jsonl")
COMMIT = 40


def model_facts(names: Iterable[str], hub: Hub) -> list[dict[str, str | None]]:
    """What a manifest says of models: where each came from, and a name for its contents (see `files_digest`); None
    where the files are there no more: that must not cost what was made with them.
    """
    told = []
    for name in names:
        files = None
        with suppress(BgectlError):
            files = files_digest(name, hub)
        told.append({"path": name, "revision": None if Path(name).is_dir() else hub.revision, "files": files})
    return told


def files_digest(name: str, hub: Hub) -> str:
    """The same for the same files, wherever they lie: from the hub's commit, else from the contents.

    Of an adapter it counts its base model in. What training writes beside a model (checkpoints) counts not.

    Raises:
        RunError: A file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    if base_of(name, hub) is not None:
        digest.update(files_digest(*whole_model(name, hub)).encode())
    folder = Path(name)
    if not folder.is_dir():
        config = model_file(name, "config.json", hub) or model_file(name, "adapter_config.json", hub)
        commit = config.parent.name if config is not None else ""
        if len(commit) == COMMIT:
            digest.update(commit.encode())
            return digest.hexdigest()
        if config is None:
            return digest.hexdigest()
        folder = config.parent
    try:
        for path in sorted(path for pattern in ("*", "1_Pooling/*") for path in folder.glob(pattern)):
            if not path.is_file() or path.name in LEFT_OUT or path.name.startswith("."):
                continue
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            add_file(digest, path)
    except OSError as problem:
        raise RunError(f"cannot be read: {problem.strerror or problem}", where=str(folder)) from problem
    return digest.hexdigest()
