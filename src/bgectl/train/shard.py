"""Fully sharded training (FSDP2, torch's `fully_shard`): weights, gradients and optimiser state cut over the processes.

Not by way of accelerate, which leaves a model on a CPU whole and says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from bgectl.distributed import rank, world
from bgectl.errors import RunError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
OPTIMIZER = "optimizer.pt"


class Sharded(nn.Module):
    """A sharded model in the form that a Trainer takes for one that is wrapped already, and leaves alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the model gives."""
        return self.module(*arguments, **named)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients add up in the processes and are not exchanged yet."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)


def shard(model: nn.Module, layer_names: set[str], device: torch.device, *, bf16: bool) -> None:
    """Cut a model in place: each layer, and what is left, is a unit that is gathered while it computes.

    Args:
        model: The whole model, the same in all processes.
        layer_names: Class names of its layers.
        device: Where it trains.
        bf16: Compute in bfloat16; weights and sums of gradients stay in float32.

    Raises:
        RunError: The model has no such layers, or was not cut.
    """
    mesh = init_device_mesh(device.type, (world(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else None
    settings: dict[str, Any] = {"mesh": mesh} | ({"mp_policy": policy} if policy else {})
    layers = [module for module in model.modules() if type(module).__name__ in layer_names]
    if not layers:
        raise RunError(f"the model has no layers of {', '.join(sorted(layer_names)) or 'a known kind'} to shard")
    for layer in layers:
        fully_shard(layer, **settings)
    fully_shard(model, **settings)
    whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    if whole:
        raise RunError(f"{len(whole)} weights were not sharded, such as {whole[0]}")


def whole_weights(model: nn.Module, *, frozen: bool = True) -> dict[str, Tensor]:
    """The whole weights, in the first process; nothing in the others. All processes call this.

    Args:
        model: A model that was cut.
        frozen: Those that are not trained too.
    """
    state: dict[str, Any] = get_model_state_dict(model, options=replace(WHOLE, ignore_frozen_params=not frozen))
    return state if rank() == 0 else {}


def gathered_weights(model: nn.Module, names: set[str]) -> dict[str, Tensor]:
    """Some of the weights that DeepSpeed has cut, whole, in the first process; all processes call this."""
    import deepspeed

    state = {}
    for name, parameter in model.named_parameters():
        if name in names:
            with deepspeed.zero.GatheredParameters([parameter]):
                if rank() == 0:
                    state[name] = parameter.detach().cpu().clone()
    return state


def save_optimizer(model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Write the optimiser's whole state. All processes call this."""
    state = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    if rank() == 0:
        torch.save(state, folder / OPTIMIZER)


def load_optimizer(model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Read what `save_optimizer` wrote; each process keeps its part."""
    state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
