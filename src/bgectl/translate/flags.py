"""FlagEmbedding's options in bgectl's names: renamed, left out with a reason, and kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bgectl.cli.bind import FALSE, TRUE
from bgectl.options import MODELS
from bgectl.options.describe import Described, describe
from bgectl.options.resolve import did_you_mean
from bgectl.translate.shell import plain

RENAMED = {
    "train": {
        "normlized": "normalize_embeddings", "same_task_within_batch": "same_dataset_within_batch",
        "peft_model_path": "from_peft", "resume_from_checkpoint": "resume", "no_cuda": "use_cpu",
        "per_gpu_train_batch_size": "per_device_train_batch_size",
    },
    "mine": {
        "range_for_sampling": "range", "model_name_or_path": "embedder_name_or_path",
        "batch_size": "embedder_batch_size",
        "normlized": "normalize_embeddings", "sentence_pooling_method": "pooling_method",
        "use_gpu_for_search": "use_gpu_for_searching", "query_max_length": "embedder_query_max_length",
        "passage_max_length": "embedder_passage_max_length",
    },
    "score": {"model_name_or_path": "reranker_name_or_path", "batch_size": "reranker_batch_size"},
}  # fmt: skip
"""Names of older releases, and those that are other spellings of ours."""

LEFT_OUT = {
    "enable_sub_batch": "a step is encoded in pieces in any case; --sub-batch-size N caches gradients too",
    "use_inbatch_neg": "in-batch negatives are turned off for data in a folder, or file, named …no_in_batch_neg",
    "use_fast_tokenizer": "it is taken where the model has one",
    "only_merge_lora_model": "`bgectl merge-lora` merges without training",
    "do_train": "", "do_eval": "--eval-data measures while training", "do_predict": "--eval-data measures",
    "local_rank": "", "disable_tqdm": "", "save_safetensors": "weights are saved as safetensors",
    "ddp_find_unused_parameters": "", "ddp_backend": "NCCL on GPUs, gloo on CPUs", "ddp_broadcast_buffers": "",
    "logging_dir": "logs lie in the output folder", "logging_strategy": "--logging-steps says when",
    "logging_first_step": "the first step is logged", "group_by_length": "a step's texts are sorted by length anyway",
    "remove_unused_columns": "rows are not columns here",
    "dataloader_pin_memory": "token ids are too few to matter",
    "dataloader_persistent_workers": "", "dataloader_prefetch_factor": "",
    "auto_find_batch_size": "in-batch negatives change with the batch; see --sub-batch-tokens",
    "save_strategy": "--save-steps says when; 0 is never",
    "eval_strategy": "--eval-data measures, every --eval-steps",
    "evaluation_strategy": "--eval-data measures, every --eval-steps",
    "load_best_model_at_end": "--eval-data keeps the best weights",
    "metric_for_best_model": "--eval-data keeps the best weights",
    "push_to_hub": "the trained folder can be uploaded as it is",
    "fsdp_config": "--fsdp cuts each layer and all the rest",
    "fp16_opt_level": "", "fp16_backend": "", "half_precision_backend": "", "use_ipex": "",
}  # fmt: skip
"""Option → why there is none; nothing is said where nothing is lost."""

TRAINER = {
    "lr_scheduler_kwargs", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor", "tf32",
    "data_seed", "gradient_checkpointing_kwargs", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel",
    "neftune_noise_alpha", "torch_empty_cache_steps", "log_level", "log_level_replica", "log_on_each_node",
    "save_on_each_node", "save_only_model", "full_determinism", "accelerator_config", "ddp_timeout",
    "ddp_bucket_cap_mb", "skip_memory_metrics", "project", "average_tokens_across_devices",
}  # fmt: skip
"""Arguments of transformers' TrainingArguments that go through `--trainer` as they are."""

THEIRS = {
    "query_max_len": "32", "passage_max_len": "128", "learning_rate": "5e-5", "num_train_epochs": "3",
    "per_device_train_batch_size": "8", "warmup_ratio": "0",
}  # fmt: skip
"""Defaults of FlagEmbedding's training, and of the transformers below it, that are not ours."""

MEANING = {
    "overwrite_output_dir": "deletes what is in the output folder, where FlagEmbedding only wrote into it",
    "fp16": "wants a GPU; --bf16 trains on a CPU too",
    "cache_path": "keeps unpacked copies of compressed files; other rows are read from their files",
    "negatives_cross_device": "the gradient is the exact one, W times that of FlagEmbedding on W processes",
    "sub_batch_size": "caches gradients: less memory for a second forward pass; in FlagEmbedding it saved none",
    "self_distill_start_step": "counts steps of the optimiser, not calls of the model",
    "resume": "goes on with the rows that would have come; `--resume auto` takes the newest checkpoint",
    "embedder_batch_size": "is an upper bound; batches are filled by tokens",
    "reranker_batch_size": "is an upper bound; batches are filled by tokens",
    "range": "draws with a seed, and leaves copies of positives out that differ in case or spaces",
    "reranker_peft_path": "is loaded beside its base",
    "fsdp": "cuts each layer and all the rest; it takes no strategy",
}
"""Option → what it does here that it did not there."""


@dataclass
class Translated:
    """Options in our words.

    Attributes:
        parts: Each flag with its values.
        notes: What has no counterpart, and what differs.
        problems: What cannot be said at all.
    """

    parts: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def translated(command: str, arguments: Sequence[str]) -> Translated:
    """Put the options of FlagEmbedding's program into ours.

    Args:
        command: Ours, such as `train base`.
        arguments: The words behind theirs, which may hold marks of `shell`.
    """
    kind = command.split()[0]
    fields = {option.name: option for rows in describe(MODELS[command]()).values() for option in rows}
    result = Translated()
    given: dict[str, list[str]] = {}
    for name, values in _grouped(arguments, result):
        ours = RENAMED[kind].get(name, name)
        special = SPECIAL.get(ours)
        if special is not None and special(values, result):
            continue
        if ours in fields:
            given[ours] = values
        elif ours in LEFT_OUT:
            if LEFT_OUT[ours]:
                result.notes.append(f"left out: --{name}: {LEFT_OUT[ours]}")
        elif kind == "train" and ours in TRAINER:
            result.parts.append(["--trainer", f"{ours}={' '.join(values) or 'true'}"])
        else:
            result.notes.append(f"left out: --{name}: bgectl has no such option; {did_you_mean(ours, list(fields))}")
    if kind == "mine" and "embedder_name_or_path" not in given:
        given["embedder_name_or_path"] = ["BAAI/bge-base-en"]
        result.notes.append("--embedder-name-or-path BAAI/bge-base-en is the default of FlagEmbedding's older script")
    if kind == "train":
        _their_defaults(command, given, result)
    own = [part for name, values in given.items() for part in _said(fields[name], values, result)]
    result.parts[:0] = own
    result.notes += [
        f"--{name.replace('_', '-')}: {text}" for name, text in MEANING.items()
        if name in given and [value.lower() for value in given[name]] not in (["false"], ["0"])
    ]  # fmt: skip
    return result


def _grouped(arguments: Sequence[str], result: Translated) -> Iterable[tuple[str, list[str]]]:
    """Options with their values, as argparse takes them: a later one of the same name wins."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in arguments:
        match = re.fullmatch(r"--?([A-Za-z_][\w.-]*)(=.*)?", word, re.DOTALL)
        if match:
            name = match[1].replace("-", "_")
            found.pop(name, None)
            current = found[name] = [match[2][1:]] if match[2] else []
        elif current is not None:
            current.append(word)
        else:
            result.notes.append(f"left out: `{plain(word)}`, which belongs to no option")
    return found.items()


def _their_defaults(command: str, given: dict[str, list[str]], result: Translated) -> None:
    """Say the defaults of the other program where they are not ours."""
    added = []
    for name, value in THEIRS.items():
        if name in given or (name == "warmup_ratio" and "warmup_steps" in given):
            continue
        if name == "num_train_epochs" and given.get("max_steps", ["-1"]) != ["-1"]:
            continue
        given[name] = [value]
        added.append(f"--{name.replace('_', '-')} {value}")
    if command == "train m3" and "unified_finetuning" not in given:
        given["unified_finetuning"] = ["False"]
        added.append("--no-unified-finetuning")
    if added:
        result.notes.append(f"FlagEmbedding's defaults, which are not bgectl's, were added: {' '.join(added)}")


def _said(option: Described, values: list[str], result: Translated) -> list[list[str]]:
    """The flag with its values; nothing where an empty value stands for none."""
    first = plain(values[0]) if values else ""
    if option.shape.kind is bool:
        if first.lower() not in TRUE | FALSE | {""} or len(values) > 1:
            result.problems.append(f"{option.flag}: takes True or False (given: {' '.join(map(plain, values))!r})")
            return []
        on = first.lower() not in FALSE
        return [[option.flag if on else option.off or f"{option.flag}=False"]]
    if option.bare and first.lower() in TRUE | {""}:
        return [[option.flag]]
    if first == "None" and len(values) == 1:
        return []
    if not values or (first == "" and option.name in ("from_peft", "raw_peft", "config_name", "tokenizer_name")):
        if not values:
            result.problems.append(f"{option.flag} has no value")
        return []
    if len(values) > 1 and not option.shape.many:
        result.problems.append(f"{option.flag} takes one value (given: {' '.join(map(plain, values))!r})")
        return []
    if option.name == "devices":
        values = [f"cuda:{value}" if value.isdigit() else value for value in values]
    if values[0].startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", values[0]) and len(values) == 1:
        return [[f"{option.flag}={values[0]}"]]
    return [[option.flag, *values]]


def _save_strategy(values: list[str], result: Translated) -> bool:
    if values == ["no"]:
        result.parts.append(["--save-steps", "0"])
        return True
    return values == ["steps"]


def _nothing_for_no(values: list[str], result: Translated) -> bool:
    return [value.lower() for value in values] in (["no"], ["false"])


def _fsdp(values: list[str], result: Translated) -> bool:
    if [value.lower() for value in values] not in ([""], ["false"]):
        result.parts.append(["--fsdp"])
        result.notes.append(f"--fsdp: {MEANING['fsdp']}")
    return True


def _resume(values: list[str], result: Translated) -> bool:
    lowered = [value.lower() for value in values]
    if lowered in ([], ["true"]):
        result.parts.append(["--resume", "auto"])
        result.notes.append(f"--resume: {MEANING['resume']}")
    return lowered in ([], ["true"], ["false"], ["none"])


def _slow_tokenizer(values: list[str], result: Translated) -> bool:
    if [value.lower() for value in values] == ["false"]:
        result.notes.append("left out: --use_fast_tokenizer False; decoders have --use-slow-tokenizer")
    return True


def _icl_suffix(values: list[str], result: Translated) -> bool:
    if any("\\n" in value for value in values):
        result.notes.append(r"--icl-suffix-str: `\n` is a newline here; FlagEmbedding keeps a backslash and an n")
    return False


SPECIAL: dict[str, Callable[[list[str], Translated], bool]] = {
    "save_strategy": _save_strategy, "eval_strategy": _nothing_for_no, "evaluation_strategy": _nothing_for_no,
    "load_best_model_at_end": _nothing_for_no, "push_to_hub": _nothing_for_no, "do_eval": _nothing_for_no,
    "do_predict": _nothing_for_no, "fsdp": _fsdp, "resume": _resume, "use_fast_tokenizer": _slow_tokenizer,
    "enable_sub_batch": _nothing_for_no, "group_by_length": _nothing_for_no, "only_merge_lora_model": _nothing_for_no,
    "auto_find_batch_size": _nothing_for_no, "icl_suffix_str": _icl_suffix,
    "use_inbatch_neg": lambda values, _: [value.lower() for value in values] in ([], ["true"]),
}  # fmt: skip
"""Options whose values decide: whether they are dealt with."""
