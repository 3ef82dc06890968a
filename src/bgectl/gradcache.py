"""Gradient caching: a loss over many texts with the activations of one piece in memory (arXiv 2101.06983).

The pieces are first encoded without a graph; the loss gives the gradient of each vector; then each piece is encoded
again, with the same random numbers so that dropout agrees, and its part of the gradient is sent back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

Piece = TypeVar("Piece")

ENCODING, LOSS, BACKWARD = "encoding the texts", "the loss", "the backward pass"
"""The parts of a step, in their order. Several processes exchange something in the second only."""


class RandomState:
    """The state of torch's generators, to be put back later."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        """Put the generators back to where they were."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


def cached_backward(
    encode: Callable[[Piece], Mapping[str, Tensor]],
    pieces: Sequence[Piece],
    loss_of: Callable[[dict[str, Tensor]], Tensor],
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    backward_piece: Callable[[Tensor], None] = torch.Tensor.backward,
    around_piece: Callable[[bool], AbstractContextManager[Any]] = nullcontext,
    around_part: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Add to the parameters the gradient of `loss_of(joined(map(encode, pieces)))`.

    Args:
        encode: A piece to what the model gives for it by name, such as its (N, D) vectors.
        pieces: What `encode` takes.
        loss_of: The outputs of all pieces, joined, to a scalar. It may exchange them with other processes.
        backward: Called with the loss; an accelerator's own, which may scale it.
        backward_piece: Called with a scalar whose gradient is the piece's part.
        around_piece: Gives a context for the second encoding of a piece and its backward pass; called with whether the
            piece is the last one. A wrapper that averages gradients over processes should do so then and not before.
        around_part: Gives a context for each part of the step: ENCODING, LOSS and BACKWARD.

    Returns:
        The loss, detached.
    """
    states, outputs = [], []
    with around_part(ENCODING), torch.no_grad():
        for piece in pieces:
            states.append(RandomState())
            outputs.append(encode(piece))
    after = RandomState()
    with around_part(LOSS):
        leaves = [_leaves(output) for output in outputs]
        loss = loss_of(joined(leaves))
        backward(loss)
    with around_part(BACKWARD):
        for number, (piece, state, leaf) in enumerate(zip(pieces, states, leaves, strict=True), 1):
            state.restore()
            with around_piece(number == len(pieces)):
                backward_piece(_surrogate(encode(piece), leaf))
    after.restore()
    return loss.detach()


def parted_backward(
    encode: Callable[[Piece], Mapping[str, Tensor]],
    piece: Piece,
    loss_of: Callable[[dict[str, Tensor]], Tensor],
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    around_part: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Add to the parameters the gradient of `loss_of(encode(piece))`, the loss's part of it computed first and apart.

    See `cached_backward` for the arguments; here all activations are held.

    Returns:
        The loss, detached.
    """
    with around_part(ENCODING):
        outputs = encode(piece)
    with around_part(LOSS):
        leaves = _leaves(outputs)
        loss = loss_of(dict(leaves))
        backward(loss)
    with around_part(BACKWARD):
        sent = [(outputs[name], _gradient(leaf)) for name, leaf in leaves.items() if outputs[name].requires_grad]
        torch.autograd.backward([part for part, _ in sent], [gradient for _, gradient in sent])
    return loss.detach()


def _leaves(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs, cut off from how they came about."""
    return {name: part.detach().requires_grad_() for name, part in outputs.items()}


def _surrogate(outputs: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> Tensor:
    """A scalar whose gradient is the chain rule: d loss / d outputs, sent through the piece."""
    dots = [torch.dot(outputs[name].flatten(), _gradient(leaf).flatten()) for name, leaf in leaves.items()]
    return sum(dots[1:], dots[0])


def joined(outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The outputs of all pieces, one after the other along the first dimension, by name."""
    return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
