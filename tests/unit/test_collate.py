"""What a step's tensors hold is what its groups say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bgectl.data.datasets import Collection, Dataset
from bgectl.data.draw import Group
from bgectl.data.prompts import Prompts
from bgectl.data.rows import to_row
from bgectl.losses.candidates import blocked_candidates
from bgectl.train.batches import RowKey
from bgectl.train.collate import Collator, Drawn, Groups, candidate_ids, teacher_scores


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


def drawn(query, passages, scores=None, positives=None, own=False):
    return Drawn(Group(query, passages, scores, positives or passages[:1], own), f"file:{query}")


STEP = [
    drawn("kaban", ["lodor a b c d e f g", "mifel"], positives=["lodor a b c d e f g", "rugus"]),
    drawn("a " * 30, ["rugus", "tenim " * 40]),
    drawn("x", ["mifel", "lodor a b c d e f g"]),
]


def texts_of(batch, tokenizer):
    """The step's texts, queries first, as their tokens say."""
    placed = [
        tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        for piece in batch["pieces"]
        for ids, mask in zip(piece["input_ids"], piece["attention_mask"], strict=True)
    ]
    return [placed[index] for index in batch["order"].tolist()], placed


@pytest.mark.parametrize("limits", [{"piece_tokens": 1}, {"piece_tokens": 40}, {"piece_tokens": 10_000},
                                    {"piece_tokens": 10_000, "piece_texts": 2}], ids=str)  # fmt: skip
def test_pieces_and_order_give_the_texts(limits, tokenizer):
    batch = Collator(tokenizer, 20, 30, **limits)(STEP)
    texts, placed = texts_of(batch, tokenizer)
    passages = [text for item in STEP for text in item.group.passages]
    expected = [tokenizer.decode(tokenizer(text, truncation=True, max_length=length)["input_ids"],
                                 skip_special_tokens=True)
                for length, texts in ((20, [item.group.query for item in STEP]), (30, passages))
                for text in texts]  # fmt: skip
    assert texts == expected
    assert len(placed) == 3 + len(set(passages)), "a passage is encoded twice, or not at all"
    for piece in batch["pieces"]:
        count, length = piece["input_ids"].shape
        assert count == 1 or count * length <= limits["piece_tokens"]
        assert count <= limits.get("piece_texts", count)
        assert length <= 30
    assert batch["tokens"] == sum(int(piece["attention_mask"].sum()) for piece in batch["pieces"])
    assert batch["group_size"] == 2
    assert batch["places"] == [f"file:{item.group.query}" for item in STEP]


def test_padding_to_a_multiple(tokenizer):
    batch = Collator(tokenizer, 20, 30, piece_tokens=1000, pad_to_multiple_of=8)(STEP)
    assert all(piece["input_ids"].shape[1] % 8 == 0 for piece in batch["pieces"])
    assert texts_of(batch, tokenizer)[0] == texts_of(Collator(tokenizer, 20, 30, piece_tokens=1000)(STEP), tokenizer)[0]


GROUPS = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abcdef"), min_size=3, max_size=3),
        st.sets(st.sampled_from("abcdef"), max_size=2),
        st.booleans(),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@given(GROUPS, st.booleans())
def test_blocked_follows_its_definition(rows, mask_duplicates):
    groups = [Group("q", texts, None, [texts[0], *sorted(more)], own) for texts, more, own in rows]
    ids = candidate_ids(groups)
    blocked = blocked_candidates(
        ids["passage_ids"], ids["positive_ids"], ids["own_only"], len(groups[0].passages),
        mask_duplicates=mask_duplicates,
    )  # fmt: skip
    passages = [(index, text) for index, group in enumerate(groups) for text in group.passages]
    expected = [
        [
            owner != index and (group.own_negatives_only or (mask_duplicates and text in group.positives))
            for owner, text in passages
        ]
        for index, group in enumerate(groups)
    ]
    assert blocked.tolist() == expected


def test_teacher_scores():
    groups = [Group("q", ["a", "b"], scores, ["a"]) for scores in ([0.5, 2.0], None, [0.0, 0.0])]
    scores = teacher_scores(groups)
    assert scores[1].isnan().all()
    assert scores[[0, 2]].tolist() == [[0.5, 2.0], [0.0, 0.0]]
    assert teacher_scores(groups[1:2]) is None


def test_scores_are_handed_on_only_for_distillation(tokenizer):
    step = [drawn("x", ["a", "b"], scores=[1.0, 2.0])]
    assert Collator(tokenizer, 20, 30, 1000)(step)["teacher"] is None
    assert torch.equal(Collator(tokenizer, 20, 30, 1000, distill=True)(step)["teacher"], torch.tensor([[1.0, 2.0]]))


class Rows:
    """In place of a file."""

    path, lines = "file", list(range(1, 9))

    def __init__(self, kind="normal"):
        self.kind = kind

    def read(self, index):
        return to_row({"query": f"q{index}", "pos": ["p", "P"], "neg": list("abcde"), "type": self.kind})


def test_groups_of_a_dataset():
    datasets = [
        Dataset("one", [(Rows(), range(4))], 3, 2),
        Dataset("two", [(Rows("symmetric_sts"), range(3)), (Rows("symmetric_sts"), [5, 7])], 4, 2, "symmetric_sts",
                own_negatives_only=True),
    ]  # fmt: skip
    prompts = Prompts("Q:", "{}{}", "P:", "{}{}")
    groups = Groups(Collection(datasets), prompts, seed=3, same_dataset=True)
    assert len(groups) == 9
    one, two = groups[RowKey(0, 0, 2, 2)], groups[RowKey(0, 1, 4, 8)]
    assert (one.group.query, one.place, len(one.group.passages)) == ("Q:q2", "file:3", 3)
    assert (two.group.query, two.place, len(two.group.passages)) == ("Q:q7", "file:8", 4)
    assert (one.group.own_negatives_only, two.group.own_negatives_only) == (False, True)
    assert all(text.startswith("Q:") for text in two.group.passages)
    assert all(text.startswith("P:") for text in one.group.passages)
    assert groups[RowKey(0, 0, 2, 2)] == one
    assert len({tuple(groups[RowKey(epoch, 0, 2, 2)].group.passages) for epoch in range(20)}) > 5
    flat = Groups(Collection(datasets), prompts, seed=3)
    assert all(text.startswith("P:") for text in flat[RowKey(0, 1, 4, 8)].group.passages)
