"""Lengths of texts: exact percentiles from counts of each length, so that memory does not grow with the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bgectl import console
from bgectl.errors import RunError

BATCH = 4096
"""Texts tokenised at a time; the tokenizer spreads them over the cores."""


def percentile(lengths: Counter[int], percent: float) -> int:
    """The smallest length that at least `percent` of the texts do not exceed; 0 of no texts."""
    total = lengths.total()
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen * 100 >= percent * total:
            return length
    return 0


def summary_of(lengths: Counter[int]) -> dict[str, int | float]:
    """Count, mean, percentiles and maximum."""
    total = lengths.total()
    mean = sum(length * count for length, count in lengths.items()) / total if total else 0.0
    return {
        "count": total, "mean": round(mean, 1), "p50": percentile(lengths, 50), "p90": percentile(lengths, 90),
        "p99": percentile(lengths, 99), "max": max(lengths, default=0),
    }  # fmt: skip


class TokenCounter:
    """Counts the tokens of queries (with the row's `prompt`) and passages, special tokens included.

    Args:
        name: Folder or name of the tokenizer.
        query_max_len: Tokens at which a query is cut.
        passage_max_len: Tokens at which a passage is cut.

    Raises:
        RunError: The tokenizer cannot be loaded.
    """

    def __init__(self, name: str, query_max_len: int, passage_max_len: int) -> None:
        self._lengths_of = length_counter(name)
        self._limits = {"queries": query_max_len, "passages": passage_max_len}
        self._waiting: dict[str, list[str]] = {side: [] for side in self._limits}
        self.lengths: dict[str, Counter[int]] = {side: Counter() for side in self._limits}

    def add(self, raw: dict[str, Any]) -> None:
        """Count a row without errors."""
        self._waiting["queries"].append((raw.get("prompt") or "") + raw["query"])
        self._waiting["passages"] += [*raw["pos"], *(raw.get("neg") or ())]
        if sum(map(len, self._waiting.values())) >= BATCH:
            self._count()

    def _count(self) -> None:
        for side, texts in self._waiting.items():
            self.lengths[side].update(self._lengths_of(texts))
            texts.clear()

    def summary(self) -> dict[str, dict[str, int | float]]:
        """Percentiles of `queries` and `passages`, their limits and how many texts would be cut."""
        self._count()
        return {
            side: summary_of(lengths)
            | {"limit": limit, "cut": sum(count for length, count in lengths.items() if length > limit)}
            for (side, lengths), limit in zip(self.lengths.items(), self._limits.values(), strict=True)
        }


def length_counter(name: str) -> Callable[[Sequence[str]], list[int]]:
    """What counts the tokens of texts, special tokens included, without loading torch where the tokenizer is a
    tokenizer.json (any but a few old ones).

    Args:
        name: Folder or name of the tokenizer.

    Raises:
        RunError: The tokenizer cannot be loaded.
    """
    file = Path(name, "tokenizer.json")
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(name, "tokenizer.json"))
        except Exception:
            # No such file, no such name, or no network: the other way tells which.
            file = Path()
    if not file.is_file():
        loaded = _load(name)
        return lambda texts: _token_counts(loaded, texts)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as problem:
        raise RunError(f"the tokenizer cannot be loaded: {problem}", where=str(file)) from problem
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(encoding) for encoding in tokenizer.encode_batch_fast(list(texts))]


def _load(name: str) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    # "Token indices sequence length is longer than ..." is what we are about to count.
    if not console.verbose():
        logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        first = str(problem).strip().split("\n")[0][:300]
        raise RunError(
            f"the tokenizer cannot be loaded: {first}", where=name,
            hint="a model's folder works without a network; for the hub check the name and the network",
        ) from problem  # fmt: skip


def _token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    if not texts:
        return []
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
    fast.no_truncation()
    fast.no_padding()
    return [len(encoding) for encoding in fast.encode_batch_fast(list(texts))]
