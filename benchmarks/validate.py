"""`bgectl data validate` beside `datasets.load_dataset("json")`: MB/s of reading, and what each checks.

datasets only parses; bgectl parses and checks every field of every row.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import compare, make_rows, peers


def main() -> None:
    """Make a file, read it with both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=700_000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        size = make_rows(path, arguments.rows, negatives=15, words=(20, 120))
        load = (
            "import sys, tempfile, datasets; "
            "datasets.load_dataset('json', data_files=sys.argv[1], cache_dir=tempfile.mkdtemp(dir=sys.argv[2]))"
        )
        ours = [sys.executable, "-m", "bgectl", "data", "validate", path]
        commands = {
            "bgectl data validate": ours,
            "bgectl, one process": [*ours, "--workers", "1"],
            "datasets.load_dataset('json')": [peers(), "-c", load, path, folder],
        }
        compare(commands, rounds=arguments.rounds, amount=size / 1e6, unit="MB", name="validate")


if __name__ == "__main__":
    main()
