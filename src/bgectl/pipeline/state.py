"""What a pipeline has done: the options, inputs and outputs of each stage, by their contents."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bgectl import __version__
from bgectl.errors import RunError, UsageError
from bgectl.jsonl import replace_file
from bgectl.manifest import IN_FOLDER, file_digest
from bgectl.models.hub_cache import hub_cache
from bgectl.pipeline.plan import Stage

FILE = "state.json"
LOCK = ".lock"
ASIDE_IN_FOLDERS = frozenset({IN_FOLDER, "log.jsonl", "README.md", "curves.png", "options.yaml", "bgectl-run.json"})
"""Files of a trained model that tell of the run and are no part of the model."""


class Digests:
    """Digests of files and folders. A file is read again only when its size, its time or its number changed.

    Args:
        known: Path → size, nanoseconds, inode, digest; what an earlier run left.
    """

    def __init__(self, known: dict[str, list[Any]]) -> None:
        self.known = known

    def of(self, path: Path) -> str | None:
        """The digest of a file, or of all files of a folder; None where there is nothing."""
        if path.is_file():
            return self._of_file(path)
        if not path.is_dir():
            return None
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(_files(path)):
            digest.update(f"{file.relative_to(path)}\n{self._of_file(file)}\n".encode())
        return digest.hexdigest()

    def _of_file(self, path: Path) -> str:
        seen = path.stat()
        stamp = [seen.st_size, seen.st_mtime_ns, seen.st_ino]
        key = str(path.absolute())
        if self.known.get(key, [])[:3] != stamp:
            self.known[key] = [*stamp, file_digest(path)]
        return str(self.known[key][3])


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder that its use depends on: no checkpoints, nothing hidden, no logs."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "checkpoint-"))]
        for name in files:
            if not name.startswith(".") and name not in ASIDE_IN_FOLDERS:
                yield Path(root, name)


@dataclass
class State:
    """What is known of earlier runs.

    Attributes:
        folder: That of the pipeline.
        stages: Command → what it was done with.
        digests: Of files.
        report: What the report was made of.
    """

    folder: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    digests: Digests = field(default_factory=lambda: Digests({}))
    report: str = ""

    def save(self) -> None:
        """Write it beside and rename it into place."""
        there = {path: seen for path, seen in self.digests.known.items() if os.path.exists(path)}
        content = {"bgectl": __version__, "stages": self.stages, "report": self.report, "files": there}
        with replace_file(self.folder / FILE) as stream:
            stream.write((json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n").encode())

    def inputs(self, stage: Stage) -> dict[str, str | None]:
        """The digests of what a stage reads, and the commits of what it takes from the hub."""
        found = {str(path): self.digests.of(path) for path in stage.read()}
        return found | {name: commit_of(name, stage) for name in stage.hub_models()}

    def outputs(self, stage: Stage) -> dict[str, str | None]:
        """The digests of what a stage wrote."""
        return {str(path): self.digests.of(path) for path in stage.written()}

    def why(self, stage: Stage) -> str | None:
        """Why a stage has to run; None where nothing has changed since it did."""
        entry = self.stages.get(stage.command)
        if entry is None:
            return "was not run yet"
        if entry["status"] != "done":
            return "was not finished"
        now = stage.deciding()
        # An option that did not exist then was at its default.
        before = {**{name: value for name, value in stage.defaults().items() if name in now}, **entry["options"]}
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            return f"{', '.join(changed)} changed"
        written = [str(path) for path in stage.written()]
        if written != list(entry["outputs"]):
            return "its output has another name"
        inputs = self.inputs(stage)
        changed = [name for name in {**entry["inputs"], **inputs} if entry["inputs"].get(name) != inputs.get(name)]
        if changed:
            return f"{', '.join(changed)} changed"
        gone = [path for path in written if not Path(path).exists()]
        return f"{', '.join(gone)} is gone" if gone else None

    def refuse_others(self, stage: Stage) -> None:
        """What somebody else made, or changed by hand, is neither written over nor taken for what the stage made.

        Raises:
            UsageError: Names it.
        """
        entry = self.stages.get(stage.command)
        if stage.output is None:
            return
        if entry is None:
            if _there(stage.output):
                raise UsageError(
                    f"is there, and `{stage.name}` of this pipeline did not make it", where=str(stage.output),
                    hint="--from with the next stage goes on with it as it is; delete it to have it made, or name "
                    "another place",
                )  # fmt: skip
            return
        if entry["status"] != "done":
            return
        before, now = entry["outputs"].get(str(stage.output)), self.digests.of(stage.output)
        if now is not None and before is not None and (now != before or entry.get("edited")):
            raise UsageError(
                f"was changed after `{stage.name}` had written it", where=str(stage.output),
                hint="--from with the next stage goes on with it as it is; delete it to have it made again",
            )  # fmt: skip

    def adopt(self, stage: Stage) -> None:
        """Take what lies at a stage's output for what it made, though somebody else did, or changed it."""
        output = stage.output
        if output is None or not _there(output):
            return
        if stage.command not in self.stages:
            self.stages[stage.command] = self._entry(stage, "done")
        entry = self.stages[stage.command]
        now = self.digests.of(output)
        if now != entry["outputs"].get(str(output)):
            entry["outputs"][str(output)] = now
            entry["edited"] = True

    def _entry(self, stage: Stage, status: str) -> dict[str, Any]:
        """What is noted of a stage that has its options and inputs as they are now."""
        outputs = {str(path): None for path in stage.written()}
        found = {"options": stage.deciding(), "inputs": self.inputs(stage), "outputs": outputs}
        return {"status": status, **found, "bgectl": __version__}

    def start(self, stage: Stage) -> bool:
        """Note that a stage begins; True where it was begun before with the same options and inputs, and not ended."""
        before, now = self.stages.get(stage.command), self._entry(stage, "started")
        self.stages[stage.command] = now
        self.save()
        if before is None or before["status"] == "done" or before["inputs"].keys() != now["inputs"].keys():
            return False
        # What was on the hub alone had no commit here before it was downloaded.
        known = {name: digest for name, digest in before["inputs"].items() if digest is not None}
        same = all(now["inputs"][name] == digest for name, digest in known.items())
        return same and (before["options"], before["outputs"]) == (now["options"], now["outputs"])

    def done(self, stage: Stage, seconds: float) -> None:
        """Note that a stage came to its end."""
        entry = self.stages[stage.command]
        # The hub is asked while a stage runs: before, a model's commit may not have been known.
        entry["inputs"] |= {name: commit_of(name, stage) for name in stage.hub_models()}
        entry |= {"status": "done", "outputs": self.outputs(stage), "seconds": round(seconds, 1)}
        self.save()


def _there(output: Path) -> bool:
    """Whether something is there: a file, or a folder with something in it that is not hidden."""
    if output.is_dir():
        return any(not path.name.startswith(".") for path in output.iterdir())
    return output.exists()


def commit_of(name: str, stage: Stage) -> str | None:
    """The commit of a model in the local cache of the hub; None where it is not there."""
    cache = getattr(stage.options, "cache_dir", None) or hub_cache()
    folder = cache / f"models--{name.replace('/', '--')}"
    revision = getattr(stage.options, "revision", None) or "main"
    reference = folder / "refs" / revision
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    return revision if (folder / "snapshots" / revision).is_dir() else None


@contextmanager
def opened(folder: Path) -> Iterator[State]:
    """The state of a pipeline, held for this process.

    Raises:
        UsageError: Another process runs the pipeline.
        RunError: The folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("a+b")
    except OSError as problem:
        raise RunError(f"cannot be used: {problem.strerror}", where=f"--output-dir {folder}") from problem
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                "another `bgectl run` is at work here", where=f"--output-dir {folder}",
                hint="wait for it to end, or give another --output-dir",
            ) from None  # fmt: skip
        yield read_state(folder)


def read_state(folder: Path) -> State:
    """What an earlier run noted; nothing where there is nothing that can be read."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return State(folder, content["stages"], Digests(content["files"]), content["report"])
    except (OSError, ValueError, KeyError, TypeError):
        return State(folder)
