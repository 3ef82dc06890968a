"""`bgectl train base`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl.cli import bind
from bgectl.options.train import TrainBaseOptions


def train_base(options: TrainBaseOptions) -> None:
    """Fine-tune an encoder embedder on training rows."""
    from bgectl.launch import launch

    if not options.dry_run:
        launch(
            processes=options.processes, device=options.wanted_device, nnodes=options.nnodes,
            node_rank=options.node_rank, endpoint=options.rdzv_endpoint, meeting=options.rdzv_id,
            max_restarts=options.max_restarts,
        )  # fmt: skip
    from bgectl.train.run import run

    run(options)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "train base",
        TrainBaseOptions,
        train_base,
        epilog="Example: bgectl train base --model-name-or-path BAAI/bge-small-en-v1.5 --train-data mined.jsonl "
        "--output-dir out",
    )
