"""What torch says of itself and of the GPUs. It is asked in a process of its own: a broken torch can take one along."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from bgectl.doctor.finding import Finding
from bgectl.doctor.packages import required
from bgectl.doctor.versions import OURS, Requirement, installed, requirements

PATIENCE = 120
"""Seconds that importing torch may take: from a cold disk in a container it is slow."""

INDEXES = "https://download.pytorch.org/whl/cu128"
MARK = "bgectl-doctor:"

PROBE = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    told = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "devices": []}
    told["cuda_available"] = torch.cuda.is_available()
    told["cpu"] = dict(getattr(torch.cpu, "get_capabilities", dict)())
    told["gloo"] = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    told["nccl"] = None
    try:
        if torch.version.cuda and torch.distributed.is_nccl_available():
            told["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    except Exception as problem:
        told["nccl_problem"] = str(problem)
    if told["cuda_available"]:
        told["bf16"] = torch.cuda.is_bf16_supported()
        for number in range(torch.cuda.device_count()):
            told["devices"].append({"name": torch.cuda.get_device_name(number),
                                    "capability": ".".join(map(str, torch.cuda.get_device_capability(number)))})
            try:
                free, total = torch.cuda.mem_get_info(number)
                told["devices"][-1].update(free=free, total=total)
            except Exception as problem:
                told["devices"][-1].update(free=None, total=None, problem=str(problem).split(chr(10))[0])
told["warnings"] = [str(item.message).split(chr(10))[0] for item in caught if "cuda" in str(item.message).lower()]
print("bgectl-doctor:" + json.dumps(told, default=str))
"""


def probe() -> Iterator[Finding]:
    """torch, the driver, the GPUs, bf16 and NCCL."""
    need = next((item for item in requirements(OURS) if item.name == "torch" and item.extra is None), None)
    need = need or Requirement("torch", "", None)
    finding = required(need)
    driver, cards = nvidia()
    told: dict[str, Any] | None = None
    if finding.status == "ok":
        told, problem = ask()
        if told is None:
            mend = f"pip install --force-reinstall '{need.spec}'"
            finding = Finding("torch", "error", f"{installed('torch')} is there, but {problem}", mend, finding.facts)
        else:
            build = f"CUDA {told['cuda']}" if told["cuda"] else f"ROCm {told['hip']}" if told["hip"] else "CPU only"
            facts = {**finding.facts, "version": told["version"], "build": build, "cuda": told["cuda"],
                     "hip": told["hip"]}  # fmt: skip
            finding = Finding("torch", "ok", f"{told['version']} ({build})", None, facts)
    yield finding
    yield cuda(told, driver, cards)
    yield gpus(told, cards)
    if told is not None:
        yield bf16(told)
        yield nccl(told)


def ask() -> tuple[dict[str, Any] | None, str]:
    """What the probe says, or what is wrong with torch."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PATIENCE, errors="replace"
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"importing it took more than {PATIENCE} s"
    except OSError as problem:
        return None, f"no process could be started: {problem.strerror}"
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if done.returncode == 0 and line is not None:
        answer: dict[str, Any] = json.loads(line[len(MARK) :])
        return answer, ""
    if done.returncode < 0:
        return None, f"importing it crashes: {signal.Signals(-done.returncode).name}"
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it says nothing")
    return None, f"it cannot be imported: {last.strip()[:300]}"


def nvidia() -> tuple[str | None, list[dict[str, Any]]]:
    """The driver's version and the cards, as nvidia-smi tells; None and nothing without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, []
    wanted = "driver_version,name,memory.total,memory.free,compute_cap"
    command = [tool, f"--query-gpu={wanted}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, errors="replace")
    except (subprocess.TimeoutExpired, OSError):
        return None, []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    rows = [row for row in rows if len(row) == 5] if done.returncode == 0 else []
    cards = [
        {"name": name, "total": _bytes(total), "free": _bytes(free), "capability": capability}
        for _, name, total, free, capability in rows
    ]
    return (rows[0][0] if rows else None), cards


def _bytes(mebibytes: str) -> int | None:
    return int(mebibytes) << 20 if re.fullmatch(r"\d+", mebibytes) else None


def cuda(told: dict[str, Any] | None, driver: str | None, cards: list[dict[str, Any]]) -> Finding:
    """Whether torch can use the driver that is there."""
    built = told["cuda"] if told else None
    facts = {"driver": driver, "runtime": built, "available": bool(told and told["cuda_available"])}
    if told is None:
        status = f"driver {driver}" if driver else "no NVIDIA driver"
        return Finding("cuda", "absent", f"{status}; torch could not be asked", None, facts)
    if told["cuda_available"]:
        kind = f"runtime {built}" if built else f"ROCm {told['hip']}"
        return Finding("cuda", "ok", f"{f'driver {driver}, ' if driver else ''}{kind}", None, facts)
    if driver is None:
        return Finding("cuda", "absent", "no NVIDIA driver; everything runs on the CPU", None, facts)
    if built is None:
        return Finding(
            "cuda", "warning", f"driver {driver} is there, but this torch was built without CUDA: the CPU is used",
            f"pip install --force-reinstall torch --index-url {INDEXES}", facts,
        )  # fmt: skip
    why = f": {told['warnings'][0]}" if told["warnings"] else ""
    return Finding(
        "cuda", "warning", f"driver {driver} and torch's CUDA {built} do not go together{why}",
        "update the driver, or install the torch of an older CUDA, see https://pytorch.org/get-started/locally", facts,
    )  # fmt: skip


def gpus(told: dict[str, Any] | None, cards: list[dict[str, Any]]) -> Finding:
    """The GPUs with their memory."""
    devices = (told["devices"] if told else []) or cards
    facts = {"devices": devices, "usable": bool(told and told["devices"])}
    if not devices:
        return Finding("gpus", "absent", "none", None, facts)
    lines = "; ".join(
        f"{device['name']}, {_gib(device['free'])} of {_gib(device['total'])} free, compute {device['capability']}"
        for device in devices
    )
    return Finding("gpus", "ok", lines if facts["usable"] else f"{lines} (not used by this torch)", None, facts)


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.1f} GiB"


def bf16(told: dict[str, Any]) -> Finding:
    """Where bfloat16 is computed by the hardware."""
    cpu = bool(told["cpu"].get("avx512_bf16") or told["cpu"].get("amx_bf16"))
    gpu = bool(told.get("bf16"))
    facts = {"gpu": gpu if told["devices"] else None, "cpu": cpu}
    places = [name for name, there in (("GPU", gpu), ("CPU", cpu)) if there]
    if told["devices"] and not gpu:
        return Finding(
            "bf16", "warning", "the GPU does not compute in bfloat16", "train with --fp16, not --bf16", facts
        )
    if not places:
        return Finding("bf16", "absent", "this CPU has no instructions for it; float32 is faster here", None, facts)
    return Finding("bf16", "ok", f"in hardware on the {' and the '.join(places)}", None, facts)


def nccl(told: dict[str, Any]) -> Finding:
    """What several processes speak to each other by."""
    facts = {"nccl": told["nccl"], "gloo": told["gloo"]}
    if told["nccl"]:
        return Finding("nccl", "ok", told["nccl"], None, facts)
    if told["cuda_available"] and told["cuda"]:
        why = told.get("nccl_problem", "torch was built without it")
        return Finding("nccl", "warning", f"not to be had, {why}: several GPUs cannot train together",
                       f"pip install --force-reinstall torch --index-url {INDEXES}", facts)  # fmt: skip
    return Finding("nccl", "absent", "not needed without GPUs; processes speak by gloo", None, facts)
