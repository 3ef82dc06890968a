"""Queries with examples in front and a suffix behind (in-context learning; bge-en-icl, arXiv 2409.15700; SPEC §6).

A query reads: example, blank line, …, query, suffix. An example is a query with the suffix and a passage that answers
it. Lengths are counted in tokens, and a text that fits is never decoded and tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from bgectl import jsonl
from bgectl.data.draw import SYMMETRIC_TEXTS, Group, Sampler
from bgectl.errors import DataError

EXAMPLE_TYPES = (*SYMMETRIC_TEXTS, "symmetric_class")
"""Types whose rows serve as examples whatever is asked for retrieval."""
MOST_EXAMPLES = 5
KEPT_FREE = 512
"""Tokens of a query's length that examples leave to the query itself."""
BETWEEN = "\n\n"


@dataclass(frozen=True)
class Wording:
    """How a model's texts are measured and cut.

    Args:
        tokenizer: The model's.
        suffix: What stands behind a query.
        end: The id that texts are ended with; None where the tokenizer does that.
    """

    tokenizer: Any
    suffix: str = ""
    end: int | None = None
    around: int = field(init=False, repr=False)
    """Tokens that the beginning and the end of a text take."""
    reserved: int = field(init=False, repr=False)
    """The same with the suffix."""

    def __post_init__(self) -> None:
        around = len(self.tokenizer("")["input_ids"]) + (self.end is not None)
        object.__setattr__(self, "around", around)
        object.__setattr__(self, "reserved", around + self.count(self.suffix))

    def count(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def length(self, text: str) -> int:
        """Tokens of a text with its beginning and end."""
        return self.count(text) + self.around

    def cut(self, text: str, tokens: int) -> str:
        """The text if it has at most so many tokens, else its beginning that does."""
        if tokens <= 0:
            return ""
        fast = self.tokenizer.is_fast
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
        ids = encoded["input_ids"]
        if len(ids) <= tokens:
            return text
        if not fast:
            decoded: str = self.tokenizer.decode(ids[:tokens])
            return decoded
        offsets = encoded["offset_mapping"]
        # A character may be several tokens; half of one is none.
        return text[: min(offsets[tokens - 1][1], offsets[tokens][0])]

    def ended(self, text: str, max_length: int) -> str:
        """A text with the suffix, the text cut so that the whole fits `max_length` tokens."""
        return self.cut(text, max_length - self.reserved) + self.suffix


@dataclass(frozen=True)
class IclTexts:
    """What the groups of a step read as.

    Args:
        wording: Suffix and measures.
        query_max_len: Tokens of a query with its examples.
        passage_max_len: Tokens of a passage.
        example_query_max_len: Tokens of an example's query.
        example_passage_max_len: Tokens of an example's answer.
        for_retrieval: Rows of all types serve as examples.
    """

    wording: Wording
    query_max_len: int
    passage_max_len: int
    example_query_max_len: int
    example_passage_max_len: int
    for_retrieval: bool = True

    def queries(self, groups: Sequence[Group], draws: Callable[[int], Sampler]) -> list[str]:
        """Each group's query behind examples of other groups of the step.

        Args:
            groups: Of one dataset.
            draws: The randomness of a group's examples: how many, and which.
        """
        examples: dict[int, tuple[str, int]] = {}
        return [self._query(place, groups, draws(place), examples) for place in range(len(groups))]

    def _query(self, place: int, groups: Sequence[Group], draws: Sampler, examples: dict[int, tuple[str, int]]) -> str:
        """`examples` keeps those that are made: text and tokens."""
        count = draws.choice(range(MOST_EXAMPLES + 1))
        prefix = ""
        if count and (self.for_retrieval or groups[0].type in EXAMPLE_TYPES):
            # One more than wanted: the query itself may be among them.
            chosen = draws.sample(range(len(groups)), min(count + 1, len(groups)))
            prefix = self._prefix([other for other in chosen if other != place][:count], groups, examples)
        return self.wording.ended(prefix + groups[place].query, self.query_max_len)

    def _prefix(self, chosen: Sequence[int], groups: Sequence[Group], examples: dict[int, tuple[str, int]]) -> str:
        room = self.query_max_len - KEPT_FREE
        prefix, filled = "", self.wording.around
        for other in chosen:
            if other not in examples:
                text = self._example(groups[other])
                examples[other] = text, self.wording.count(text)
            text, tokens = examples[other]
            # Tokens across the border may join, so the sum is a bound; the whole is counted where that does not do.
            if filled + tokens > room and self.wording.length(prefix + text) > room:
                break
            prefix, filled = prefix + text, filled + tokens
        return prefix

    def _example(self, group: Group) -> str:
        query = self.wording.cut(group.query, self.example_query_max_len)
        answer = self.wording.cut(group.answer, self.example_passage_max_len)
        return f"{query}{self.wording.suffix}{answer}{BETWEEN}"

    def passage(self, text: str, group: Group) -> str:
        """A passage of a group; where passages are of the query's kind, with the suffix."""
        if group.type not in SYMMETRIC_TEXTS:
            return text
        return self.wording.ended(text, self.passage_max_len)


def _examples(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or place in the list, example) of a file in either form."""
    with jsonl.open_binary(path) as stream:
        start = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start != b"[":
        yield from jsonl.read_objects(path)
        return
    with jsonl.open_binary(path) as stream:
        try:
            found = orjson.loads(stream.read().removeprefix(b"\xef\xbb\xbf"))
        except orjson.JSONDecodeError as problem:
            raise DataError(f"not valid JSON: {problem.msg}", where=f"{path}:{problem.lineno}") from problem
    for number, example in enumerate(found, start=1):
        if not isinstance(example, dict):
            raise DataError(f"expected a JSON object, found {jsonl.json_type(example)}", where=f"{path}: item {number}")
        yield number, example


def read_examples(path: Path, template: str, instruction: str | None) -> str:
    """The examples of a task as the text that is put before its queries.

    Args:
        path: Lines, or a JSON list, of objects with `query`, `response` and perhaps `instruct`.
        template: `{}` for each of instruction, query and response.
        instruction: Of examples that name none.

    Raises:
        DataError: The file holds something else; named with line and field.
    """
    parts = []
    for number, example in _examples(path):
        for name in ("query", "response"):
            if not isinstance(example.get(name), str) or not example[name].strip():
                raise DataError(
                    "a text is missing", where=f"{path}:{number}: `{name}`",
                    hint='an example is {"instruct": "...", "query": "...", "response": "..."}',
                )  # fmt: skip
        given = example.get("instruct", instruction) or ""
        if not isinstance(given, str):
            raise DataError("is not a text", where=f"{path}:{number}: `instruct`")
        parts.append(template.format(given, example["query"], example["response"]))
    if not parts:
        raise DataError("holds no examples", where=str(path))
    return BETWEEN.join(parts) + BETWEEN
