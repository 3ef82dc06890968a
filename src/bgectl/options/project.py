"""The text of a new `bgectl.yaml`, made from the option models."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bgectl.options import MODELS
from bgectl.options.base import Options
from bgectl.options.describe import Described, describe
from bgectl.options.yaml_file import yaml_value

HEAD = """\
# Options of bgectl for this folder: a section for each command, with the names of its flags.
# A flag wins over this file. `bgectl COMMAND --print-config` shows what holds, and where it comes from.
# Lines such as `#seed: 42` are the defaults of options that are not set here; take the # away to set them.
"""
OUTPUT = "finetuned"
MODEL = "BAAI/bge-small-en-v1.5"


def project_values(model: str) -> dict[str, dict[str, Any]]:
    """What a new project sets, by command; None stands for an option's default, which is worth seeing first."""
    return {
        "data validate": {"paths": ["train.jsonl"], "train_group_size": None},
        "data stats": {"paths": ["train.jsonl"]},
        "data convert": {"input_file": "triplets.csv", "output_file": "train.jsonl"},
        "data split": {"paths": ["train.jsonl"], "output_dir": "split", "held_out": None},
        "mine": {
            "input_file": "train.jsonl", "output_file": "mined.jsonl", "embedder_name_or_path": model, "range": None,
            "negative_number": None,
        },
        "score": {
            "input_file": "mined.jsonl", "output_file": "scored.jsonl",
            "reranker_name_or_path": "BAAI/bge-reranker-v2-m3",
        },
        "relabel": {
            "input_file": "scored.jsonl", "output_file": "relabelled.jsonl", "action": None, "compare_to": None,
        },
        "train base": {
            "model_name_or_path": model, "train_data": ["scored.jsonl"], "output_dir": OUTPUT,
            "knowledge_distillation": True, "train_group_size": None, "query_max_len": None, "passage_max_len": None,
            "learning_rate": None, "num_train_epochs": None, "per_device_train_batch_size": None,
        },
        "train m3": {
            "model_name_or_path": "BAAI/bge-m3", "train_data": ["scored.jsonl"], "output_dir": f"{OUTPUT}-m3",
            "knowledge_distillation": True, "kd_loss_type": "m3_kd_loss", "use_self_distill": True,
            "same_dataset_within_batch": True,
        },
        "train llm": {
            "model_name_or_path": "BAAI/bge-multilingual-gemma2", "train_data": ["scored.jsonl"],
            "output_dir": f"{OUTPUT}-llm", "knowledge_distillation": True, "kd_loss_type": "m3_kd_loss",
            "same_dataset_within_batch": True, "query_instruction_format": "<instruct>{}\n<query>{}",
            "lora_rank": 32, "lora_alpha": 64.0, "bf16": True, "gradient_checkpointing": True,
            "save_merged_lora_model": True,
        },
        "train icl": {
            "model_name_or_path": "BAAI/bge-en-icl", "train_data": ["scored.jsonl"], "output_dir": f"{OUTPUT}-icl",
            "knowledge_distillation": True, "query_instruction_format": "<instruct>{}\n<query>{}",
            "icl_suffix_str": "\n<response>", "example_query_max_len": 256, "example_passage_max_len": 256,
            "lora_rank": 32, "lora_alpha": 64.0, "bf16": True, "gradient_checkpointing": True,
            "save_merged_lora_model": True,
        },
        "merge-lora": {"adapters": [f"{OUTPUT}-llm"], "output_dir": f"{OUTPUT}-llm-merged"},
        "export": {"model_name_or_path": OUTPUT, "output_dir": f"{OUTPUT}-onnx", "to": None},
        "push": {"folder": OUTPUT, "name": f"your-name/{OUTPUT}"},
        "eval": {"model_name_or_path": [model, OUTPUT], "eval_data": "eval"},
        "run": {"stages": ["validate", "mine", "score", "train-base", "eval"]},
    }  # fmt: skip


def preset_values(model: str | None, presets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a new project sets with presets: their values, in place of those of `project_values`.

    Ways of training that the presets say nothing of are left out, where they say something of one.

    Args:
        model: The model to start from; None for the presets' own.
        presets: Their names; the later win.
    """
    from bgectl.presets import read_preset, sections, values_for

    ours: dict[str, dict[str, Any]] = {}
    for name in presets:
        for command, section in sections(read_preset(name)).items():
            chosen = ours.setdefault(command, {})
            chosen.update((str(key), value) for key, value in values_for(section, {}).items())
    own = ours.get("mine", {}).get("embedder_name_or_path")
    values = project_values(model or own or MODEL)
    ways = [command for command in ours if command.startswith("train ")]
    gone = {command for command in values if command.startswith("train ") and ways and command not in ways}
    if ways and not {"train llm", "train icl"} & set(ways):
        gone.add("merge-lora")
    values = {command: chosen for command, chosen in values.items() if command not in gone}
    for command, chosen in ours.items():
        if model is not None:
            chosen.pop("embedder_name_or_path" if command == "mine" else "model_name_or_path", None)
        values[command].update(chosen)
        if command in ways and model is not None:
            values[command]["model_name_or_path"] = model
    if ways:
        trained = str(values[ways[-1]]["output_dir"])
        values["eval"]["model_name_or_path"] = [model or own or MODEL, trained]
        if "merge-lora" in values:
            values["merge-lora"] = {"adapters": [trained], "output_dir": f"{trained}-merged"}
    return values


def project_text(model: str | None, presets: Sequence[str] = ()) -> str:
    """The file, with `model` as the model to start from; None for the presets' own, or a small one."""
    lines = [HEAD]
    group = ""
    for command, chosen in preset_values(model, presets).items():
        head, _, tail = command.rpartition(" ")
        if head and head != group:
            lines.append(f"{head}:")
        group = head
        depth = "  " if head else ""
        section = textwrap.indent("\n".join(_section(MODELS[command](), chosen)), depth + "  ")
        lines += [f"{depth}{tail}:", section, ""]
    return "\n".join(lines)


def _section(model: type[Options], chosen: Mapping[str, Any]) -> Iterator[str]:
    described = describe(model)
    options = {option.name: option for rows in described.values() for option in rows}
    # As JSON, since YAML knows no paths; the fields in a model that sets none of them are the defaults.
    defaults = model.model_construct().model_dump(mode="json", warnings=False)
    for name, value in chosen.items():
        yield from _comment(options[name])
        yield f"{name}: {yaml_value(defaults[name] if value is None else value)}"
    for panel, rows in described.items():
        left = [option for option in rows if option.name not in chosen]
        if left:
            yield from ("", f"# -- {panel} --")
        for option in left:
            yield from _comment(option)
            yield f"#{option.name}: {yaml_value(defaults.get(option.name))}"


def _comment(option: Described) -> Iterator[str]:
    choices = f" [one of {', '.join(option.shape.choices)}]" if option.shape.choices else ""
    bounds = f" [{option.bounds}]" if option.bounds else ""
    yield from (f"# {line}" for line in textwrap.wrap(option.text + choices + bounds, 100, break_on_hyphens=False))
