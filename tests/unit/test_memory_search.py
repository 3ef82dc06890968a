"""The largest pieces, the same pieces from any cut, errors that mean a full memory, and the parted backward pass."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bgectl.gradcache import BACKWARD, ENCODING, LOSS, cached_backward, parted_backward
from bgectl.train import memory
from bgectl.train.collate import Collator
from bgectl.train.memory import cpu_meter, is_full
from bgectl.train.probe import TIMED, largest_that_fits, strata
from bgectl.train.size import pieces_of, size_of


@given(st.integers(1, 64), st.integers(1, 100_000), st.integers(0, 120_000))
def test_largest_that_fits(low, above, room):
    high, tried = low + above, []

    def fits(number):
        tried.append(number)
        return number <= room

    found = largest_that_fits(fits, low, high, lambda: False)
    if room < low:
        assert found is None
        assert tried == [low]
        return
    assert low <= found <= min(room, high)
    assert found == high or found + max(found // 8, low) + low > min(room, high), "a larger one would have fitted"
    assert len(tried) == len(set(tried)) <= 40
    assert all(number <= high for number in tried)


def test_a_search_that_tires_keeps_what_fits():
    ends = iter([False, False, True])
    assert largest_that_fits(lambda number: True, 8, 1000, lambda: next(ends)) == 32


@pytest.mark.parametrize(("problem", "full"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("CUDA error: out of memory"), True),
    (MemoryError(), True),
    (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
    (OSError("out of memory"), False),
])  # fmt: skip
def test_errors_that_mean_a_full_memory(problem, full):
    assert is_full(problem) is full


def test_torch_raises_one_of_them():
    """What torch really raises on a CPU."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 55)
    assert is_full(raised.value)


@pytest.mark.skipif(memory.status("VmHWM") is None, reason="the kernel does not tell")
def test_a_peak_is_seen_and_forgotten():
    meter = cpu_meter()
    size = 256 << 20
    meter.reset()
    before = meter.held()
    tensor = torch.ones(size // 4)
    assert meter.peak()[0] - before == pytest.approx(size, rel=0.2)
    del tensor
    meter.reset()
    assert meter.peak()[0] - before < size / 2
    free, total = meter.room()
    assert 0 < free < total


def test_limits_of_a_group_are_seen(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.cpu_room() == (600_000, 1_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.cpu_room()[0] > 1_000_000


class Tokenizer:
    """Pads as a tokenizer does."""

    def __init__(self, side):
        self.side = side

    def pad(self, texts, pad_to_multiple_of=None, return_tensors="pt"):
        longest = max(map(len, texts["input_ids"]))
        multiple = pad_to_multiple_of or 1
        longest = -(-longest // multiple) * multiple
        ids, masks = [], []
        for text in texts["input_ids"]:
            rest = [0] * (longest - len(text))
            ids.append(text + rest if self.side == "right" else rest + text)
            masks.append([1] * len(text) + rest if self.side == "right" else rest + [1] * len(text))
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 60), st.integers(1, 60), st.integers(1, 9),
    st.sampled_from(["left", "right"]), st.sampled_from([None, 4]),
)  # fmt: skip
def test_pieces_do_not_depend_on_those_before(lengths, first, second, most, side, multiple):
    texts = [[100 + number] * length for number, length in enumerate(lengths)]
    one, other = (
        Collator(Tokenizer(side), 9, 9, tokens, piece_texts=most, pad_to_multiple_of=multiple)
        for tokens in (first, second)
    )
    pieces, places = one._pieces(texts)
    again = other.cut_anew({"pieces": pieces, "order": places})
    expected, same_places = other._pieces(texts)
    assert torch.equal(places, same_places)
    assert again["order"] is places
    assert len(again["pieces"]) == len(expected)
    for ours, theirs in zip(again["pieces"], expected, strict=True):
        assert torch.equal(ours["input_ids"], theirs["input_ids"])
        assert torch.equal(ours["attention_mask"], theirs["attention_mask"])


def test_the_size_of_a_step():
    collator = Collator(Tokenizer("right"), 9, 9, 16, pad_to_multiple_of=4)
    texts = [[1] * 3, [1] * 2, [1] * 9, [1] * 5, [1] * 5]
    pieces, places = collator._pieces(texts)
    step = {
        "pieces": pieces, "places": ["a:1", "a:2"], "order": places,
        "lengths": [len(texts[index]) for index in places.argsort().tolist()],
    }  # fmt: skip
    size = size_of(step, 16, collator)
    assert (size.queries, size.texts, size.tokens, size.longest_query, size.longest_passage) == (2, 5, 24, 3, 9)
    assert size.pieces == len(pieces) == len(pieces_of(step["lengths"], 16, 99))
    assert size.padded == sum(piece["input_ids"].numel() for piece in pieces)
    assert size.piece_tokens == max(piece["input_ids"].numel() for piece in pieces)


class Network(nn.Module):
    """Two outputs, of which one has no gradient, as where the encoder is not trained."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4).double()

    def forward(self, piece):
        return {"vectors": self.head(piece), "fixed": piece * 2}


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 1000))
def test_parted_backward_gives_the_same_gradient(sizes, seed):
    rows = torch.randn(sum(sizes), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    model = Network()

    def loss_of(outputs):
        return (outputs["vectors"] @ outputs["vectors"].T).logsumexp(dim=1).sum() * outputs["fixed"].sum()

    loss_of(model(rows)).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    parted_backward(model, rows, loss_of)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cached", [True, False])
def test_parts_come_in_their_order(cached):
    from contextlib import contextmanager

    seen, inside = [], []

    @contextmanager
    def part(name):
        seen.append(name)
        inside.append(name)
        yield
        inside.pop()

    model, rows = Network(), torch.ones(4, 3, dtype=torch.float64)

    def encode(piece):
        assert inside in ([ENCODING], [BACKWARD])
        return model(piece)

    def loss_of(outputs):
        assert inside == [LOSS]
        return outputs["vectors"].sum()

    if cached:
        cached_backward(encode, [rows[:2], rows[2:]], loss_of, around_part=part)
    else:
        parted_backward(encode, rows, loss_of, around_part=part)
    assert seen == [ENCODING, LOSS, BACKWARD]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30))
def test_strata_are_all_of_the_steps(tokens):
    parts = strata([{"tokens": number} for number in tokens])
    assert [step["tokens"] for part in parts for step in part] == sorted(tokens)
    assert len(parts) == min(TIMED, len(tokens))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_gpu_is_asked_through_torch(monkeypatch):
    """The numbers of torch's allocator, in the form that the rest looks at."""
    cuda = SimpleNamespace(
        get_device_name=lambda device: "a GPU", reset_peak_memory_stats=lambda device: None,
        max_memory_allocated=lambda device: 50, max_memory_reserved=lambda device: 70,
        mem_get_info=lambda device: (100, 200), memory_reserved=lambda device: 60,
        memory_allocated=lambda device: 40, synchronize=lambda device: None, empty_cache=lambda: None,
    )  # fmt: skip
    monkeypatch.setattr(memory.torch, "cuda", cuda)
    meter = memory.meter_of(torch.device("cuda", 0))
    assert meter.name == "a GPU"
    assert meter.peak() == (50, 70)
    assert meter.room() == (120, 200), "what the allocator keeps ready is free too"
    assert meter.held() == 40
    assert not meter.kills
