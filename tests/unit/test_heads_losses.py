"""Sparse and ColBERT scores without the tensors they are defined by equal those with them, in value and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgectl.losses import maxsim as maxsim_module
from bgectl.losses.embedding import loss_of_scores
from bgectl.losses.lexical import lexical_scores
from bgectl.losses.maxsim import maxsim
from bgectl.losses.tokens import Tokens
from bgectl.losses.unified import UnifiedLoss, ensemble, self_distillation
from bgectl.train.objective import accuracy

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=6)


def padded(tokens):
    """(N, L, …) with zeros, and the (N, L) mask."""
    longest = max(1, *tokens.lengths)
    rows = [
        torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])])
        for part in tokens.values.split(list(tokens.lengths))
    ]
    mask = torch.tensor([[place < length for place in range(longest)] for length in tokens.lengths])
    return torch.stack(rows), mask


def full_maxsim(queries, passages):
    """The definition: all similarities, the maximum over a passage's tokens, the mean over a query's."""
    query_BLD, query_mask = padded(queries)
    passage_ULD, passage_mask = padded(passages)
    similarities = torch.einsum("bid,ujd->biuj", query_BLD, passage_ULD)
    best = similarities.masked_fill(~passage_mask[None, None], float("-inf")).max(dim=3).values
    best = best.masked_fill(best.isinf(), 0.0) * query_mask.unsqueeze(2)
    return best.sum(dim=1) / query_mask.sum(dim=1).clamp(min=1).unsqueeze(1)


def gradients_of(scores, weights, *leaves):
    return torch.autograd.grad((scores * weights).sum(), leaves, allow_unused=True, materialize_grads=True)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, LENGTHS, st.integers(0, 2**31), st.sampled_from([(1 << 21, 512), (4, 2), (1, 1)]))
def test_maxsim(query_lengths, passage_lengths, seed, sizes):
    draw = torch.Generator().manual_seed(seed)
    query, passage = (
        torch.randn(sum(lengths), 3, dtype=torch.float64, generator=draw).requires_grad_()
        for lengths in (query_lengths, passage_lengths)
    )
    queries, passages = Tokens(query, query_lengths), Tokens(passage, passage_lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maxsim_module, "CELLS_CPU", sizes[0])
        patch.setattr(maxsim_module, "QUERY_ROWS", sizes[1])
        ours = maxsim(queries, passages)
        expected = full_maxsim(queries, passages)
        torch.testing.assert_close(ours, expected)
        weights = torch.randn(ours.shape, dtype=torch.float64, generator=draw)
        for one, other in zip(
            gradients_of(ours, weights, query, passage), gradients_of(expected, weights, query, passage), strict=True
        ):
            torch.testing.assert_close(one, other)


def full_lexical(queries, query_ids, passages, passage_ids, size):
    """The definition: (N, L, V), the maximum over positions, and the product of the two matrices."""

    def vectors(tokens, ids):
        weights, mask = padded(tokens)
        places, _ = padded(Tokens(ids, tokens.lengths))
        spread = torch.zeros(*weights.shape, size, dtype=weights.dtype).scatter(2, places.unsqueeze(2), (
            weights * mask).unsqueeze(2))  # fmt: skip
        return spread.amax(dim=1)

    return vectors(queries, query_ids) @ vectors(passages, passage_ids).T


@settings(deadline=None, max_examples=60)
@given(LENGTHS, LENGTHS, st.integers(0, 2**31))
def test_lexical(query_lengths, passage_lengths, seed):
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for lengths in (query_lengths, passage_lengths):
        # Distinct weights, some of them 0 as relu leaves them.
        weights = torch.relu(torch.randn(sum(lengths), dtype=torch.float64, generator=draw)).requires_grad_()
        parts += [weights, torch.randint(5, (sum(lengths),), generator=draw)]
    query, query_ids, passage, passage_ids = parts
    arguments = (Tokens(query, query_lengths), query_ids, Tokens(passage, passage_lengths), passage_ids)
    ours, expected = lexical_scores(*arguments), full_lexical(*arguments, 5)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=draw)
    found = gradients_of(ours, weights, query, passage)
    wanted = gradients_of(expected, weights, query, passage)
    for leaf, one, other in zip((query, passage), found, wanted, strict=True):
        # Where relu gave 0 it lets no gradient through, whatever comes.
        torch.testing.assert_close(one * (leaf > 0), other * (leaf > 0))


def test_equal_weights_share_the_gradient():
    query = torch.tensor([2.0, 2.0, 1.0], requires_grad=True)
    ids = torch.tensor([7, 7, 7])
    lexical_scores(Tokens(query, [3]), ids, Tokens(torch.tensor([3.0]), [1]), torch.tensor([7])).sum().backward()
    assert query.grad.tolist() == [1.5, 1.5, 0.0]


def saved_bytes(compute):
    sizes = {}

    def note(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = compute()
    del held
    return sum(sizes.values())


def test_memory_does_not_grow_with_the_vocabulary_nor_with_pairs_of_tokens():
    lengths = ([16] * 8, [64] * 32)
    query, passage = (torch.rand(sum(part), requires_grad=True) for part in lengths)

    def lexical(vocabulary):
        ids = [torch.randint(vocabulary, (sum(part),)) for part in lengths]
        return saved_bytes(
            lambda: lexical_scores(Tokens(query, lengths[0]), ids[0], Tokens(passage, lengths[1]), ids[1])
        )

    assert lexical(250_002) < 1.2 * lexical(2_000) < 2**20
    vectors = [torch.randn(sum(part), 4, requires_grad=True) for part in lengths]
    held = saved_bytes(lambda: maxsim(Tokens(vectors[0], lengths[0]), Tokens(vectors[1], lengths[1])))
    similarities = 4 * len(query) * len(passage)
    assert held < similarities / 10


def test_scores_do_not_depend_on_what_else_is_scored():
    """The reference's padded positions take part in the maximum as zero vectors."""
    query = torch.tensor([[1.0, 0.0]])
    near, far = torch.tensor([[-0.5, 0.1]]), torch.randn(5, 2)
    alone = maxsim(Tokens(query, [1]), Tokens(near, [1]))
    among = maxsim(Tokens(query, [1]), Tokens(torch.cat([near, far]), [1, 5]))
    assert alone[0, 0] == among[0, 0] == -0.5


def test_tokens_of_some_texts():
    tokens = Tokens(torch.arange(6), [2, 0, 3, 1])
    chosen = tokens.of([3, 0, 1, 0])
    assert (chosen.values.tolist(), chosen.lengths) == ([5, 0, 1, 0, 1], [1, 2, 0, 2])
    assert chosen.owners.tolist() == [0, 1, 1, 3, 3]


def test_blocked_candidates_take_no_part_in_self_distillation():
    scores, teacher = torch.randn(2, 6), torch.randn(2, 6)
    blocked = torch.tensor([[False, False, False, True, True, True], [True, True, True, False, False, False]])
    own = torch.stack([scores[0, :3], scores[1, 3:]]), torch.stack([teacher[0, :3], teacher[1, 3:]])
    torch.testing.assert_close(self_distillation(scores, teacher, blocked), self_distillation(*own))
    scores.requires_grad_()
    self_distillation(scores, teacher, blocked).backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[blocked].abs().max() == 0


def test_margin_leaves_the_same_passages_out_for_all_heads():
    """Passage 2 of the other group is above the positive by the dense score alone."""
    scores = {"dense": torch.tensor([[1.0, 0.0, 3.0, 0.0]]), "sparse": torch.rand(1, 4), "colbert": torch.rand(1, 4)}
    _, parts = UnifiedLoss(false_negative_margin=1.0)(scores, 2)
    blocked = torch.tensor([[False, False, True, False]])
    for name, part in {**scores, "ensemble": ensemble(scores)}.items():
        assert parts[name].item() == pytest.approx(loss_of_scores(part, 2, blocked).item())


def test_accuracy_counts_no_ties_and_no_blocked_candidates():
    scores = torch.tensor([[3.0, 1.0, 9.0, 2.0], [0.0, 1.0, 5.0, 5.0]])
    blocked = torch.tensor([[False, False, True, False], [False] * 4])
    assert accuracy(scores, 2, blocked, 0).item() == 0.5
    assert scores[0, 0] == 3.0, "the scores were changed"
