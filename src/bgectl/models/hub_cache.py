"""Where huggingface_hub keeps what it downloaded, by its environment variables: importing it takes too long."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def hub_home(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of its settings and caches."""
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("HF_HOME") or f"{base}/huggingface").expanduser()


def hub_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of the models."""
    given = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    return Path(given).expanduser() if given else hub_home(environment) / "hub"
