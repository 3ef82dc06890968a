"""Which rows make up which step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgectl.data.datasets import Collection, Dataset, Dropped
from bgectl.errors import DataError
from bgectl.train.batches import BatchPlan

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def collection(sizes, batch=4, group=3):
    return Collection([Dataset(f"d{i}", [(None, range(size))], group, batch) for i, size in enumerate(sizes)])


def plan(sizes, batch=4, group=3, **options):
    given = {"seed": 1, "same_dataset": False} | options
    return BatchPlan(collection(sizes, batch, group), batch_size=batch, **given)


def rows(steps):
    return [key.row for step in steps for key in step]


@given(SIZES, st.integers(1, 9), st.booleans(), st.integers(0, 3))
def test_every_row_once_an_epoch(sizes, batch, same_dataset, epoch):
    steps = plan(sizes, batch, same_dataset=same_dataset).batches(epoch)
    assert sorted(rows(steps)) == list(range(sum(sizes)))
    firsts = [sum(sizes[:i]) for i in range(len(sizes))]
    assert all(key.row == firsts[key.dataset] + key.position and key.epoch == epoch for step in steps for key in step)
    assert all(0 <= key.position < sizes[key.dataset] for step in steps for key in step)
    assert all(1 <= len(step) <= batch for step in steps)


@given(SIZES, st.integers(1, 5), st.integers(2, 4), st.booleans(), st.booleans())
def test_ranks_share_the_steps_of_one_process(sizes, batch, world, same_dataset, drop_last):
    """Their slices are disjoint, of one length, and side by side give the step of one process with all of it."""
    options = {"same_dataset": same_dataset, "drop_last": drop_last}
    plans = [plan(sizes, batch, rank=rank, world=world, **options) for rank in range(world)]
    ranks = [part.batches(0) for part in plans]
    whole = plan(sizes, batch * world, **options)
    together = [[key for part in step for key in part] for step in zip(*ranks, strict=True)]
    for step in zip(*ranks, strict=True):
        assert len({len(part) for part in step}) == 1, "a rank would wait for another for ever"
    alone = whole.batches(0)
    if not same_dataset:
        # A tail shorter than W is left out by the ranks alone; a longer one is cut to a multiple of W.
        for ours, theirs in zip(together, alone, strict=False):
            assert ours == theirs[: len(ours)]
    full = {tuple(step) for step in together if len(step) == batch * world}
    assert full == {tuple(step) for step in alone if len(step) == batch * world}
    assert len(rows(together)) == len(set(rows(together)))
    assert [len(part) for part in plans] == [len(together)] * world


@given(SIZES, st.integers(1, 9), st.booleans(), st.booleans(), st.integers(1, 3), st.integers(1, 2))
def test_report_adds_up(sizes, batch, same_dataset, drop_last, world, group):
    made = plan(sizes, batch, group, same_dataset=same_dataset, drop_last=drop_last, world=world)
    made.collection.dropped.append(Dropped("gone", 7, "too small"))
    lines = made.report()
    steps = made.batches(0)
    assert len(steps) == len(made)
    assert sum(line.rows for line in lines) == sum(sizes) + 7
    # A rank's steps hold 1/W of the rows.
    assert sum(line.rows - line.left_out for line in lines) == len(rows(steps)) * world
    counted = sum(line.steps for line in lines[:-1]) if same_dataset else lines[0].steps
    assert counted == len(made)
    assert all(bool(line.why) == bool(line.left_out) for line in lines)


@given(SIZES, st.integers(0, 2**32 - 1))
def test_seed_and_epoch_decide(sizes, seed):
    one, same = plan(sizes, seed=seed), plan(sizes, seed=seed)
    same.batches(3)
    assert one.batches(0) == same.batches(0)


def test_epochs_and_seeds_differ():
    made = plan([40, 30])
    assert rows(made.batches(0)) != rows(made.batches(1))
    assert rows(made.batches(0)) != rows(plan([40, 30], seed=2).batches(0))
    made.set_epoch(1)
    assert list(made) == made.batches(1)


@given(SIZES, st.integers(1, 6))
def test_same_dataset(sizes, batch):
    steps = plan(sizes, batch, same_dataset=True).batches(0)
    assert all(len({key.dataset for key in step}) == 1 for step in steps)
    assert len(steps) == sum(-(-size // batch) for size in sizes)


def test_datasets_take_turns():
    order = [step[0].dataset for step in plan([40, 40], same_dataset=True).batches(0)]
    assert order not in (sorted(order), sorted(order, reverse=True))


def test_flat_steps_mix_datasets():
    assert any(len({key.dataset for key in step}) > 1 for step in plan([40, 40]).batches(0))


def test_each_dataset_has_its_batch_size():
    both = Collection([Dataset("a", [(None, range(20))], 3, 4), Dataset("b", [(None, range(20))], 3, 10)])
    steps = BatchPlan(both, batch_size=7, seed=0, same_dataset=True).batches(0)
    assert sorted((step[0].dataset, len(step)) for step in steps) == [(0, 4)] * 5 + [(1, 10)] * 2


@pytest.mark.parametrize(
    ("size", "options", "lengths", "why"),
    [
        (10, {}, [4, 4, 2], ""),
        (10, {"drop_last": True}, [4, 4], "last incomplete batch"),
        (9, {}, [4, 4, 1], ""),
        (9, {"group": 1}, [4, 4], "last incomplete batch"),
        (10, {"group": 1}, [4, 4, 2], ""),
        (9, {"world": 2}, [4], "last incomplete batch"),
        (10, {"world": 2}, [4, 1], ""),
        (10, {"world": 2, "group": 1}, [4], "last incomplete batch"),
        (11, {"world": 2}, [4, 1], "last incomplete batch"),
        (3, {"drop_last": True}, [], "fewer rows than a batch"),
    ],
)
def test_tails(size, options, lengths, why):
    """A query with one passage, alone in its step, has nothing to be told apart from; ranks get equal shares."""
    made = plan([size], **options)
    assert [len(step) for step in made.batches(0)] == lengths
    (line,) = made.report()
    assert (line.left_out, line.why) == (size - sum(lengths) * options.get("world", 1), why)


def test_empty_datasets_are_refused():
    made = plan([8, 2], same_dataset=True, drop_last=True)
    with pytest.raises(DataError, match="d1 gives no batch"):
        made.refuse_empty(allow=False)
    made.refuse_empty(allow=True)
    with pytest.raises(DataError, match="no batch at all"):
        plan([2], drop_last=True).refuse_empty(allow=True)
    with pytest.raises(DataError, match="no batch at all"):
        BatchPlan(Collection([], [Dropped("a", 2, "small")]), batch_size=4, seed=0, same_dataset=True).refuse_empty(
            allow=True
        )


@pytest.mark.parametrize("same_dataset", [False, True])
def test_single_pairs_are_refused(same_dataset):
    with pytest.raises(DataError, match=r"loss is 0|no batch"):
        plan([8], 1, 1, same_dataset=same_dataset).refuse_empty(allow=True)
    plan([8], 1, 2, same_dataset=same_dataset).refuse_empty(allow=True)
    # The dataset's own batch size counts, not the option.
    own = Collection([Dataset("a", [(None, range(6))], 1, 1)])
    if same_dataset:
        with pytest.raises(DataError, match=r"loss is 0|no batch"):
            BatchPlan(own, batch_size=8, seed=0, same_dataset=True).refuse_empty(allow=True)


@settings(max_examples=5)
@given(st.integers(0, 5))
def test_positions_are_mixed(epoch):
    assert rows(plan([50]).batches(epoch)) != list(range(50))
