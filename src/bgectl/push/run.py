"""`bgectl push`: look through a model folder, and put it on the hub with its card."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bgectl import __version__, console
from bgectl.errors import BgectlError, DataError, RunError, UsageError
from bgectl.options.push import PushOptions
from bgectl.push.files import HEADS, Contents, contents, machine_paths, secrets

CARD = "README.md"
WANTED = {
    "library_name": "which library opens it", "pipeline_tag": "what it is for", "tags": "how it is found",
}  # fmt: skip
"""Metadata that a card should have beside the licence."""
TOKENS = "https://huggingface.co/settings/tokens"


def run(options: PushOptions) -> None:
    """Check, say what would be uploaded, and with `--yes` do it.

    Raises:
        UsageError: The folder is none.
        DataError: A file holds a secret, or the card cannot be read.
        RunError: It is no model, or the hub refuses.
    """
    folder = options.folder
    if not folder.is_dir():
        raise UsageError("no such folder", where=str(folder))
    token = options.token or os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or None
    found = contents(folder)
    metadata, body = read_card(folder, found)
    show(folder, found)
    refuse_secrets(folder, found, token)
    warn_of(folder, found, metadata, options.license)
    check_model(folder, found)
    visibility = "private" if options.private else "public"
    what = f"{len(found.taken)} files, {size_of(sum(found.taken.values()))}"
    to = f"{options.name}, branch {options.revision}"
    if not options.upload:
        console.info(f"would upload {what} to {to} (a new repository would be {visibility}); `--yes` does it")
        return
    card = None
    if options.license is not None and metadata.get("license") != options.license:
        card = write_card({**metadata, "license": options.license}, body)
    print(upload(options, found, token, card))
    console.info(f"uploaded {what} to {to}")


def size_of(count: int) -> str:
    """Bytes as a person reads them."""
    if count < 1000:
        return f"{count} B"
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {' kMG'[power]}B"


def show(folder: Path, found: Contents) -> None:
    """Print the files that go, and those that stay with the reason."""
    rows = [[name, size_of(size), ""] for name, size in found.taken.items()]
    rows += [[name, "", f"stays: {reason}"] for name, reason in found.left.items()]
    console.table(str(folder), ["file", "size", ""], rows, on_stdout=True)


def read_card(folder: Path, found: Contents) -> tuple[dict[str, Any], str]:
    """The metadata of the card, and what follows them.

    Raises:
        DataError: There is no card, or its metadata are no YAML.
    """
    import yaml

    path = folder / CARD
    if CARD not in found.taken:
        raise DataError("there is no model card", where=str(path),
                        hint="write one: what the model is, from which it was made, and its licence")  # fmt: skip
    try:
        text = path.read_text(encoding="utf-8-sig")
        match = re.match(r"---[ \t]*\r?\n(.*?\r?\n)---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
        metadata = yaml.safe_load(match[1]) if match else {}
    except (OSError, ValueError, yaml.YAMLError) as problem:
        reason = str(problem).split("\n")[0]
        raise DataError(f"the metadata at its head are no YAML: {reason}", where=str(path)) from problem
    if not isinstance(metadata, dict):
        raise DataError("the metadata at its head are no mapping", where=str(path))
    return metadata, text[match.end() :] if match else text


def write_card(metadata: Mapping[str, Any], body: str) -> bytes:
    """A card with these metadata."""
    import yaml

    head = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n{body}".encode()


def refuse_secrets(folder: Path, found: Contents, token: str | None) -> None:
    """Stop before a secret is published.

    Raises:
        DataError: A file holds what looks like one; all such lines are named.
    """
    hits = secrets(folder, list(found.taken), token)
    if hits:
        shown = "\n       ".join(f"{hit.where}: {hit.what}" for hit in hits[:20])
        more = f"\n       and {len(hits) - 20} more" if len(hits) > 20 else ""
        raise DataError(
            f"looks like a secret, so nothing is uploaded:\n       {shown}{more}", where=str(folder),
            hint="take it out, and if it was ever public, make it invalid",
        )  # fmt: skip


def warn_of(folder: Path, found: Contents, metadata: Mapping[str, Any], license: str | None) -> None:
    """Say what the card lacks, and which folders of this machine would be published."""
    if not metadata.get("license") and license is None:
        console.warn(f"{CARD} names no license, so nobody may use the model; give --license, or write it there")
    for key, use in WANTED.items():
        if not metadata.get(key):
            console.warn(f"{CARD} has no {key} ({use})")
    for hit in machine_paths(folder, list(found.taken))[:10]:
        console.warn(f"{hit.where} names a folder of this machine: {hit.what}")
    for name, reason in found.left.items():
        if reason.startswith("refused"):
            console.warn(f"{name} is not uploaded; {reason.removeprefix('refused: ')}")


def check_model(folder: Path, found: Contents) -> None:
    """See that what goes opens as a model: configuration, tokenizer, and weights with a whole head.

    Raises:
        RunError: It does not.
    """
    names = set(found.taken)
    for head in HEADS:
        if head in found.left:
            raise RunError(f"{head} is no file of tensors", where=str(folder), hint="train the model again")
    adapter = "adapter_config.json" in names
    weights = [name for name in names if name.endswith(".safetensors")]
    graphs = [name for name in names if name.endswith(".onnx")]
    if not adapter and "config.json" not in names:
        raise RunError("is no model folder: there is no config.json", where=str(folder))
    if not weights and not graphs:
        raise RunError("there are no weights that may be uploaded (safetensors or ONNX)", where=str(folder))
    for name in weights:
        check_weights(folder / name)
    check_shards(folder, names)
    if not adapter:
        # Both offline: all that is asked lies in the folder.
        from bgectl.models.encoder import load_config, load_tokenizer, quiet_libraries
        from bgectl.models.facts import embedder_facts
        from bgectl.models.hub import Hub

        quiet_libraries()
        load_config(str(folder), Hub())
        load_tokenizer(str(folder), Hub(), decoder=True)
        embedder_facts(str(folder), Hub())


def check_weights(path: Path) -> None:
    """See that a file of weights has a whole head and the size that it tells.

    Raises:
        RunError: It does not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as stream:
            stream.keys()
    except (SafetensorError, OSError) as problem:
        raise RunError(f"the weights are damaged: {problem}", where=str(path)) from problem


def check_shards(folder: Path, names: set[str]) -> None:
    """See that the files of weights that an index names go along.

    Raises:
        RunError: One does not.
    """
    import json

    for name in sorted(names):
        if name.endswith(".safetensors.index.json"):
            try:
                wanted = set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError) as problem:
                raise RunError("cannot be read as an index of weights", where=str(folder / name)) from problem
            missing = sorted(file for file in wanted if str(Path(name).with_name(file)) not in names)
            if missing:
                raise RunError(f"weights are missing: {', '.join(missing)}", where=str(folder / name))


def upload(options: PushOptions, found: Contents, token: str | None, card: bytes | None) -> str:
    """Make the repository and the branch, and commit all files at once.

    Returns:
        The address of the commit.

    Raises:
        RunError: The hub refuses, or is not reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(token=token, library_name="bgectl", library_version=__version__)
    with worded(options.name, token):
        name = options.name if "/" in options.name else f"{api.whoami()['name']}/{options.name}"
        try:
            there = api.repo_info(name, repo_type="model")
        except RepositoryNotFoundError:
            there = None
        if there is not None and options.private and not there.private:
            raise RunError("exists and is public", where=name, hint="make it private on the hub first")
        if there is None:
            api.create_repo(name, private=options.private, repo_type="model", exist_ok=True)
        if options.revision != "main":
            api.create_branch(name, branch=options.revision, repo_type="model", exist_ok=True)
        operations = [
            CommitOperationAdd(file, card if card is not None and file == CARD else str(options.folder / file))
            for file in found.taken
        ]
        message = options.message or f"{options.folder.absolute().name}, by bgectl {__version__}"
        made = api.create_commit(
            name, operations, commit_message=message, revision=options.revision, repo_type="model"
        )  # fmt: skip
    return str(made.commit_url)


HINTS = {
    401: ("the hub does not accept the token", f"export HF_TOKEN=a token that may write, from {TOKENS}"),
    403: (
        "the token may not write there",
        f"it takes a token that may write to this account or organisation: {TOKENS}",
    ),
    404: ("there is no such repository or branch, or the token may not see it", "check the name and the token"),
    409: ("the repository is being changed by somebody else", "try again"),
    413: ("the hub takes no files of this size", "merge-lora --max-shard-size cuts the weights"),
    429: ("the hub has been asked too often", "wait a while"),
}
"""HTTP code → what it means, and what to do."""


@contextmanager
def worded(name: str, token: str | None) -> Iterator[None]:
    """Tell what goes wrong with the hub in our words, without the token.

    Raises:
        RunError: Something did.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except BgectlError:
        raise
    except OfflineModeIsEnabled as problem:
        raise RunError("the hub may not be asked", where=name, hint="unset HF_HUB_OFFLINE") from problem
    except LocalTokenNotFoundError as problem:
        told, hint = HINTS[401]
        raise RunError("there is no token", where=name, hint=hint) from problem
    except HFValidationError as problem:
        raise RunError(_first(problem, token), where=name) from problem
    except HfHubHTTPError as problem:
        code = getattr(problem.response, "status_code", None)
        if token is None and code in (401, 403):
            raise RunError("there is no token, or it may not write there", where=name, hint=HINTS[401][1]) from problem
        told, hint = HINTS.get(code or 0, (f"the hub answers {code}: {_first(problem, token)}", "try again later"))
        raise RunError(told, where=name, hint=hint) from problem
    except Exception as problem:
        # Errors of the network have no class of their own over the releases of the library.
        library = type(problem).__module__.partition(".")[0]
        if isinstance(problem, OSError) or library.startswith(("http", "requests")):
            hint = "check the network and HF_ENDPOINT; what was uploaded is not uploaded again"
            raise RunError(f"the hub is not reached: {type(problem).__name__}", where=name, hint=hint) from problem
        raise


def _first(problem: BaseException, token: str | None) -> str:
    text = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__).strip()
    return (text.replace(token, "***") if token else text)[:300]
