"""What is said before anything is trained: the plan, an example of each dataset, and an estimate of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bgectl import console
from bgectl.data.datasets import Collection
from bgectl.errors import UsageError
from bgectl.models.encoder import Encoder
from bgectl.models.m3 import M3Encoder
from bgectl.options.train import TrainOptions
from bgectl.train.batches import BatchPlan, RowKey
from bgectl.train.collate import Collator, Groups
from bgectl.train.probe import Looked, look

MIB = 2**20
UNCUT = 1 << 30


def report(plan: BatchPlan, collection: Collection, options: TrainOptions) -> None:
    """Say what will be trained on, dataset by dataset, before anything is trained.

    Raises:
        UsageError: Distillation is asked for and no row has teacher scores.
    """
    rows = [
        [line.name, f"{line.rows:,}", str(line.batch_size), str(line.group_size), f"{line.steps:,}",
         f"{line.left_out:,}" + (f" ({line.why})" if line.why else "")]
        for line in plan.report()
    ]  # fmt: skip
    heads = ["dataset", "rows", "queries a step", "passages a query", "steps", "left out"]
    console.table("Training data", heads, rows, on_stdout=options.dry_run)
    mixed = "" if options.same_dataset_within_batch else " (datasets mixed)"
    many = f", on each of {plan.world} processes" if plan.world > 1 else ""
    tell = say if options.dry_run else console.info
    tell(f"{len(plan):,} steps an epoch{mixed}{many}")
    if options.knowledge_distillation:
        scored = sum(file.scored for file in collection.files())
        total = sum(len(file) for file in collection.files())
        tell(f"distillation: {scored:,} of {total:,} rows have teacher scores")
        if not scored:
            raise UsageError(
                "no row has teacher scores", where="--knowledge-distillation", hint="`bgectl score` adds them"
            )


def say(text: str) -> None:
    console.stdout().print(text, markup=False)


def show_dry_run(
    plan: BatchPlan, groups: Groups, collator: Collator, encoder: Encoder, options: TrainOptions
) -> Looked:
    """Print what a dry run tells without taking a step, on stdout; returns the steps that were looked at."""
    say(f"{optimiser_steps(plan, options):,} steps of the optimiser in all")
    for number in range(len(groups.collection.datasets)):
        show_example(number, groups, collator)
    looked = look(plan, groups, collator, weight_of(encoder, options))
    show_memory(estimate_memory(looked.all, encoder, options, plan.world), looked.count)
    return looked


def optimiser_steps(plan: BatchPlan, options: TrainOptions) -> int:
    """Steps of the optimiser in the whole run."""
    updates = math.ceil(len(plan) / options.gradient_accumulation_steps)
    return options.max_steps if options.max_steps > 0 else math.ceil(updates * options.num_train_epochs)


def show_example(number: int, groups: Groups, collator: Collator) -> None:
    """Print the first row of a dataset as the model will see it: with prompts, special tokens and cut to length."""
    dataset = groups.collection.datasets[number]
    row = sum(len(before) for before in groups.collection.datasets[:number])
    # Examples in a query come from other rows of its step.
    count = min(len(dataset), dataset.batch_size) if collator.icl else 1
    several = [groups[RowKey(0, number, place, row + place)] for place in range(count)]
    drawn = several[0]
    say(f"\n{dataset.name}: the row at {drawn.place}, as drawn in the first epoch")
    queries, passages = collator.texts(several)
    texts = [("query", queries[0], collator.query_max_len)]
    texts += [
        ("positive" if place == 0 else "negative", text, collator.passage_max_len)
        for place, text in enumerate(passages[: len(drawn.group.passages)])
    ]
    for place, (kind, text, length) in enumerate(texts):
        whole = len(collator.tokens([text], UNCUT)[0])
        ids = collator.tokens([text], length)[0]
        cut = f", cut from {whole}" if whole > len(ids) else ""
        score = ""
        if drawn.group.scores is not None and place > 0:
            score = f", teacher {drawn.group.scores[place - 1]:.4g}"
        say(f"  {kind} ({len(ids)} tokens{cut}{score}): {collator.tokenizer.decode(ids)}")


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    Attributes:
        weights: Weights, with their copies in the precision of the computation.
        gradients: Gradients.
        optimizer: State of the optimiser.
        activations: What the largest of the sampled steps holds for its backward pass.
        scores: Vectors and similarities of that step, of all processes with cross-device negatives.
        tokens: Tokens of that step, padding included.
        pieces: Pieces it is encoded in.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    scores: int
    tokens: int
    pieces: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.scores


def estimate_memory(steps: Sequence[dict[str, Any]], encoder: Encoder, options: TrainOptions, world: int) -> Memory:
    """Estimate what training holds, from what a small batch is seen to hold.

    Args:
        steps: Steps as the collator gives them.
        encoder: The model; it is run on two texts.
        options: Precision, gradient caching and what shards the model count.
        world: W.
    """
    given = options.deepspeed or ""
    stage = 3 if options.fsdp else int(given) if given.isdigit() else 0
    parameters = list(encoder.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    own = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    # What is held in four bytes is copied for a computation in half precision.
    half = 2 * sum(p.numel() for p in parameters if p.element_size() == 4) if options.bf16 or options.fp16 else 0
    # AdamW keeps two numbers for each weight; optimisers in 8 bits a quarter of that, Adafactor nearly nothing.
    state = {"adafactor": 0.1, "sgd": 0.0}.get(options.optim, 2.0 if "8bit" in options.optim else 8.0)
    held = held_by_pieces(encoder, options)
    cached = caches(options)
    chosen = max(steps, key=lambda step: (max if cached else sum)(held(step)))
    activations = held(chosen)
    queries = len(chosen["places"])
    candidates = queries * chosen["group_size"] * (world if options.cross_device else 1)
    vectors = (queries + candidates) * encoder.dimension * 4
    return Memory(
        weights=(own + half) // (world if stage == 3 else 1),
        gradients=4 * trained // (world if stage >= 2 else 1),
        optimizer=int(state * trained) // (world if stage >= 1 else 1),
        activations=int(max(activations) if cached else sum(activations)),
        # Scores, their masks, the softmax and its gradient.
        scores=4 * vectors + 4 * 4 * queries * candidates + head_bytes(chosen, encoder, options, world),
        tokens=sum(piece["input_ids"].numel() for piece in chosen["pieces"]),
        pieces=len(activations),
    )


def head_bytes(step: dict[str, Any], encoder: Encoder, options: TrainOptions, world: int) -> int:
    """What the sparse and the ColBERT head add to the scores of a step; 0 for an encoder without.

    The vectors of all tokens, normalised, and their gradients; which token of each candidate was the best for each
    query token; and the scores of four heads in place of one.
    """
    if not isinstance(encoder, M3Encoder):
        return 0
    queries = len(step["places"])
    others = world if options.cross_device == "all" else 1
    places = step["order"].tolist()
    query_tokens = sum(step["lengths"][place] for place in places[:queries])
    passages = set(places[queries:])
    passage_tokens = others * sum(step["lengths"][place] for place in passages)
    vectors = 4 * (query_tokens + passage_tokens) * encoder.colbert_linear.out_features
    best = 4 * query_tokens * len(passages) * others
    candidates = queries * step["group_size"] * others
    return 3 * vectors + 2 * best + 3 * 4 * 4 * queries * candidates


def caches(options: TrainOptions) -> bool:
    """Whether activations of one piece at a time are held: asked for, or meant by `--sub-batch-size`."""
    return options.sub_batch_size is not None if options.gradient_cache is None else options.gradient_cache


def held_by_pieces(encoder: Encoder, options: TrainOptions) -> Callable[[dict[str, Any]], list[float]]:
    """Bytes of activations of each piece of a step."""
    per_text = held_per_text(encoder, options)

    def held(step: dict[str, Any]) -> list[float]:
        shapes = [piece["input_ids"].shape for piece in step["pieces"]]
        return [float(texts * per_text(length)) for texts, length in shapes]

    return held


def weight_of(encoder: Encoder, options: TrainOptions) -> Callable[[dict[str, Any]], float]:
    """Bytes of activations of a step, all of its pieces together."""
    held = held_by_pieces(encoder, options)
    return lambda step: sum(held(step))


def held_per_text(encoder: Encoder, options: TrainOptions) -> Any:
    """Bytes that autograd holds for one text of L tokens, as a function of L: a·L + b·L².

    The square part is there where attention writes its matrix down, and 0 for fused attention.
    """
    # Also a part that does not grow with L, such as the weights' copies in half precision: those are counted already.
    first, second, third = (saved_bytes(encoder, length, options) / 2 for length in (8, 16, 32))
    square = max(0.0, (third - second - 2 * (second - first)) / (32**2 - 16**2 - 2 * (16**2 - 8**2)))
    line = (third - second - square * (32**2 - 16**2)) / 16
    return lambda length: line * length + square * length**2


def saved_bytes(encoder: Encoder, length: int, options: TrainOptions) -> int:
    """Bytes that a forward pass of two texts of `length` tokens keeps for the backward pass, weights aside."""
    device = next(encoder.parameters()).device
    own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.ones(2, length, dtype=torch.long, device=device)
    half = torch.bfloat16 if options.bf16 else torch.float16
    was_training, state = encoder.training, torch.get_rng_state()
    encoder.train()
    with (
        torch.autocast(device.type, dtype=half, enabled=options.bf16 or options.fp16),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        held = encoder.outputs(ids, torch.ones_like(ids))
    del held
    encoder.train(was_training)
    torch.set_rng_state(state)
    return sum(seen.values())


def show_memory(memory: Memory, steps: int) -> None:
    """Print the estimate."""
    names = ("weights", "gradients", "optimizer", "activations", "scores")
    rows = [[name, f"{getattr(memory, name) / MIB:,.0f}"] for name in names]
    rows.append(["in all", f"{memory.total / MIB:,.0f}"])
    say("\nMemory of one process, estimated:")
    console.table("", ["what", "MiB"], rows, on_stdout=True)
    say(
        f"for the largest of {steps} steps looked at: {memory.tokens:,} tokens with padding in {memory.pieces} pieces; "
        "the libraries themselves, and what a layer computes with for a moment, come on top"
    )
