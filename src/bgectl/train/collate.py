"""From drawn groups to tensors, in the loader's processes.

Letters: B queries, G passages a group, T texts (B queries, then the distinct passages), N candidates (B·G).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase

from bgectl.data.datasets import Collection
from bgectl.data.draw import SYMMETRIC_TEXTS, Group, draw_group, sampler
from bgectl.data.icl import IclTexts
from bgectl.data.prompts import Prompts
from bgectl.encode import plan_batches, tokenize
from bgectl.train.batches import RowKey


@dataclass(frozen=True)
class Drawn:
    """A group and where its row stands, for messages."""

    group: Group
    place: str
    draws: tuple[int, int, int] = (0, 0, 0)
    """What the row's randomness depends on: seed, epoch and row."""


class Groups(TorchDataset[Drawn]):
    """Reads a row and draws its group; the draws depend on the seed, the epoch and the row alone."""

    def __init__(
        self, collection: Collection, prompts: Prompts, *, seed: int, shuffle_ratio: float = 0.0,
        same_dataset: bool = False,
    ) -> None:  # fmt: skip
        self.collection = collection
        self.prompts = prompts
        self.seed = seed
        self.shuffle_ratio = shuffle_ratio
        self.same_dataset = same_dataset

    def __len__(self) -> int:
        return len(self.collection)

    def __getitem__(self, key: RowKey) -> Drawn:
        dataset = self.collection.datasets[key.dataset]
        file, row = dataset.read(key.position)
        group = draw_group(
            row,
            dataset.group_size,
            self.prompts,
            sampler(self.seed, key.epoch, key.row),
            shuffle_ratio=self.shuffle_ratio,
            symmetric=self.same_dataset and row.type in SYMMETRIC_TEXTS,
            own_negatives_only=dataset.own_negatives_only,
        )
        return Drawn(group, file, (self.seed, key.epoch, key.row))


@dataclass(frozen=True)
class Collator:
    """Tokenises groups and packs the texts into pieces of like length.

    Args:
        tokenizer: The model's.
        query_max_len: Tokens of a query.
        passage_max_len: Tokens of a passage.
        pad_to_multiple_of: Padded lengths are multiples of this.
        piece_tokens: Tokens of a piece, padding included.
        piece_texts: Texts of a piece at most.
        distill: Hand on teacher scores.
        end: The id that texts are ended with; see `decoder.end_of`.
        icl: Puts examples before queries, and a suffix behind; None where texts are read as they are.
    """

    tokenizer: PreTrainedTokenizerBase
    query_max_len: int
    passage_max_len: int
    piece_tokens: int
    piece_texts: int = 1 << 30
    pad_to_multiple_of: int | None = None
    distill: bool = False
    end: int | None = None
    icl: IclTexts | None = None

    def texts(self, drawn: Sequence[Drawn]) -> tuple[list[str], list[str]]:
        """Queries and passages as the model reads them; a group's passages stand together."""
        groups = [item.group for item in drawn]
        if self.icl is None:
            return [group.query for group in groups], [text for group in groups for text in group.passages]
        queries = self.icl.queries(groups, lambda place: sampler(*drawn[place].draws, "examples"))
        return queries, [self.icl.passage(text, group) for group in groups for text in group.passages]

    def tokens(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of each text."""
        return tokenize(self.tokenizer, texts, max_length, self.end)[0]

    def __call__(self, drawn: Sequence[Drawn]) -> dict[str, Any]:
        """Tensors of one step.

        Returns:
            `pieces`: dicts of `input_ids` and `attention_mask`; `lengths`: the tokens of each text of the pieces;
            `order`: (T',) where text t stands in the pieces' concatenation, T' = B + N, queries first; `group_size`;
            `passage_ids` (N,), `positive_ids` (B, P) and `own_only` (B,), see `blocked_candidates`; `teacher` (B, G) or
            None; `places`: where the rows stand; `tokens`: how many tokens are not padding.
        """
        groups = [item.group for item in drawn]
        query_texts, passage_texts = self.texts(drawn)
        distinct, passage_index = _distinct(passage_texts)
        texts = self.tokens(query_texts, self.query_max_len) + self.tokens(distinct, self.passage_max_len)
        pieces, place_of = self._pieces(texts)
        text_index = torch.cat([torch.arange(len(groups)), torch.tensor(passage_index) + len(groups)])
        return {
            "pieces": pieces,
            "lengths": [len(texts[index]) for index in place_of.argsort().tolist()],
            "order": place_of[text_index],
            "group_size": len(groups[0].passages),
            **candidate_ids(groups),
            "teacher": teacher_scores(groups) if self.distill else None,
            "places": [item.place for item in drawn],
            "tokens": sum(map(len, texts)),
        }

    def cut_anew(self, step: dict[str, Any]) -> dict[str, Any]:
        """A step that was cut into other pieces, as this collator would have given it.

        Texts stand longest first whatever the pieces, so that only these change.
        """
        texts = [
            ids[mask.bool()].tolist()
            for piece in step["pieces"]
            for ids, mask in zip(piece["input_ids"], piece["attention_mask"], strict=True)
        ]
        return {**step, "pieces": self._pieces(texts)[0]}

    def _pieces(self, texts: list[list[int]]) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Padded pieces, and for each text its position in their concatenation."""
        batches = plan_batches([len(ids) for ids in texts], self.piece_tokens, self.piece_texts)
        place_of = torch.empty(len(texts), dtype=torch.long)
        place_of[torch.tensor([index for batch in batches for index in batch])] = torch.arange(len(texts))
        pieces = []
        for batch in batches:
            padded = self.tokenizer.pad(
                {"input_ids": [texts[index] for index in batch]}, pad_to_multiple_of=self.pad_to_multiple_of,
                return_tensors="pt",
            )  # fmt: skip
            pieces.append({"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]})
        return pieces, place_of


@dataclass(frozen=True)
class AsArrays:
    """A collator whose tensors come as numpy arrays, for the way out of a loader's process.

    A tensor would take a file descriptor each, of which a process has few, and a handshake between the processes that
    fails aloud when one of them is interrupted.
    """

    collator: Collator

    def __call__(self, drawn: Sequence[Drawn]) -> dict[str, Any]:
        """What the collator returns; nothing is copied."""
        return _mapped(self.collator(drawn), Tensor, lambda tensor: tensor.numpy())


def as_tensors(step: dict[str, Any]) -> dict[str, Any]:
    """What the collator returned before `AsArrays`; nothing is copied."""
    return _mapped(step, np.ndarray, torch.from_numpy)


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The value with every `kind` in its lists and dicts changed."""
    if isinstance(value, dict):
        return {key: _mapped(item, kind, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, kind, change) for item in value]
    return change(value) if isinstance(value, kind) else value


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The texts without repetitions, and for each given text its place among them: no text is encoded twice."""
    seen: dict[str, int] = {}
    index = [seen.setdefault(text, len(seen)) for text in texts]
    return list(seen), index


def text_id(text: str) -> int:
    """A signed 64-bit number for a text, the same in every process."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
    )


def candidate_ids(groups: Sequence[Group]) -> dict[str, Tensor]:
    """What `blocked_candidates` needs of the groups, in the form that processes can exchange.

    Returns:
        `passage_ids` (N,), `positive_ids` (B, P), `own_only` (B,).
    """
    most = max(len(group.positives) for group in groups)
    positives = [[text_id(text) for text in group.positives] for group in groups]
    return {
        "passage_ids": torch.tensor([text_id(text) for group in groups for text in group.passages]),
        "positive_ids": torch.tensor([ids + ids[:1] * (most - len(ids)) for ids in positives]),
        "own_only": torch.tensor([group.own_negatives_only for group in groups]),
    }


def teacher_scores(groups: Sequence[Group]) -> Tensor | None:
    """(B, G) teacher scores, NaN for a group without; None where no group has any."""
    if all(group.scores is None for group in groups):
        return None
    nothing = [float("nan")] * len(groups[0].passages)
    return torch.tensor([group.scores or nothing for group in groups], dtype=torch.float32)
