"""Starting the processes that a command's options ask for."""

from __future__ import annotations

from bgectl.options.common import LaunchOptions


def start_processes(options: LaunchOptions) -> None:
    """Become the launcher of this command's processes, if there are several; see `launch.launch`."""
    from bgectl.launch import launch

    launch(
        processes=options.processes, device=options.wanted_device, nnodes=options.nnodes,
        node_rank=options.node_rank, endpoint=options.rdzv_endpoint, meeting=options.rdzv_id,
        max_restarts=options.max_restarts,
    )  # fmt: skip
