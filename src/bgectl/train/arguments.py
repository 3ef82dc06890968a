"""Our options in the form that transformers' Trainer takes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from bgectl import console
from bgectl.errors import UsageError
from bgectl.launch import place
from bgectl.options.resolve import did_you_mean
from bgectl.options.train import TrainOptions

SAME_NAME = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "lr_scheduler_type", "weight_decay", "max_grad_norm", "optim", "seed", "bf16", "fp16", "dataloader_num_workers",
    "logging_steps", "run_name",
)  # fmt: skip
"""Options that mean what the argument of their name means."""

OWN_WORK = {
    "eval_strategy": "--eval-data measures, every --eval-steps",
    "load_best_model_at_end": "--eval-data keeps the best weights",
    "metric_for_best_model": "--eval-data keeps the best weights",
    "save_strategy": "--save-steps says when; 0 is never",
    "remove_unused_columns": "rows are not columns here",
    "dataloader_pin_memory": "token ids are too few to matter",
    "auto_find_batch_size": "in-batch negatives change with the batch; see --sub-batch-tokens",
    "use_cpu": "--device cpu",
    "fsdp_config": "--fsdp cuts each layer and all the rest",
    "push_to_hub": "the trained folder can be uploaded as it is",
}
"""Arguments that would change what bgectl does itself, and what to use in their place."""


def check_machine(options: TrainOptions) -> None:
    """Refuse what the machine cannot do.

    Raises:
        UsageError: A GPU where there is none, float16 on a CPU, or sharding in one process.
    """
    if options.wanted_device == "cuda" and not torch.cuda.is_available():
        flag = "--gpus" if options.gpus is not None else "--device cuda"
        raise UsageError("this machine has no GPU", where=flag, hint="`--device cpu` trains on a CPU")
    if options.fp16 and not torch.cuda.is_available():
        raise UsageError("float16 does not train on a CPU", where="--fp16", hint="use --bf16, or neither, there")
    if options.fsdp and not options.dry_run and place().world == 1:
        raise UsageError("one process has nothing to share its weights with", where="--fsdp", hint="give --gpus N")


def training_arguments(options: TrainOptions) -> TrainingArguments:
    """The arguments; evaluation, progress and checkpoints' names are our own.

    Raises:
        UsageError: A value that transformers does not know, or an argument under `trainer` that does not exist or is
            an option of bgectl.
    """
    warmup: float = options.warmup_steps if options.warmup_steps is not None else (
        0.1 if options.warmup_ratio is None else options.warmup_ratio
    )  # fmt: skip
    check_trainer_names(options)
    on_cpu = options.on_cpu or not torch.cuda.is_available()
    values: dict[str, Any] = {
        "output_dir": str(options.output_dir),
        # Below 1 it is a share of the steps.
        "warmup_steps": warmup,
        "save_strategy": "steps" if options.save_steps else "no",
        "save_steps": options.save_steps or 500,
        # Older checkpoints go when the new one is whole, see `checkpoints.finish`.
        "save_total_limit": None,
        "report_to": options.report_to or "none",
        # Short runs have a curve too.
        "logging_first_step": True,
        # A loss that is not finite stops the run, so there is none to leave out.
        "logging_nan_inf_filter": False,
        # transformers refuses bfloat16 without a GPU unless it hears that a CPU is meant.
        "use_cpu": on_cpu,
        "eval_strategy": "no",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        # Processes encode different numbers of pieces, and buffers such as position ids never change.
        "ddp_broadcast_buffers": False,
        "ddp_backend": "gloo" if on_cpu and place().world > 1 else None,
        "deepspeed": deepspeed_config(options.deepspeed) if options.deepspeed is not None else None,
        **{name: getattr(options, name) for name in SAME_NAME},
        **options.trainer,
    }
    try:
        arguments = TrainingArguments(**values)
        if arguments.n_gpu > 1:
            # transformers would deal one process's batch out to all GPUs it sees, in-batch negatives and all.
            console.warn(f"one of {arguments.n_gpu} GPUs is used; --gpus {arguments.n_gpu} uses all")
            arguments._n_gpu = 1
    except (ValueError, ImportError, TypeError) as problem:
        raise UsageError(str(problem).strip().split("\n")[0]) from problem
    return arguments


def check_trainer_names(options: TrainOptions) -> None:
    """Look at the names under `trainer`.

    Raises:
        UsageError: A name does not exist, or belongs to an option of ours.
    """
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    problems = []
    for name in options.trainer:
        if name in OWN_WORK:
            problems.append(f"`{name}` cannot be set here: {OWN_WORK[name]}")
        elif name in type(options).model_fields:
            problems.append(f"`{name}` is an option of its own: --{name.replace('_', '-')}")
        elif name not in known:
            problems.append(f"transformers has no training argument `{name}`; {did_you_mean(name, sorted(known))}")
    if problems:
        raise UsageError("\n       ".join(problems), where="--trainer")


LOSS_SCALING = ("loss_scale", "loss_scale_window", "initial_scale_power", "hysteresis", "min_loss_scale")
"""Keys of DeepSpeed that its newer releases take for float16 only."""


def deepspeed_config(given: str) -> dict[str, Any]:
    """The DeepSpeed configuration of a stage that bgectl brings, or of a file.

    Raises:
        UsageError: DeepSpeed is not installed, or the file is missing or is not JSON.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UsageError(
            "DeepSpeed is not installed", where="--deepspeed", hint="pip install 'bgectl[deepspeed]'"
        )  # fmt: skip
    try:
        if given.isdigit():
            text = resources.files("bgectl.train.deepspeed").joinpath(f"stage{given}.json").read_text("utf-8")
        else:
            text = Path(given).read_text(encoding="utf-8")
        config: dict[str, Any] = json.loads(text)
    except OSError as problem:
        raise UsageError(f"cannot be read: {problem.strerror}", where=f"--deepspeed {given}") from problem
    except ValueError as problem:
        raise UsageError(f"is not JSON: {problem}", where=f"--deepspeed {given}") from problem
    if not isinstance(config, dict):
        raise UsageError("holds no mapping", where=f"--deepspeed {given}")
    translate(config)
    return config


def translate(config: dict[str, Any]) -> None:
    """Put a configuration written for an older DeepSpeed into today's form, and say what was changed."""
    changed = []
    bfloat16 = config.get("bf16") or {}
    for key in LOSS_SCALING:
        if key in bfloat16:
            del bfloat16[key]
            changed.append(f"bf16.{key} left out")
    if config.get("zero_optimization", {}).get("stage") == 3 and config.get("train_batch_size") == "auto":
        # transformers fills it in with one process's share, and the check of the batch sizes fails.
        del config["train_batch_size"]
        changed.append("train_batch_size left out")
    if changed:
        console.info(f"DeepSpeed configuration: {', '.join(changed)}")
