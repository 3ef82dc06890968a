"""How long the program takes to answer, as ratios to `python -c pass`; exits 1 when one is above its limit.

Each measurement is taken beside one of the bare interpreter, so that a busy machine slows both.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bgectl.commands import COMMANDS

ROUNDS = 15
PROGRAM = [str(Path(sys.executable).with_name("bgectl"))]
CASES = {
    "--help": 15,
    **{f"{command} --help": 25 for command in COMMANDS},
    "completion of a command": 15,
    "completion of a value": 15,
}
TYPED = {"completion of a command": "bgectl tr", "completion of a value": "bgectl train base --kd-loss-type "}


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """How long one run takes."""
    start = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure every case and print a table."""
    failed = False
    for case, limit in CASES.items():
        environment, words = dict(os.environ), case.split()
        if typed := TYPED.get(case):
            cursor = str(len(typed.split(" ")) - 1)
            environment.update(_BGECTL_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=cursor)
            words = []
        pairs = [
            (seconds([sys.executable, "-c", "pass"], environment), seconds([*PROGRAM, *words], environment))
            for _ in range(ROUNDS)
        ]
        base, own = (statistics.median(times) for times in zip(*pairs, strict=True))
        failed |= own / base > limit
        print(f"{case:26} {own * 1000:6.0f} ms  {own / base:5.1f} times `python -c pass`  (limit {limit})")
    sys.exit(failed)


if __name__ == "__main__":
    main()
