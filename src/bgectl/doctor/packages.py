"""The packages that bgectl needs, those that it can use, and versions that are known not to go together."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bgectl import __version__
from bgectl.doctor.finding import Finding
from bgectl.doctor.versions import OURS, Requirement, installed, release, requirements

NAMED = ("transformers", "accelerate", "peft")
"""Core packages with a line of their own; torch has one too, see `torch_probe`."""

REASONS = {
    "transformers": "bgectl calls the Trainer of transformers 5; that of 4.x takes other arguments",
    "torch": "older releases lack what transformers and the launcher call",
}
"""Why the range is what it is, where that is worth a word."""

FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11", "faiss")
"""Distributions that install the module `faiss`."""


def python() -> Finding:
    """The interpreter; one that is too old does not get here."""
    found = platform.python_version()
    facts = {"version": found, "implementation": platform.python_implementation(), "platform": platform.platform()}
    return Finding("python", "ok", f"{found} ({sys.executable})", None, facts | {"executable": sys.executable})


def itself() -> Finding:
    """This package."""
    told = installed(OURS)
    facts = {"version": __version__, "installed": told}
    if told is None:
        return Finding(
            "bgectl", "warning", f"{__version__}, not installed: the ranges of its requirements are not known",
            "pip install . in its folder", facts,
        )  # fmt: skip
    return Finding("bgectl", "ok", __version__, None, facts)


def core() -> Iterator[Finding]:
    """The packages without which nothing goes, but torch."""
    rest = []
    for requirement in requirements(OURS):
        if requirement.extra is not None or requirement.name == "torch":
            continue
        finding = required(requirement)
        if requirement.name in NAMED or finding.status != "ok":
            yield finding
        else:
            rest.append(requirement.name)
    if rest:
        facts = {name: installed(name) for name in rest}
        yield Finding("core-packages", "ok", f"{len(rest)} others that bgectl needs are there", None, facts)


def required(requirement: Requirement) -> Finding:
    """Whether a core package is there and new enough."""
    name = requirement.name
    found = installed(name)
    facts = {"version": found, "needed": requirement.range}
    mend = f"pip install '{requirement.spec}'"
    if found is None:
        return Finding(name, "error", "is not installed", mend, facts)
    if not requirement.allows(found):
        why = f": {REASONS[name]}" if name in REASONS else ""
        return Finding(name, "error", f"{found}, {requirement.range} is needed{why}", mend, facts)
    return Finding(name, "ok", found, None, facts)


@dataclass(frozen=True)
class Feature:
    """A package that some of the commands need."""

    name: str
    extra: str
    use: str


OPTIONAL = (
    Feature("bitsandbytes", "qlora", "`train llm --load-in-4bit`"),
    Feature("bm25s", "bm25", "`mine --fuse rrf`"),
    Feature("onnx", "onnx", "`export --to onnx`"),
    Feature("onnxruntime", "onnx", "`export --to onnx`"),
    Feature("onnxscript", "onnx", "`export --to onnx`"),
)


def optional() -> Iterator[Finding]:
    """The packages of the extras, and others that open what bgectl writes."""
    yield faiss()
    yield deepspeed()
    yield flash_attention()
    for item in OPTIONAL:
        yield _optional(item.name, f"pip install 'bgectl[{item.extra}]'", item.use)
    yield _optional("sentence-transformers", "pip install sentence-transformers", "opening trained models elsewhere")
    yield _optional("huggingface-hub", "pip install huggingface-hub", "models by name and `push`")


def _range(name: str) -> Requirement | None:
    return next((item for item in requirements(OURS) if item.name == name and item.range), None)


def _optional(name: str, line: str, use: str, facts: Mapping[str, Any] | None = None) -> Finding:
    found = installed(name)
    needed = _range(name)
    told = {"version": found, "use": use, **(facts or {})}
    if found is None:
        return Finding(name, "absent", f"not installed; needed for {use} only", line, told)
    if needed is not None and not needed.allows(found):
        return Finding(name, "warning", f"{found}, {needed.range} is needed for {use}", line, told)
    return Finding(name, "ok", found, None, told)


def faiss() -> Finding:
    """faiss for a CPU or a GPU; two of them overwrite each other's files."""
    found = {name: version for name in FAISS if (version := installed(name)) is not None}
    kinds = {"gpu" if "gpu" in name else "cpu" for name in found}
    facts = {"packages": found, "flavour": "none" if not kinds else "both" if len(kinds) > 1 else kinds.pop()}
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    if not found:
        return Finding(
            "faiss", "absent", "not installed; needed for approximate search in `mine` only, exact search goes without",
            "pip install 'bgectl[cpu]' (or 'bgectl[gpu]' on a machine with CUDA)", facts,
        )  # fmt: skip
    if len(found) > 1:
        keep = next((name for name in found if "gpu" in name), next(iter(found)))
        return Finding(
            "faiss", "warning", f"{told}: they install the same module, and the one that came last is used",
            f"pip uninstall -y {' '.join(found)} && pip install {keep}", facts,
        )  # fmt: skip
    return Finding("faiss", "ok", told, None, facts)


def deepspeed() -> Finding:
    """DeepSpeed, and what its operators are compiled with when they are first used."""
    tools = {name: shutil.which(name) for name in ("nvcc", "ninja", "c++")}
    ninja = tools["ninja"] is not None or installed("ninja") is not None
    compiles = ninja and tools["c++"] is not None
    facts = {**tools, "ninja_package": installed("ninja"), "compiles_cpu_ops": compiles,
             "compiles_cuda_ops": compiles and tools["nvcc"] is not None}  # fmt: skip
    finding = _optional("deepspeed", "pip install 'bgectl[deepspeed]'", "`train --deepspeed`", facts)
    if finding.status != "ok":
        return finding
    if not ninja:
        return Finding("deepspeed", "warning", f"{finding.found}; without ninja its operators cannot be compiled",
                       "pip install ninja", finding.facts)  # fmt: skip
    if tools["c++"] is None:
        return Finding("deepspeed", "warning", f"{finding.found}; without a C++ compiler its operators cannot be built",
                       "install g++, such as by: apt-get install g++", finding.facts)  # fmt: skip
    kinds = "for CPU and CUDA" if tools["nvcc"] else "for the CPU; there is no nvcc for those of CUDA"
    return Finding("deepspeed", "ok", f"{finding.found}; its operators can be compiled {kinds}", None, finding.facts)


def flash_attention() -> Finding:
    """FlashAttention, as its own package or by way of `kernels`."""
    names = ("flash-attn", "flash-attn-3", "kernels")
    found = {name: version for name in names if (version := installed(name)) is not None}
    if found:
        told = ", ".join(f"{name} {version}" for name, version in found.items())
        return Finding("flash-attention", "ok", told, None, {"packages": found})
    spec = next(
        (item.spec for item in requirements("transformers") if item.name == "kernels" and item.range), "kernels"
    )
    return Finding(
        "flash-attention", "absent", "not installed; needed for `--use-flash-attn` only, sdpa is used without",
        f"pip install '{spec}' (or flash-attn --no-build-isolation)", {"packages": {}},
    )  # fmt: skip


@dataclass(frozen=True)
class BadPair:
    """Two packages that do not go together."""

    name: str
    one: str
    """A requirement such as `peft<0.18`; the pair is bad where both hold."""
    other: str
    status: Literal["warning", "error"]
    why: str
    mend: str
    source: str
    """Where that is told."""


BAD_PAIRS = (
    BadPair(
        "peft-transformers", "peft<0.18", "transformers>=5", "error",
        "peft imports HybridCache, which transformers 5 no longer has", "pip install 'peft>=0.18'",
        "https://github.com/huggingface/peft/issues/3333",
    ),
    BadPair(
        "deepspeed-torch", "deepspeed<0.14.4", "torch>=2.4", "error",
        "deepspeed imports a name that torch.distributed.elastic no longer has, and accelerate imports deepspeed where "
        "it is installed", "pip install 'bgectl[deepspeed]'", "https://github.com/deepspeedai/DeepSpeed/issues/5603",
    ),
    BadPair(
        "faiss-numpy", "faiss-cpu<1.9", "numpy>=2", "warning",
        "this faiss was compiled for numpy 1 and fails on import", "pip install 'faiss-cpu>=1.9'",
        "https://github.com/facebookresearch/faiss/issues/3526",
    ),
    BadPair(
        "faiss-gpu-numpy", "faiss-gpu<1.9", "numpy>=2", "warning",
        "this faiss was compiled for numpy 1 and fails on import",
        "pip uninstall -y faiss-gpu && pip install 'bgectl[gpu]'",
        "https://github.com/facebookresearch/faiss/issues/3526",
    ),
    BadPair(
        "torch-load", "torch<2.6", "transformers>=5", "warning",
        "transformers refuses weights that are not safetensors (.bin, .pt) with torch below 2.6 (CVE-2025-32434)",
        "pip install 'torch>=2.6'", "https://github.com/huggingface/transformers/pull/37785",
    ),
)  # fmt: skip

CHECKED_ON_IMPORT = {"transformers"}
"""Packages that compare versions when they are imported, and refuse."""


def pairs() -> Iterator[Finding]:
    """Versions that do not go together: those known by name, and those that a package's own metadata rules out."""
    clean = True
    for pair in BAD_PAIRS:
        versions = {name: installed(name) for name in (_name(pair.one), _name(pair.other))}
        if _holds(pair.one) and _holds(pair.other):
            clean = False
            told = " with ".join(f"{name} {version}" for name, version in versions.items())
            yield Finding(f"pair-{pair.name}", pair.status, f"{told}: {pair.why}", pair.mend,
                          {"versions": versions, "source": pair.source})  # fmt: skip
    for finding in asked_by_others():
        clean = False
        yield finding
    if clean:
        yield Finding("pairs", "ok", "no versions that are known not to go together", None, {"known": len(BAD_PAIRS)})


def _name(text: str) -> str:
    return text.split("<")[0].split(">")[0]


def _holds(text: str) -> bool:
    name = _name(text)
    found = installed(name)
    return found is not None and release(found) != () and Requirement(name, text[len(name) :], None).allows(found)


def asked_by_others() -> Iterator[Finding]:
    """What transformers, accelerate, peft and sentence-transformers ask of the packages that are there.

    transformers turns torch off where it is older than its extra `torch` asks for.
    """
    for owner in ("transformers", "accelerate", "peft", "sentence-transformers"):
        for need in requirements(owner):
            if need.extra is not None and (owner, need.extra, need.name) != ("transformers", "torch", "torch"):
                continue
            found = installed(need.name)
            if found is None or need.allows(found):
                continue
            yield Finding(
                f"pair-{owner}-{need.name}", "error" if owner in CHECKED_ON_IMPORT else "warning",
                f"{owner} {installed(owner)} needs {need.spec}; {found} is installed", f"pip install '{need.spec}'",
                {"versions": {owner: installed(owner), need.name: found}, "source": f"metadata of {owner}"},
            )  # fmt: skip
