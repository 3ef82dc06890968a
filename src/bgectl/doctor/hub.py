"""Whether the hub answers, and what of it lies on this disk. Tokens and passwords are never shown."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bgectl import __version__
from bgectl.doctor.finding import Finding
from bgectl.models.hub_cache import hub_cache, hub_home

ENDPOINT = "https://huggingface.co"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = {"1", "ON", "YES", "TRUE"}


def hub(*, offline: bool, timeout: float) -> Iterator[Finding]:
    """Reachability, token and cache.

    Args:
        offline: Do not ask.
        timeout: Seconds that the hub has to answer.
    """
    yield reached(offline=offline, timeout=timeout)
    yield token()
    yield cache()


def reached(*, offline: bool, timeout: float) -> Finding:
    """Whether the hub answers a HEAD."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT
    proxies = {kind: without_secrets(url) for kind, url in urllib.request.getproxies().items() if kind != "no"}
    facts: dict[str, object] = {"endpoint": without_secrets(endpoint), "proxies": proxies, "reached": None}
    by = next((name for name in OFFLINE if os.environ.get(name, "").upper() in TRUE), None)
    facts["offline"] = by or ("--offline" if offline else None)
    if facts["offline"]:
        told = f"not asked, by {facts['offline']}; models are taken from folders and the cache"
        return Finding("hub", "absent", told, f"unset {by}" if by else None, facts)
    shown = facts["endpoint"]
    proxy = proxies.get(endpoint.partition(":")[0])
    over = f" by the proxy {proxy}" if proxy else ""
    try:
        request = urllib.request.Request(
            _without_user(endpoint), method="HEAD", headers={"User-Agent": f"bgectl/{__version__}"}
        )
        with urllib.request.urlopen(request, timeout=timeout):
            pass
    except urllib.error.HTTPError as problem:
        facts["http"] = problem.code
        if problem.code in (404, 405):
            return Finding("hub", "ok", f"{shown} answers{over}", None, facts | {"reached": True})
        facts["reached"] = problem.code < 500 and problem.code != 407
        return Finding("hub", "warning", f"{shown}{over}: HTTP {problem.code}", _mend(endpoint), facts)
    except (OSError, ValueError) as problem:
        facts["reached"] = False
        return Finding("hub", "warning", f"{shown} is not reached{over}: {_reason(problem)}", _mend(endpoint), facts)
    except Exception as problem:  # http.client has errors of its own, whose texts may hold the address
        facts["reached"] = False
        told = f"{shown} is not reached{over}: {type(problem).__name__}"
        return Finding("hub", "warning", told, _mend(endpoint), facts)
    return Finding("hub", "ok", f"{shown} answers{over}", None, facts | {"reached": True})


def _mend(endpoint: str) -> str:
    more = "" if endpoint != ENDPOINT else ", or export HF_ENDPOINT=a mirror"
    return f"give models as folders and export HF_HUB_OFFLINE=1{more}"


def _reason(problem: BaseException) -> str:
    """What happened, in words that hold no address: those may hold a password."""
    inner = getattr(problem, "reason", problem)
    if isinstance(inner, TimeoutError | socket.timeout):
        return "no answer in time"
    if isinstance(inner, socket.gaierror):
        return "the name cannot be resolved"
    if isinstance(inner, ssl.SSLError):
        return f"TLS: {inner.reason or 'failed'}"
    return getattr(inner, "strerror", None) or type(inner).__name__


def _without_user(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return scheme + mark + rest.rpartition("@")[2]


def without_secrets(url: str) -> str:
    """An address without user, password and query.

    >>> without_secrets("http://me:secret@proxy:3128/?key=1")
    'http://***@proxy:3128/'
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = "", url
    rest = rest.partition("?")[0].partition("#")[0] if "@" not in rest.partition("?")[2] else rest
    if "@" in rest:
        rest = "***@" + rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
    return f"{scheme}{mark}{rest}"


def token() -> Finding:
    """Whether there is a token; never what it is."""
    home = hub_home()
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    name = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name, "").strip()), None)
    source = name or ("file" if file.is_file() else None)
    told = {None: "none; public models need none", "file": f"in {file}"}.get(source, f"{source} is set")
    mend = None if source else "export HF_TOKEN=… for gated models and `bgectl push`"
    return Finding("hub-token", "ok" if source else "absent", told, mend, {"source": source})


def cache() -> Finding:
    """The folder of downloaded models: size, free space, and how many there are."""
    folder = hub_cache().absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    models, size = [], 0
    if folder.is_dir():
        for model in sorted(folder.glob("models--*")):
            models.append(model.name.removeprefix("models--").replace("--", "/"))
            size += sum(blob.stat().st_size for blob in (model / "blobs").glob("*") if blob.is_file())
    writable = os.access(there, os.W_OK)
    facts = {"path": str(folder), "free": free, "size": size, "models": models, "writable": writable}
    told = f"{folder}, {len(models)} models, {size / 2**30:.1f} GiB; {free / 2**30:.1f} GiB free"
    if not writable:
        return Finding("hub-cache", "warning", f"{told}; it may not be written to",
                       "export HF_HOME=a folder that may be written to", facts)  # fmt: skip
    if free < 5 << 30:
        return Finding("hub-cache", "warning", f"{told}: little for a model",
                       "export HF_HOME=a folder on a larger disk", facts)  # fmt: skip
    return Finding("hub-cache", "ok", told, None, facts)
