"""What a command line starts, and with how many processes: torchrun, deepspeed, accelerate or python before it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePath

from bgectl.translate.shell import plain

Words = list[str]

MODULES = {
    "FlagEmbedding.finetune.embedder.encoder_only.base": "train base",
    "FlagEmbedding.finetune.embedder.encoder_only.m3": "train m3",
    "FlagEmbedding.finetune.embedder.decoder_only.base": "train llm",
    "FlagEmbedding.finetune.embedder.decoder_only.icl": "train icl",
    "FlagEmbedding.baai_general_embedding.finetune.run": "train base",
    "FlagEmbedding.BGE_M3.run": "train m3",
    "FlagEmbedding.baai_general_embedding.finetune.hn_mine": "mine",
    "hn_mine": "mine",
    "scripts.hn_mine": "mine",
    "add_reranker_score": "score",
    "scripts.add_reranker_score": "score",
}
"""Module → command. A script is found by the last parts of its path."""
OLD = {"FlagEmbedding.baai_general_embedding.finetune.run", "FlagEmbedding.BGE_M3.run"}
"""Names that FlagEmbedding no longer has."""
WITHOUT = (
    (r"FlagEmbedding\.(finetune\.reranker|reranker|llm_reranker)\b.*", "bgectl fine-tunes embedders, not rerankers"),
    (r"FlagEmbedding\.evaluation\b.*", "`bgectl eval` measures on your own data; benchmarks are not downloaded"),
    (r"FlagEmbedding\.baai_general_embedding\.retromae_pretrain\b.*", "bgectl fine-tunes, and does not pre-train"),
    (r"(.*\.)?split_data_by_length", "batches are filled by tokens here; the data needs no splitting"),
    (r"FlagEmbedding\..*", "bgectl has no such command"),
)
"""Modules without a counterpart, and why."""

STARTERS = re.compile(r"(?:.*/)?(torchrun|python[\d.]*|deepspeed|accelerate)")
WRAPPERS = {"nohup", "exec", "time", "env", "command", "sudo", "stdbuf", "nice"}


@dataclass
class Started:
    """What a command line starts.

    Attributes:
        module: Its module, or a script's path with dots.
        arguments: The words behind it.
        flags: Our flags for what the launcher was told.
        environment: Variables that stand for what it was told.
        notes: What has no counterpart.
    """

    module: str
    arguments: Words
    flags: Words = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def command(self) -> str | None:
        """Our command, such as `train base`."""
        return next((ours for module, ours in MODULES.items() if _is(self.module, module)), None)

    @property
    def without(self) -> str | None:
        """Why there is none."""
        found = (why for pattern, why in WITHOUT if re.fullmatch(pattern, self.module))
        return None if self.command else next(found, None)


def _is(module: str, known: str) -> bool:
    """Whether they are the same; a script's path may have folders in front, and `__main__` behind."""
    module = module.removesuffix(".__main__")
    return module == known or module.endswith(f".{known}")


def started(words: Words) -> Started | None:
    """What a command starts; None where it is neither python nor a launcher of its programs."""
    index = next((index for index, word in enumerate(words) if STARTERS.fullmatch(word)), None)
    if index is None:
        return None
    before = [word for word in words[:index] if word not in WRAPPERS and not word.startswith("-")]
    match = STARTERS.fullmatch(words[index])
    assert match
    rest = words[index + 1 :]
    if match[1].startswith("python"):
        while rest and rest[0] in ("-u", "-O", "-B", "-E", "-s"):
            rest = rest[1:]
        if rest[:1] == ["-m"] and rest[1:2] in (["torch.distributed.run"], ["torch.distributed.launch"]):
            found = _torchrun(rest[2:])
        elif rest[:1] == ["-m"] and rest[1:2] in (["accelerate.commands.launch"], ["deepspeed.launcher.runner"]):
            found = (_accelerate if "accelerate" in rest[1] else _deepspeed)(rest[2:])
        else:
            found = _program(rest, {})
    elif match[1] == "accelerate":
        found = _accelerate(rest[1:]) if rest[:1] == ["launch"] else None
    else:
        found = (_torchrun if match[1] == "torchrun" else _deepspeed)(rest)
    if found is not None and before:
        found.notes.append(f"left out: `{' '.join(map(plain, words[:index]))}`; it can stand before bgectl too")
    return found


def _program(words: Words, told: dict[str, str], *, module: bool = False) -> Started | None:
    """The module or script at the head of the words."""
    if words[:1] in (["-m"], ["--module"]):
        words, module = words[1:], True
    if not words:
        return None
    name = plain(words[0])
    if not module:
        name = ".".join(part for part in PurePath(name).with_suffix("").parts if part not in ("/", ".", ".."))
    return Started(name, words[1:])


def _options(words: Words, switches: set[str]) -> tuple[dict[str, str], Words, bool]:
    """A launcher's options by name, the words behind them, and whether these start with a module.

    Args:
        words: Behind the launcher's name.
        switches: Its options without a value.
    """
    told: dict[str, str] = {}
    left = list(words)
    while left and left[0].startswith("-"):
        name, equals, value = left.pop(0).partition("=")
        name = name.lstrip("-").replace("-", "_")
        if name in ("m", "module"):
            if value:
                left.insert(0, value)
            return told, left, True
        if equals:
            told[name] = value
        elif name in switches or not left:
            told[name] = ""
        else:
            told[name] = left.pop(0)
    return told, left, False


def _torchrun(words: Words) -> Started | None:
    told, left, module = _options(words, {"standalone", "no_python", "run_path", "use_env"})
    found = _program(left, told, module=module)
    if found is None:
        return None
    processes = told.pop("nproc_per_node", "1")
    _processes(found, processes)
    machines = told.pop("nnodes", "1")
    _machines(found, machines, told.pop("node_rank", None), told.pop("rdzv_endpoint", None), told)
    name, restarts = told.pop("rdzv_id", None), told.pop("max_restarts", None)
    if name is not None and machines != "1":
        found.flags += ["--rdzv-id", name]
    if restarts is not None and restarts != "0":
        found.flags += ["--max-restarts", restarts]
    backend = told.pop("rdzv_backend", "c10d")
    if backend not in ("c10d", "static"):
        found.notes.append(f"left out: --rdzv_backend {backend}; the machines meet by c10d")
    _left_out(found, told, silent={"standalone", "use_env"})
    return found


def _deepspeed(words: Words) -> Started | None:
    told, left, module = _options(words, {"no_python", "no_local_rank", "no_ssh", "force_multi", "save_pid"})
    found = _program(left, told, module=module)
    if found is None:
        return None
    include = told.pop("include", "")
    devices = re.fullmatch(r"(?:localhost|127\.0\.0\.1):(\d+(?:,\d+)*)", include)
    if devices:
        found.environment["CUDA_VISIBLE_DEVICES"] = devices[1]
        _processes(found, str(len(devices[1].split(","))))
    elif include:
        told["include"] = include
    if "num_gpus" in told:
        _processes(found, told.pop("num_gpus"))
    elif not devices:
        found.notes.append("deepspeed without --num_gpus takes every GPU: add `--gpus N`")
    machines = told.pop("num_nodes", told.pop("nnodes", "1"))
    _machines(found, machines, told.pop("node_rank", None), None, told)
    if "hostfile" in told:
        found.notes.append(
            f"left out: --hostfile {plain(told.pop('hostfile'))}; bgectl starts no other machine: run it on each, with "
            "--nnodes, --node-rank and --rdzv-endpoint"
        )
    _left_out(found, told, silent={"no_local_rank"})
    return found


def _accelerate(words: Words) -> Started | None:
    switches = {"multi_gpu", "use_deepspeed", "use_fsdp", "cpu", "same_network", "tpu", "quiet", "debug", "no_python"}
    told, left, module = _options(words, switches)
    found = _program(left, told, module=module)
    if found is None:
        return None
    machines = told.pop("num_machines", "1")
    processes = told.pop("num_processes", None)
    if processes is None:
        found.notes.append("accelerate launch without --num_processes takes its configuration file's: add `--gpus N`")
    elif processes.isdigit() and machines.isdigit():
        # It counts those of all machines.
        _processes(found, str(max(int(processes) // max(int(machines), 1), 1)))
    else:
        _processes(found, processes)
    told.setdefault("master_addr", told.pop("main_process_ip", ""))
    told.setdefault("master_port", told.pop("main_process_port", ""))
    _machines(found, machines, told.pop("machine_rank", None), None, told)
    precision = told.pop("mixed_precision", "no")
    if precision in ("fp16", "bf16"):
        found.flags.append(f"--{precision}")
    elif precision != "no":
        found.notes.append(f"left out: --mixed_precision {precision}; there are --bf16 and --fp16")
    if told.pop("use_deepspeed", None) is not None or "zero_stage" in told or "deepspeed_config_file" in told:
        found.flags += ["--deepspeed", told.pop("deepspeed_config_file", told.pop("zero_stage", "2"))]
    if told.pop("use_fsdp", None) is not None:
        found.flags.append("--fsdp")
    if told.pop("cpu", None) is not None:
        found.flags += ["--device", "cpu"]
    if told.get("gradient_accumulation_steps", "1") != "1":
        found.flags += ["--gradient-accumulation-steps", told["gradient_accumulation_steps"]]
    if "gpu_ids" in told and told["gpu_ids"] != "all":
        found.environment["CUDA_VISIBLE_DEVICES"] = told["gpu_ids"]
    _left_out(found, told, silent={
        "multi_gpu", "same_network", "quiet", "gradient_accumulation_steps", "gpu_ids", "dynamo_backend",
    })  # fmt: skip
    return found


def _processes(found: Started, count: str) -> None:
    if count in ("gpu", "auto", "cpu"):
        found.notes.append(f"--nproc_per_node {count}: bgectl takes a number: add `--gpus N`, or `--nproc N` on CPUs")
    elif count != "1":
        found.flags += ["--gpus", count]


def _machines(found: Started, machines: str, rank: str | None, endpoint: str | None, told: dict[str, str]) -> None:
    """How many machines, which this is, and where they meet."""
    address, port = told.pop("master_addr", ""), told.pop("master_port", "")
    low, _, high = machines.partition(":")
    if high:
        found.notes.append(f"--nnodes {machines}: bgectl runs on a fixed number of machines; {high} is taken")
    count = high or low
    if count == "1":
        return
    found.flags += ["--nnodes", count]
    if rank is not None:
        found.flags += ["--node-rank", rank]
    if endpoint is None and address:
        endpoint = f"{address}:{port or 29500}"
    if endpoint is not None:
        found.flags += ["--rdzv-endpoint", endpoint if ":" in endpoint else f"{endpoint}:29400"]


def _left_out(found: Started, told: dict[str, str], silent: set[str]) -> None:
    for name, value in told.items():
        if name not in silent and (name, value) not in (("master_addr", ""), ("master_port", "")):
            found.notes.append(f"left out: --{name} {plain(value)}".rstrip() + " of the launcher")
