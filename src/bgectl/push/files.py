"""Which files of a model folder go to the hub, which stay, and what must not be in any of them."""

from __future__ import annotations

import fnmatch
import os
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bgectl.errors import RunError

STAYS: tuple[tuple[str, str], ...] = (
    (".*", "hidden"),
    ("*.part", "not written to its end"),
    ("*.tmp", "temporary"),
    ("*.lock", "temporary"),
    ("__pycache__", "compiled Python"),
    ("*.pyc", "compiled Python"),
    ("checkpoint-*", "checkpoint"),
    ("global_step*", "checkpoint"),
    ("bgectl-run.json", "of the training run"),
    ("bgectl-manifest.json", "names files of this machine"),
    ("bgectl-checkpoint.json", "of the training run"),
    ("optimizer.*", "state of the optimiser"),
    ("scheduler.pt", "state of the optimiser"),
    ("scaler.pt", "state of the optimiser"),
    ("rng_state*", "state of the optimiser"),
    ("zero_to_fp32.py", "state of the optimiser"),
    ("trainer_state.json", "of the training run"),
    ("training_args.bin", "of the training run"),
    ("log.jsonl", "log"),
    ("*.log", "log"),
    ("runs", "log"),
    ("wandb", "log"),
    ("merged_model", "a model of its own; push that folder by itself"),
    ("events.out.tfevents.*", "log"),
)
"""Names of files and folders that stay, with the reason."""

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
HEADS = ("sparse_linear.pt", "colbert_linear.pt")
"""What FlagEmbedding reads the heads of M3 from; taken if nothing but tensors is in them."""
TENSORS = re.compile(r"(torch\._utils _rebuild_tensor_v2|torch \w+Storage|collections OrderedDict)")

SCANNED = 20 << 20
"""Bytes of a text file that are searched for secrets at most."""
TEXT = (
    ".json",
    ".jsonl",
    ".yaml",
    ".yml",
    ".md",
    ".txt",
    ".py",
    ".toml",
    ".cfg",
    ".ini",
    ".sh",
    ".csv",
    ".tsv",
    ".jinja",
)

SECRETS: tuple[tuple[str, str], ...] = (
    ("a token of the hub", r"\bhf_[A-Za-z0-9]{20,}"),
    ("a key of OpenAI or Anthropic", r"\bsk-[A-Za-z0-9_-]{20,}"),
    ("a token of GitHub", r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    ("a key of AWS", r"\bAKIA[0-9A-Z]{16}\b"),
    ("a token of Slack", r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    ("a password in an address", r"://[^\s/:@\"']+:[^\s/@\"']+@"),
    (
        "a value that a name calls secret",
        r"(?i)(?:^|[\s{,\"'])(?:hf_?|hub_?|access_?|auth_?)?(?:token|api_?key|password|secret)[\"']?\s*[:=]\s*"
        r"(?![\"']?(?:null|none|~|false|true|\[|\{|<|\$)?[\"']?\s*(?:[,}#]|$))[\"']?[^\s\"',}]{8,}",
    ),
)  # fmt: skip
"""What a line with a secret looks like."""

MACHINE = re.compile(r"(?:^|[\s\"'`=:(|])((?:/(?:home|Users|root|mnt|data)/|[A-Z]:\\\\?Users\\)[^\s\"'`|,)]*)")
"""Folders of somebody's machine."""


@dataclass
class Contents:
    """A folder, sorted."""

    taken: dict[str, int] = field(default_factory=dict)
    """Path in the folder → bytes."""
    left: dict[str, str] = field(default_factory=dict)
    """Path → why it stays."""


def contents(folder: Path) -> Contents:
    """What goes and what stays.

    Raises:
        RunError: The folder cannot be read.
    """
    found = Contents()
    try:
        for path, name in _walk(folder, found):
            reason = stays(path, name, folder)
            if reason is None:
                found.taken[name] = path.stat().st_size
            else:
                found.left[name] = reason
    except OSError as problem:
        raise RunError(f"cannot be read: {problem.strerror or problem}", where=str(folder)) from problem
    return found


def _walk(folder: Path, found: Contents) -> Iterator[tuple[Path, str]]:
    """The files, but for those of folders that stay as a whole, which are noted."""
    for place, folders, files in os.walk(folder):
        for name in sorted(folders):
            path = Path(place, name)
            reason = by_name(name) or ("link out of the folder" if _leads_out(path, folder) else None)
            if reason is not None:
                folders.remove(name)
                found.left[f"{path.relative_to(folder)}/"] = reason
        folders.sort()
        for name in sorted(files):
            yield Path(place, name), str(Path(place, name).relative_to(folder))


def by_name(name: str) -> str | None:
    """Why something of this name stays."""
    return next((reason for pattern, reason in STAYS if fnmatch.fnmatch(name, pattern)), None)


def stays(path: Path, name: str, folder: Path) -> str | None:
    """Why a file stays; None for one that goes."""
    reason = by_name(path.name)
    if reason is not None:
        return reason
    if _leads_out(path, folder):
        return "link out of the folder"
    if not path.is_file():
        return "no file"
    if path.suffix in PICKLES:
        if name not in HEADS:
            return "refused: a pickle, which can run code when it is opened; save it as safetensors"
        foreign = imports(path)
        if foreign:
            return f"refused: a pickle that imports {foreign}"
    return None


def _leads_out(path: Path, folder: Path) -> bool:
    """Whether a link, or a link above it, leads to what somebody did not mean to publish."""
    return not path.resolve().is_relative_to(folder.resolve())


def imports(path: Path) -> str | None:
    """What a file of torch's imports besides tensors when it is opened; None for nothing. It is not opened for that."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        texts: list[str] = []
        for code, argument, _ in pickletools.genops(data):
            if code.name == "GLOBAL" and not TENSORS.fullmatch(str(argument)):
                return str(argument)
            if code.name in ("STACK_GLOBAL", "INST") and not TENSORS.fullmatch(" ".join(texts[-2:])):
                return str(argument or " ".join(texts[-2:]))
            if isinstance(argument, str) and "UNICODE" in code.name:
                texts.append(argument)
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError):
        return "what cannot be told"
    return None


@dataclass(frozen=True)
class Told:
    """Something in a line of a file."""

    where: str
    what: str


def secrets(folder: Path, names: Iterator[str] | list[str], own: str | None) -> list[Told]:
    """The lines that hold what looks like a secret; the secret itself is not told.

    Args:
        folder: The folder.
        names: Files in it.
        own: The token that is used now, searched for as it stands.
    """
    found = []
    for name in names:
        for number, line in lines(folder / name):
            kind = "the token that is used now" if own and own in line else None
            # A vocabulary holds words like these, and nobody's secrets.
            patterns = SECRETS if not name.endswith(("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")) else ()
            kind = kind or next((kind for kind, pattern in patterns if re.search(pattern, line)), None)
            if kind is not None:
                found.append(Told(f"{name}:{number}", kind))
    return found


def machine_paths(folder: Path, names: list[str]) -> list[Told]:
    """The lines that name a folder of somebody's machine."""
    found = []
    for name in names:
        if name.endswith((".md", ".yaml", ".yml", "config.json")):
            for number, line in lines(folder / name):
                match = MACHINE.search(line)
                if match:
                    found.append(Told(f"{name}:{number}", match[1]))
    return found


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text file; of another, none.

    Raises:
        RunError: It cannot be read.
    """
    if path.suffix not in TEXT:
        return
    try:
        with path.open("rb") as stream:
            text = stream.read(SCANNED).decode("utf-8", errors="replace")
    except OSError as problem:
        raise RunError(f"cannot be read: {problem.strerror or problem}", where=str(path)) from problem
    yield from enumerate(text.splitlines(), 1)
