"""The processes of a run: which one this is, and what they exchange.

Without a process group every function answers for a single process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

from bgectl import console
from bgectl.launch import place

Value = TypeVar("Value")


def active() -> bool:
    """Whether there is a process group of more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if active() else 0


def world() -> int:
    """How many processes there are, W."""
    return distributed.get_world_size() if active() else 1


def gather_with_gradient(local: Tensor) -> Tensor:
    """(N, …) of this process → (W·N, …) of all processes in the order of their ranks.

    The gradient of a process's part is the sum of what all processes send back to it. So where each process takes the
    mean loss of its own rows over all candidates, and gradients are then averaged over the processes, the result is the
    gradient of one process that holds everything.
    """
    if not active():
        return local
    gathered: Tensor = _Gather.apply(local)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """torch's own functions for this have moved from release to release."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        return gather(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(local: Tensor) -> Tensor:
    """The same for what needs no gradient."""
    if not active():
        return local
    parts = [torch.empty_like(local) for _ in range(world())]
    distributed.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def gather_uneven(local: Tensor) -> Tensor:
    """`gather_with_gradient` where the processes have different numbers of rows."""
    if not active():
        return local
    sizes = gather(torch.tensor([len(local)], device=local.device)).tolist()
    most = max(sizes)
    padded = torch.cat([local, local.new_zeros(most - len(local), *local.shape[1:])])
    gathered = gather_with_gradient(padded) if local.requires_grad else gather(padded)
    return torch.cat([gathered[number * most : number * most + size] for number, size in enumerate(sizes)])


def largest(value: int, device: torch.device) -> int:
    """The largest of the processes' values."""
    if not active():
        return value
    box = torch.tensor(value, device=device)
    distributed.all_reduce(box, op=distributed.ReduceOp.MAX)
    return int(box.item())


def average_gradients(parameters: Iterable[Parameter], at_a_time: int = 2**23) -> None:
    """Put the mean over the processes in the place of each parameter's gradient; all processes call this.

    Args:
        parameters: The same in all processes; those that are not trained are passed over.
        at_a_time: Numbers that are exchanged in one go.
    """
    if not active():
        return
    bucket: list[Tensor] = []

    def exchange() -> None:
        if not bucket:
            return
        flat = torch.cat([gradient.flatten() for gradient in bucket]).div_(world())
        distributed.all_reduce(flat)
        start = 0
        for gradient in bucket:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        bucket.clear()

    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (
            bucket[0].dtype != parameter.grad.dtype
            or sum(map(torch.numel, bucket)) + parameter.grad.numel() > at_a_time
        ):
            exchange()
        bucket.append(parameter.grad)
    exchange()


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, in the order of their ranks."""
    if not active():
        return [value]
    values = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def wait() -> None:
    """Wait until all processes are here."""
    if active():
        distributed.barrier()


def patient_barrier() -> Callable[[], None]:
    """A `wait` that lasts as long as it takes, for what one process does while the others have nothing to do.

    All processes call this together, and later what it returns; only there do they wait.
    """
    if not active():
        return lambda: None
    group = distributed.new_group(backend="gloo", timeout=timedelta(days=7))
    return lambda: distributed.barrier(group=group)


def from_first(value: Any) -> Any:
    """What the first process gave; all processes call this."""
    if not active():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def by_first(compute: Callable[[], Value]) -> Value:
    """What the first process computes, for all of them; all processes call this."""
    found: Value = from_first(compute() if rank() == 0 else None)
    return found


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that were started for one piece of work, if there are several; the first of them speaks.

    They meet on the CPU, and wait for each other as long as it takes.
    """
    here = place()
    if here.world == 1:
        yield
        return
    if not here.first:
        console.be_quiet()
    distributed.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def own_devices(devices: Sequence[str]) -> list[str]:
    """The devices of this process: of several processes on a machine each takes one of those named, or a GPU."""
    here = place()
    if here.world == 1:
        return list(devices)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if devices and list(devices) != ["auto"]:
        return [devices[local % len(devices)]]
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(local % torch.cuda.device_count())
        return [f"cuda:{local % torch.cuda.device_count()}"]
    return list(devices)
