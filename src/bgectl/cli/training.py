"""What the commands of `bgectl train` share."""

from __future__ import annotations

from bgectl.options.train import TrainOptions


def train(options: TrainOptions) -> None:
    """Start the processes that are asked for, and train in each."""
    from bgectl.launch import launch

    if not options.dry_run:
        launch(
            processes=options.processes, device=options.wanted_device, nnodes=options.nnodes,
            node_rank=options.node_rank, endpoint=options.rdzv_endpoint, meeting=options.rdzv_id,
            max_restarts=options.max_restarts,
        )  # fmt: skip
    from bgectl.train.run import run

    run(options)
