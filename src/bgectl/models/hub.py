"""Where a model's files are: a folder, or a name on the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bgectl import console
from bgectl.errors import DataError, RunError

ADAPTER_CONFIG = "adapter_config.json"
"""Lies in the folder of an adapter, whose weights are of use with those of its base model only."""
ENOUGH = ("config.json", ADAPTER_CONFIG)
"""Where one of them is in the hub's cache, the rest was downloaded too, or soon is."""


@dataclass(frozen=True)
class Hub:
    """How to reach a model; the fields are those of `from_pretrained`."""

    revision: str | None = None
    cache_dir: Path | None = None
    token: str | None = None
    trust_remote_code: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`."""
        cache = str(self.cache_dir) if self.cache_dir else None
        given = {"revision": self.revision, "cache_dir": cache, "token": self.token}
        return {"trust_remote_code": self.trust_remote_code} | {k: v for k, v in given.items() if v is not None}


def model_file(name: str, file: str, hub: Hub) -> Path | None:
    """The local path of one of a model's files, downloaded if need be; None where the model has no such file.

    Raises:
        RunError: The model cannot be found or reached.
    """
    folder = Path(name)
    if folder.is_dir():
        path = folder / file
        return path if path.is_file() else None
    check_model_name(name)
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    kept_in = str(hub.cache_dir) if hub.cache_dir else None
    try:
        tell_download(name, hub)
        return Path(hf_hub_download(name, file, revision=hub.revision, cache_dir=kept_in, token=hub.token))
    except LocalEntryNotFoundError as problem:
        # Without a network, a file that the model lacks and one that was not downloaded look alike.
        if not isinstance(try_to_load_from_cache(name, "config.json", cache_dir=kept_in, revision=hub.revision), str):
            raise unreachable(name, problem) from problem
        if file == "modules.json":
            console.warn(f"{name}: no modules.json in the local copy, and no network to see whether there is one")
        return None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as problem:
        raise unreachable(name, problem) from problem


@cache
def tell_download(name: str, hub: Hub) -> None:
    """Say, once, that a model is not here yet: what follows may take minutes."""
    from huggingface_hub import constants, try_to_load_from_cache

    folder = str(hub.cache_dir) if hub.cache_dir else None
    known = (try_to_load_from_cache(name, file, cache_dir=folder, revision=hub.revision) for file in ENOUGH)
    if not constants.HF_HUB_OFFLINE and not any(isinstance(path, str) for path in known):
        console.info(f"{name}: downloading from the hub")


def base_of(name: str, hub: Hub) -> str | None:
    """The base model of an adapter; None where the name is that of a whole model.

    Raises:
        RunError: The adapter does not say what it belongs to.
    """
    path = model_file(name, ADAPTER_CONFIG, hub)
    if path is None:
        return None
    base = read_json(path).get("base_model_name_or_path")
    if not base:
        raise RunError("the adapter does not name its base model", where=name, hint="merge-lora takes --base")
    return str(base)


def whole_model(name: str, hub: Hub) -> tuple[str, Hub]:
    """Where the whole model is: of an adapter its base, to which the adapter's revision does not apply."""
    base = base_of(name, hub)
    return (name, hub) if base is None else (base, replace(hub, revision=None))


def check_model_name(name: str) -> None:
    """Catch what can only be a mistyped folder, before the hub is asked for it.

    Raises:
        RunError: The name looks like a path and is no folder.
    """
    path = Path(name)
    if path.is_dir():
        return
    if path.is_file():
        raise RunError("is a file; the folder of the model is wanted", where=name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise RunError(
            "no such model folder", where=name, hint="give a folder with a config.json, or a name on the hub"
        )


def unreachable(name: str, problem: Exception) -> RunError:
    """The error for a model that the hub does not give."""
    first = str(problem).strip().split("\n")[0][:300] or type(problem).__name__
    return RunError(
        f"the model cannot be loaded: {first}",
        where=name,
        hint="a folder that holds config.json works without a network; for the hub check the name, the network and "
        "HF_TOKEN",
    )


def read_json(path: Path) -> Any:
    """A JSON file of a model.

    Raises:
        DataError: It is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise DataError(f"is not valid JSON: {problem}", where=str(path)) from problem
