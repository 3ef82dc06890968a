"""How large a step is, and what makes it smaller: what is told where the memory does not hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bgectl.encode import plan_batches
from bgectl.gradcache import LOSS
from bgectl.options.train import TrainOptions
from bgectl.train.collate import Collator


@dataclass(frozen=True)
class StepSize:
    """The size of a step of one process.

    Attributes:
        queries: B.
        texts: Queries and distinct passages.
        tokens: Their tokens.
        padded: The same with padding.
        pieces: Pieces they are encoded in.
        piece_texts: Texts of the piece that has most.
        piece_tokens: Tokens of the piece that has most, padding included.
        longest_query: Tokens.
        longest_passage: Tokens.
    """

    queries: int
    texts: int
    tokens: int
    padded: int
    pieces: int
    piece_texts: int
    piece_tokens: int
    longest_query: int
    longest_passage: int

    def describe(self) -> str:
        """For the user."""
        longest = max(self.longest_query, self.longest_passage)
        pieces = f"{self.pieces:,} pieces of at most {self.piece_tokens:,}" if self.pieces > 1 else "one piece"
        return (
            f"{self.queries:,} queries and {self.texts - self.queries:,} passages, {self.tokens:,} tokens "
            f"({self.padded:,} with padding) in {pieces}, the longest text of {longest:,},"
        )


def pieces_of(lengths: Sequence[int], tokens: int, texts: int) -> list[tuple[int, int]]:
    """(texts, tokens of the longest one) of each piece that texts of these lengths are cut into."""
    return [(len(batch), lengths[batch[0]]) for batch in plan_batches(lengths, tokens, texts)]


def size_of(step: Mapping[str, Any], tokens: int, collator: Collator) -> StepSize:
    """The size of a step that is cut into pieces of `tokens` tokens."""
    lengths, queries = step["lengths"], len(step["places"])
    places = step["order"].tolist()
    multiple = collator.pad_to_multiple_of or 1
    pieces = [
        (texts, texts * -(-longest // multiple) * multiple)
        for texts, longest in pieces_of(lengths, tokens, collator.piece_texts)
    ]
    return StepSize(
        queries=queries,
        texts=len(lengths),
        tokens=sum(lengths),
        padded=sum(padded for _, padded in pieces),
        pieces=len(pieces),
        piece_texts=max(texts for texts, _ in pieces),
        piece_tokens=max(padded for _, padded in pieces),
        longest_query=max(lengths[place] for place in places[:queries]),
        longest_passage=max(lengths[place] for place in places[queries:]),
    )


def shortened(places: Sequence[str], most: int = 8) -> str:
    """The first of the places."""
    return ", ".join(places[:most]) + (", …" if len(places) > most else "")


def advice(options: TrainOptions, size: StepSize, cached: bool, part: str) -> str | None:
    """What to change for a step to take less memory, what helps most first; None where all of it is done already."""
    batch = options.per_device_train_batch_size
    fewer = [f"--per-device-train-batch-size {batch // 2} (and fewer in-batch negatives)"] if batch > 1 else []
    # The loss holds vectors and scores, which grow with the batch and with nothing else.
    ways = list(fewer) if part == LOSS else []
    if not cached:
        one = min(size.piece_tokens, options.sub_batch_tokens or size.piece_tokens)
        ways.append(f"--gradient-cache (holds {one:,} tokens at a time in place of {size.padded:,})")
    if size.piece_texts > 1 and part != LOSS:
        ways.append(f"--sub-batch-tokens {size.piece_tokens // 2}" + ("" if cached else " with it"))
    if not options.auto_sub_batch and not options.fsdp and options.deepspeed is None and part != LOSS:
        ways.append("or --auto-sub-batch, which finds both by itself")
    if not options.gradient_checkpointing:
        ways.append("--gradient-checkpointing (holds the input of each layer alone, for about a third more time)")
    if not options.bf16 and not options.fp16:
        ways.append("--bf16 (half of the activations)")
    lengths = {"passage": size.longest_passage, "query": size.longest_query}
    longest = max(lengths.values())
    if longest > 8:
        shorter = " and ".join(f"--{kind}-max-len {longest // 2}" for kind in lengths if lengths[kind] == longest)
        ways.append(f"{shorter} (the longest text has {longest} tokens)")
    ways += [way for way in fewer if way not in ways]
    return "what helps most first: " + "; ".join(ways) if ways else None
