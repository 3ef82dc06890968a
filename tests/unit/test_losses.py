"""The losses against plain loops, and the laws that masks, teachers and prefixes obey."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgectl.losses.candidates import block_false_negatives
from bgectl.losses.contrastive import contrastive, own_group, similarity
from bgectl.losses.distill import kl_div, m3_kd
from bgectl.losses.embedding import EmbeddingLoss

NAN = float("nan")


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cross_entropy(scores, target):
    """-log softmax of a list at a place, by hand."""
    high = max(scores)
    return math.log(sum(math.exp(score - high) for score in scores)) + high - scores[target]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_contrastive_is_the_plain_loop(queries, group, seed):
    scores = 3 * draw(seed, queries, queries * group)
    expected = [cross_entropy(scores[i].tolist(), i * group) for i in range(queries)]
    assert contrastive(scores, group).tolist() == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.data(), st.integers(0, 99))
def test_a_blocked_column_is_as_if_left_out(data, seed):
    queries, group = 3, 2
    scores = draw(seed, queries, queries * group).requires_grad_()
    flags = data.draw(st.lists(st.booleans(), min_size=scores.numel(), max_size=scores.numel()))
    blocked = torch.tensor(flags).view_as(scores)
    blocked[range(queries), [i * group for i in range(queries)]] = False
    losses = contrastive(scores, group, blocked)
    for i in range(queries):
        kept = [(j, scores[i, j].item()) for j in range(queries * group) if not blocked[i, j]]
        place = [j for j, _ in kept].index(i * group)
        assert losses[i].item() == pytest.approx(cross_entropy([score for _, score in kept], place), abs=1e-12)
    losses.sum().backward()
    assert (scores.grad[blocked] == 0).all(), "a blocked candidate is still pushed"
    assert scores.grad.isfinite().all()


def test_own_group_takes_the_columns_of_the_query():
    scores = torch.arange(24.0).view(3, 8)[:, :6]
    assert own_group(scores, 2).tolist() == [[0, 1], [10, 11], [20, 21]]


def test_similarity_divides_by_the_temperature():
    queries, passages = draw(0, 2, 5), draw(1, 3, 5)
    expected = [[float(q.dot(p)) / 0.02 for p in passages] for q in queries]
    torch.testing.assert_close(similarity(queries, passages, 0.02), torch.tensor(expected, dtype=torch.float64))


def softmax(scores):
    high = max(scores)
    weights = [math.exp(score - high) for score in scores]
    return [weight / sum(weights) for weight in weights]


def test_kl_div_is_the_plain_loop():
    queries, group = 3, 4
    scores, teacher = draw(0, queries, queries * group), 2 * draw(1, queries, group)
    for i, value in enumerate(kl_div(scores, teacher).tolist()):
        own = scores[i, i * group : (i + 1) * group].tolist()
        expected = sum(t * cross_entropy(own, j) for j, t in enumerate(softmax(teacher[i].tolist())))
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mask", [False, True])
def test_m3_kd_is_the_plain_loop(mask):
    queries, group = 3, 3
    scores, teacher = draw(0, queries, queries * group), 2 * draw(1, queries, group)
    blocked = torch.zeros(queries, queries * group, dtype=torch.bool)
    if mask:
        blocked[0, 4] = blocked[2, :6] = True
    for i, value in enumerate(m3_kd(scores, teacher, blocked).tolist()):
        expected = 0.0
        for j, weight in enumerate(softmax(teacher[i].tolist())):
            gone = set(range(i * group, i * group + j))
            kept = [k for k in range(queries * group) if k not in gone and not blocked[i, k]]
            expected += weight * cross_entropy([scores[i, k].item() for k in kept], kept.index(i * group + j))
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["kl_div", "m3_kd_loss"])
def test_rows_without_scores_train_without_the_distillation(kind):
    """Neither their loss nor their gradient may know of the teacher, and none may turn into NaN."""
    group = 2
    queries, passages = draw(0, 3, 5).requires_grad_(), draw(1, 6, 5)
    plain = EmbeddingLoss(temperature=0.5)
    kd = EmbeddingLoss(temperature=0.5, distillation=kind)
    nothing = torch.full((3, group), NAN)
    torch.testing.assert_close(
        kd(queries, passages, group, teacher_BG=nothing), plain(queries, passages, group), atol=0, rtol=0
    )
    some = nothing.clone()
    some[1] = torch.tensor([1.0, 3.0])
    (with_kd,) = torch.autograd.grad(kd(queries, passages, group, teacher_BG=some), queries)
    (without,) = torch.autograd.grad(plain(queries, passages, group), queries)
    assert with_kd.isfinite().all()
    torch.testing.assert_close(with_kd[[0, 2]], without[[0, 2]])
    assert not torch.allclose(with_kd[1], without[1]), "the scored row learns nothing from its scores"


def test_kl_div_is_added_and_m3_kd_takes_the_contrastive_place():
    queries, passages, teacher = draw(0, 2, 4), draw(1, 6, 4), draw(2, 2, 3)
    scores = similarity(queries.float(), passages.float(), 0.5)

    def value(kind):
        return EmbeddingLoss(0.5, normalize=False, distillation=kind)(queries, passages, 3, teacher_BG=teacher)

    teacher32 = teacher.float()
    torch.testing.assert_close(
        value("kl_div").double(), (contrastive(scores, 3) + kl_div(scores, teacher32)).mean().double(), rtol=1e-5,
        atol=1e-6,
    )  # fmt: skip
    torch.testing.assert_close(value("m3_kd_loss").double(), m3_kd(scores, teacher32).mean().double(), rtol=1e-5,
                               atol=1e-6)  # fmt: skip


def test_mrl_is_the_mean_over_normalised_prefixes():
    queries, passages = draw(0, 3, 8).float(), draw(1, 6, 8).float()
    one = [EmbeddingLoss(0.1)(queries[:, :dim], passages[:, :dim], 2) for dim in (8, 4, 2)]
    torch.testing.assert_close(EmbeddingLoss(0.1, dims=(8, 4, 2))(queries, passages, 2), torch.stack(one).mean())
    assert len({round(value.item(), 4) for value in one}) == 3


def test_normalisation_takes_the_length_away():
    queries, passages = draw(0, 3, 8).float(), draw(1, 6, 8).float()
    stretched = passages * torch.arange(1.0, 7.0).unsqueeze(1)
    on, off = EmbeddingLoss(0.5), EmbeddingLoss(0.5, normalize=False)
    torch.testing.assert_close(on(queries, stretched, 2), on(queries, passages, 2))
    assert abs(off(queries, stretched, 2) - off(queries, passages, 2)) > 1e-2


def test_half_precision_vectors_are_compared_in_float32():
    """At a temperature of 0.01, bfloat16 similarities would be off by whole units."""
    queries, passages = draw(0, 4, 64).bfloat16(), draw(1, 8, 64).bfloat16()
    loss = EmbeddingLoss(0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(queries, passages, 2)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, loss(queries.float(), passages.float(), 2))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.5, 5.0]), st.integers(0, 2))
def test_margin_blocks_what_scores_above_the_positive(seed, margin, first):
    """Only passages of other groups, and only by more than the margin; other processes' groups count as others'."""
    queries, group, groups = 2, 3, 4
    scores = draw(seed, queries, groups * group)
    blocked = block_false_negatives(scores, None, group, margin, first)
    for i in range(queries):
        own = first + i
        for j in range(groups * group):
            suspect = scores[i, j] > scores[i, own * group] + margin
            assert blocked[i, j] == (suspect and j // group != own)
    given = torch.zeros_like(blocked)
    given[0, 0] = True
    assert block_false_negatives(scores, given, group, margin, first)[0, 0]


def test_margin_is_in_the_unit_of_similarities():
    """A temperature of 0.02 makes 0.3 of the cosine 15 in the scores."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    passages = torch.tensor([[0.8, 0.6], [0.9, (1 - 0.81) ** 0.5]])
    plain = EmbeddingLoss(0.02)(queries, passages, 1)
    wide, narrow = (EmbeddingLoss(0.02, false_negative_margin=margin)(queries, passages, 1) for margin in (0.3, 0.05))
    torch.testing.assert_close(wide, plain)
    assert narrow < plain, "a passage that is nearer to the query than its positive is still its negative"
