"""What the commands of `bgectl train` share."""

from __future__ import annotations

from bgectl.cli.launching import start_processes
from bgectl.options.train import TrainOptions


def train(options: TrainOptions) -> None:
    """Start the processes that are asked for, and train in each."""
    if not options.dry_run:
        start_processes(options)
    from bgectl.train.run import run

    run(options)
