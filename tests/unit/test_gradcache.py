"""The gradient through cached pieces is that of the whole, dropout included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bgectl.gradcache import cached_backward, joined


class Network(nn.Sequential):
    """Gives a vector for each row, and numbers of which each piece has another count."""

    def forward(self, piece):
        vectors = super().forward(piece)
        return {"vectors": vectors, "numbers": vectors.flatten()[::3] ** 2}


def network():
    torch.manual_seed(0)
    return Network(nn.Linear(3, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 4)).double().train()


def loss_of(outputs):
    """Couples all vectors, as in-batch negatives do."""
    vectors = outputs["vectors"]
    coupled = torch.logsumexp(vectors @ vectors.T, dim=1).sum() + vectors.prod(dim=1).sum()
    return coupled + outputs["numbers"].logsumexp(dim=0)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 2**31))
def test_same_gradient_for_any_pieces(sizes, seed):
    pieces = list(torch.randn(sum(sizes), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).split(
        sizes))  # fmt: skip
    model = network()
    torch.manual_seed(seed)
    # Each piece in a call of its own, so that dropout draws the same numbers.
    whole = loss_of(joined([model(piece) for piece in pieces]))
    after = torch.get_rng_state()
    whole.backward()
    expected = gradients(model)

    model.zero_grad()
    torch.manual_seed(seed)
    cached = cached_backward(model, pieces, loss_of)
    assert cached.item() == pytest.approx(whole.item(), rel=1e-12)
    assert not cached.requires_grad
    for ours, theirs in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert torch.equal(torch.get_rng_state(), after), "the next step would draw other numbers than without the cache"


def test_gradients_are_added():
    model, pieces = network().eval(), [torch.ones(2, 3, dtype=torch.float64)]
    cached_backward(model, pieces, loss_of)
    once = gradients(model)
    cached_backward(model, pieces, loss_of)
    for one, two in zip(once, gradients(model), strict=True):
        torch.testing.assert_close(two, 2 * one)


def test_a_scaled_backward_scales_all():
    model, pieces = network().eval(), [torch.ones(1, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)]
    cached_backward(model, pieces, loss_of)
    plain = gradients(model)
    model.zero_grad()
    cached_backward(model, pieces, loss_of, lambda loss: (loss * 1024).backward())
    for one, scaled in zip(plain, gradients(model), strict=True):
        torch.testing.assert_close(scaled, 1024 * one)


def test_vectors_that_the_loss_ignores():
    model = network().eval()
    pieces = [torch.ones(2, 3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)]
    cached_backward(model, pieces, lambda outputs: outputs["vectors"][:2].sum())
    first = gradients(model)
    model.zero_grad()
    model(pieces[0])["vectors"].sum().backward()
    for one, two in zip(first, gradients(model), strict=True):
        torch.testing.assert_close(one, two)


def test_one_piece_is_held_at_a_time():
    """What makes it worth its time: no graph but that of one piece is alive."""
    alive, most = 0, 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal alive, most
            alive += torch.is_grad_enabled() or ctx.needs_input_grad[0]
            most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            nonlocal alive
            alive -= 1
            return gradient

    model = network()

    def encode(piece):
        outputs = model(piece)
        if torch.is_grad_enabled():
            outputs["vectors"] = Counted.apply(outputs["vectors"])
        return outputs

    cached_backward(encode, [torch.ones(1, 3, dtype=torch.float64)] * 5, loss_of)
    assert (most, alive) == (1, 0)
