"""What could stand for an option's value at the press of the completion key: models, data files, devices, splits.

Only names of files and folders are looked at, so that the answer comes at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from glob import escape, glob

from bgectl.models.hub_cache import hub_cache
from bgectl.options.describe import Described
from bgectl.options.run import SHORT
from bgectl.presets import names

MODELS = {
    "model_name_or_path", "embedder_name_or_path", "reranker_name_or_path", "cross_encoder", "tokenizer",
    "tokenizer_name", "base", "adapters", "from_peft", "model",
}  # fmt: skip
"""Options that take a model: a name on the hub, or a folder."""
DATA = {"paths", "train_data", "input_file", "candidate_pool", "exclude_qrels", "eval_data", "examples_for_task"}
"""Options that take files of rows or texts."""
SPLITS = {"split", "eval_split"}
PRESETS = {"preset", "name"}
STAGES = {"stages", "only", "from_stage"}
SUFFIXES = (".jsonl", ".json", ".gz", ".zst")
MODEL_FILES = ("config.json", "adapter_config.json", "bgectl-run.json")
"""One of them lies in the folder of a model, of an adapter, and of a training."""


def values(option: Described, given: Mapping[str, Sequence[str]], incomplete: str) -> list[str]:
    """The values that begin with what was typed; none where the shell completes files, or the value is free text.

    Args:
        option: The option.
        given: The words of the command line that are values, by the names of their options.
        incomplete: What was typed of the value.
    """
    if option.shape.choices:
        found = list(option.shape.choices)
    elif option.name in MODELS:
        return [*(name for name in hub_models(given) if name.startswith(incomplete)), *model_folders(incomplete)]
    elif option.name in DATA:
        return data_files(incomplete)
    elif option.name in PRESETS:
        found = list(names())
    elif option.name in STAGES:
        found = list(SHORT)
    elif option.name == "devices":
        found = devices()
    elif option.name in SPLITS:
        found = splits(given)
    else:
        return []
    return [value for value in found if value.startswith(incomplete)]


def hub_models(given: Mapping[str, Sequence[str]], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The names of the models in the hub's cache."""
    cache = next(iter(given.get("cache_dir", [])), "") or str(hub_cache(environment))
    folders = glob(os.path.join(escape(os.path.expanduser(cache)), "models--*"))
    return sorted(os.path.basename(folder).removeprefix("models--").replace("--", "/") for folder in folders)


def model_folders(incomplete: str) -> list[str]:
    """Folders with a model in them, and where there are any, the other folders, which lead on."""
    folders = [path for path in listed(incomplete) if path.endswith("/")]
    models = [path for path in folders if any(os.path.exists(os.path.expanduser(path) + name) for name in MODEL_FILES)]
    others = [path for path in folders if path not in models]
    return [*(path.rstrip("/") for path in models), *others] if models else []


def data_files(incomplete: str) -> list[str]:
    """Files of rows, and where there are any, folders."""
    paths = listed(incomplete)
    files = [path for path in paths if path.endswith(SUFFIXES)]
    return [*files, *(path for path in paths if path.endswith("/"))] if files else []


def listed(incomplete: str) -> list[str]:
    """The paths that begin with what was typed, folders with a slash; hidden ones where a dot was typed."""
    head, _, tail = incomplete.rpartition("/")
    folder = os.path.expanduser(f"{head}/") if "/" in incomplete else "."
    start = f"{head}/" if "/" in incomplete else ""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    return [
        start + entry.name + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(tail) and (tail or not entry.name.startswith("."))
    ]


def devices() -> list[str]:
    """`auto`, `cpu` and the GPUs that the system lists."""
    numbers = sorted(int(found[1]) for path in glob("/dev/nvidia*") if (found := re.fullmatch(r"\D+(\d+)", path)))
    gpus = ["cuda", *(f"cuda:{number}" for number in numbers)] if numbers else []
    return ["auto", "cpu", *gpus, *(["mps"] if sys.platform == "darwin" else [])]


def splits(given: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of the files in `qrels/` of the data that is named."""
    folder = next(iter(given.get("eval_data", [])), "")
    found = glob(os.path.join(escape(os.path.expanduser(folder)), "qrels", "*.tsv*")) if folder else []
    return sorted({os.path.basename(path).split(".tsv")[0] for path in found})


def placed(
    words: Sequence[str], flags: Mapping[str, Described], belongs: Callable[[str, Described], bool]
) -> tuple[dict[str, list[str]], int, Described | None]:
    """Read a command line that is being typed.

    Args:
        words: The complete words after the command.
        flags: Every spelling of every flag.
        belongs: Whether a word can be one of the values of a list.

    Returns:
        The values by option; how many words are positional; and the option whose value must, or can, come next.
    """
    given: dict[str, list[str]] = {}
    positional = 0
    waits: Described | None = None
    for word in words:
        head, equals, value = word.partition("=")
        option = flags.get(head.replace("_", "-")) if head.startswith("-") else None
        if option is not None:
            given.setdefault(option.name, [])
            if equals:
                given[option.name].append(value)
            waits = None if equals or option.shape.kind is bool else option
        elif waits is not None and (not given[waits.name] or belongs(word, waits)):
            given[waits.name].append(word)
            waits = waits if waits.shape.many else None
        else:
            positional += 1
            waits = None
    return given, positional, waits
