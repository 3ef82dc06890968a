"""Cross-encoders: a score for a pair of query and passage (reference, SPEC §8).

Letters: N pairs, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from tokenizers import Encoding
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from bgectl import console
from bgectl.encode import over_devices, plan_batches
from bgectl.errors import RunError
from bgectl.models.encoder import load_tokenizer, position_limit
from bgectl.models.hub import Hub, unreachable

CHUNK = 65_536
"""Pairs tokenised at a time."""


HEADS = ("classifier", "score")
"""The names that transformers has for what gives a classifier's logit."""

Item = TypeVar("Item")


@dataclass
class PairScorer(Generic[Item]):
    """A model that scores pairs, on one or several devices."""

    models: list[Any]
    devices: list[torch.device]
    tokenizer: PreTrainedTokenizerBase
    query_max_length: int
    max_length: int
    batch_tokens: int
    batch_size: int
    cut: int = field(default=0, init=False)
    """Pairs cut to their length so far."""

    def score(self, pairs: Sequence[tuple[str, str]], told: console.Advance | None = None) -> npt.NDArray[np.float32]:
        """(N,) logits of (query, passage) pairs, in their order; longest pairs are computed first.

        Args:
            pairs: N pairs.
            told: Is told of each batch; None shows a progress bar.
        """
        scores = np.empty(len(pairs), dtype=np.float32)
        with nullcontext(told) if told else console.progress("Scoring", len(pairs), "pairs") as advance:
            for start in range(0, len(pairs), CHUNK):
                self._score_chunk(pairs[start : start + CHUNK], scores[start : start + CHUNK], advance)
        return scores

    def _score_chunk(
        self, pairs: Sequence[tuple[str, str]], out: npt.NDArray[np.float32], advance: console.Advance
    ) -> None:
        items, cut = self.encode(pairs)
        self.cut += cut
        batches = plan_batches([self.length(item) for item in items], self.batch_tokens, self.batch_size)

        def work(device: int, number: int) -> None:
            batch = batches[number]
            with torch.inference_mode():
                logits = self.forward([items[index] for index in batch], device)
            out[batch] = logits.float().cpu().numpy()
            advance(len(batch))

        over_devices(len(batches), len(self.models), work)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[Item], int]:
        """What the model reads of each pair, and how many pairs were cut."""
        raise NotImplementedError

    def length(self, item: Item) -> int:
        """Tokens of a pair."""
        raise NotImplementedError

    def forward(self, items: Sequence[Item], device: int) -> Tensor:
        """(N,) logits of a batch."""
        raise NotImplementedError


@dataclass
class CrossEncoder(PairScorer[Encoding]):
    """A sequence classifier with one logit."""

    def encode(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[Encoding], int]:
        """See `encode_pairs`."""
        return encode_pairs(self.tokenizer, pairs, self.query_max_length, self.max_length)

    def length(self, item: Encoding) -> int:
        """Tokens of a pair."""
        return len(item.ids)

    def forward(self, items: Sequence[Encoding], device: int) -> Tensor:
        """(N,) logits of a batch."""
        features = {"input_ids": [pair.ids for pair in items]}
        if "token_type_ids" in self.tokenizer.model_input_names:
            features["token_type_ids"] = [pair.type_ids for pair in items]
        inputs = self.tokenizer.pad(features, return_tensors="pt")
        logits: Tensor = self.models[device](
            **{key: value.to(self.devices[device]) for key, value in inputs.items()}
        ).logits
        return logits.squeeze(-1)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], query_max_length: int, max_length: int
) -> tuple[list[Encoding], int]:
    """Tokens of pairs: the query cut to `query_max_length`, then the passage so that the pair fits `max_length`.

    Returns:
        One encoding a pair, with the tokenizer's special tokens, and how many pairs were cut.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    special = backend.num_special_tokens_to_add(True)
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    tokens = dict(zip(texts, backend.encode_batch_fast(texts, add_special_tokens=False), strict=True))
    result, cut = [], 0
    for query_text, passage_text in pairs:
        # Encodings are cut in place and a text may serve in several pairs.
        query, passage = deepcopy(tokens[query_text]), deepcopy(tokens[passage_text])
        query_length = min(len(query.ids), query_max_length, max_length - special)
        passage_length = min(len(passage.ids), max_length - special - query_length)
        cut += query_length < len(query.ids) or passage_length < len(passage.ids)
        query.truncate(query_length)
        passage.truncate(passage_length)
        result.append(backend.post_process(query, passage, True))
    return result, cut


def load_cross_encoder(
    name: str, *, hub: Hub, devices: Sequence[torch.device], dtype: torch.dtype, query_max_length: int | None,
    max_length: int, batch_tokens: int, batch_size: int,
) -> CrossEncoder:  # fmt: skip
    """Load a cross-encoder with one logit.

    Raises:
        RunError: The model cannot be loaded, or has other than one output.
    """
    tokenizer = load_tokenizer(name, hub)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise RunError("the tokenizer has no fast form", where=name, hint="add a tokenizer.json to the model")
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **hub.arguments()
        )
    except (OSError, ValueError, RuntimeError) as problem:
        raise unreachable(name, problem) from problem
    except SafetensorError as problem:
        raise RunError(f"the weights are damaged: {problem}", where=name) from problem
    missing = sorted(loading["missing_keys"])
    if missing:
        raise RunError(
            f"is no cross-encoder: its files lack {', '.join(missing[:3])}, so scores would be random", where=name,
            hint="an embedder is a teacher too: --reranker-model-class embedder",
        )  # fmt: skip
    if model.config.num_labels != 1:
        raise RunError(f"gives {model.config.num_labels} values a pair; a reranker gives one", where=name)
    for name_of_head in HEADS:
        head = getattr(model, name_of_head, None)
        if head is not None and dtype != torch.float32:
            # Three digits are too few to tell candidates apart, and the head costs nothing.
            head.float().register_forward_pre_hook(lambda _, given: tuple(part.float() for part in given))
    limit = position_limit(model.config)
    length = min(max_length, limit or max_length)
    models = [deepcopy(model) for _ in devices[1:]] + [model]
    models = [replica.to(device).eval() for replica, device in zip(models, devices, strict=True)]
    query_length = query_max_length or length * 3 // 4
    return CrossEncoder(models, list(devices), tokenizer, query_length, length, batch_tokens, batch_size)
