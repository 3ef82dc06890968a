"""Real steps before training: what they hold, how long they take, and the largest pieces that fit.

They are taken with the Trainer's own model and optimiser, at a learning rate of 0 and without gradients, and leave no
trace: afterwards the weights, the optimiser and the random numbers are what they were before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from bgectl import console
from bgectl.distributed import largest
from bgectl.gradcache import BACKWARD, RandomState
from bgectl.train.batches import BatchPlan
from bgectl.train.collate import Collator, Groups, as_tensors
from bgectl.train.memory import is_full
from bgectl.train.size import pieces_of
from bgectl.train.trainer import AFTER, WHOLE, EmbedderTrainer, Packing

MARGIN = 0.1
"""Share of the memory that is kept free: steps differ, and an allocator cannot use every gap."""

PATIENCE = 60.0
"""Seconds after which no larger pieces are tried."""

ORDINARY, LONG = 20, 8
"""Steps looked at: spread evenly over the plan, and those whose rows are the longest in bytes."""

TIMED = 4
"""Of the ordinary steps, how many are taken; each stands for its share of them, by length."""

PLANNED = 200_000
"""Rows whose bytes are looked up at most."""

UNIT = 8.0
"""Bytes that a token has at most, roughly: what is longer is cut anyway."""


@dataclass(frozen=True)
class Looked:
    """Steps of the plan.

    Attributes:
        longest: The one that weighs most.
        ordinary: Others, spread evenly over the plan.
        weight: Bytes of activations that the longest is estimated to hold.
        seconds: Reading and tokenising took, for one step.
        count: Steps looked at.
    """

    longest: dict[str, Any]
    ordinary: list[dict[str, Any]]
    weight: float
    seconds: float
    count: int

    @property
    def all(self) -> list[dict[str, Any]]:
        """All of them."""
        return [self.longest, *self.ordinary]


def look(plan: BatchPlan, groups: Groups, collator: Collator, weight: Callable[[dict[str, Any]], float]) -> Looked:
    """Find the longest step of the first epoch, by the bytes of its rows and then by its tokens, and ordinary ones.

    Args:
        plan: The steps.
        groups: Rows to groups.
        collator: Groups to tensors.
        weight: Bytes of activations of a step, by an estimate.
    """
    steps = plan.batches(0)
    rows = sum(map(len, steps))
    stride = max(1, rows // PLANNED)
    longest = max(collator.query_max_len, collator.passage_max_len)

    def size(place: int) -> float:
        sizes = []
        for key in steps[place]:
            dataset = groups.collection.datasets[key.dataset]
            sizes.append(min(dataset.size(key.position), UNIT * longest * (dataset.group_size + 1)))
        return sum(sizes)

    long = sorted(range(0, len(steps), stride), key=size, reverse=True)[:LONG]
    count = min(ORDINARY, len(steps))
    spread = [number * len(steps) // count for number in range(count)]
    started = time.perf_counter()
    collated = {
        place: collator([groups[key] for key in steps[place]]) for place in dict.fromkeys([*spread, *long])
    }  # fmt: skip
    seconds = (time.perf_counter() - started) / len(collated)
    heaviest = max(collated.values(), key=weight)
    return Looked(heaviest, [collated[place] for place in spread], weight(heaviest), seconds, len(collated))


@dataclass(frozen=True)
class Taken:
    """A step that was taken.

    Attributes:
        peak: Bytes that tensors held at most; on a CPU, the whole process.
        reserved: The same with what the allocator keeps ready.
        seconds: Of the gradients.
        optimiser: Seconds of the optimiser.
    """

    peak: int
    reserved: int
    seconds: float
    optimiser: float


class Rehearsal:
    """Steps with a Trainer that is about to begin. With several processes, all do the same; a step fits if it fits all.

    Args:
        trainer: The Trainer; its optimiser has taken no step.
        model: The wrapped model.

    Attributes:
        limit: Bytes that may be held; see `MARGIN`.
        stopped: The last search for the largest pieces ended for want of time.
    """

    def __init__(self, trainer: EmbedderTrainer, model: nn.Module) -> None:
        self.trainer = trainer
        self.model = model
        self.meter = trainer.meter
        self.meter.forget()
        self.base = self.meter.held()
        self.free, self.total = self.meter.room()
        self.limit = int((self.base + self.free) * (1 - MARGIN))
        self.stopped = False

    def step(self, inputs: dict[str, Any], packing: Packing) -> Taken | None:
        """Take a step; None where it does not fit. `fits` says whether it does so with room to spare."""
        trainer = self.trainer
        trainer.packing = packing
        self.model.train()
        self.meter.forget()
        self.meter.reset()
        self.meter.wait()
        started = time.perf_counter()
        done = trainer.attempt(self.model, [inputs]) is not None
        self.meter.wait()
        middle = time.perf_counter()
        done = done and self._optimise()
        self.meter.wait()
        ended = time.perf_counter()
        peak = self.meter.peak()
        self.model.zero_grad()
        return Taken(*peak, middle - started, ended - middle) if done else None

    def fits(self, inputs: dict[str, Any], packing: Packing) -> bool:
        """Whether a step can be taken, and in all processes with room to spare."""
        taken = self.step(inputs, packing)
        return not self._anywhere(taken is None or taken.peak > self.limit)

    def _optimise(self) -> bool:
        """A step of the optimiser that changes nothing; whether there is memory for it."""
        trainer = self.trainer
        full = False
        try:
            trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
            if trainer.args.max_grad_norm > 0:
                torch.nn.utils.clip_grad_norm_(trained, trainer.args.max_grad_norm)
            for parameter in trained:
                assert parameter.grad is not None
                parameter.grad.zero_()
            trainer._plain_optimizer.step()
        except (RuntimeError, MemoryError) as problem:
            if not is_full(problem):
                raise
            full = True
        return not self._anywhere(full)

    def _anywhere(self, here: bool) -> bool:
        return bool(largest(int(here), self.trainer.args.device))

    def largest_packing(self, inputs: dict[str, Any], packing: Packing) -> Packing | None:
        """The largest pieces that fit a step, cached or not as in `packing`; None where none do.

        Args:
            inputs: The step.
            packing: No more tokens than here.
        """
        lengths = inputs["lengths"]
        low = largest(max(lengths), self.trainer.args.device)
        high = min(packing.tokens, largest(max(lengths) * len(lengths), self.trainer.args.device))
        if packing.cached:
            tokens = self._largest_pieces(inputs, low, max(low, high))
        else:
            tokens = self._largest_whole(inputs, low, max(low, high))
        found = None if tokens is None else Packing(tokens, packing.cached)
        # Pieces were tried one by one; a whole step also holds vectors and scores.
        while found is not None and packing.cached and not self.fits(inputs, found):
            found = self.trainer.smaller()
        return found

    def ready(self, inputs: dict[str, Any]) -> bool:
        """Make what is there from the second step on, the optimiser's state; whether there is memory for it."""
        low = largest(max(inputs["lengths"]), self.trainer.args.device)
        done = not self._anywhere(self._piece(inputs, low) is None) and self._optimise()
        self.model.zero_grad()
        return done

    def too_much(self, activations: float) -> bool:
        """Whether a step of so many bytes should not even be tried: where asking for too much ends the process."""
        trained = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        return self._anywhere(self.meter.kills and self.base + 1.1 * activations + 3 * trained > self.limit)

    def patience(self) -> Callable[[], bool]:
        """Tells, to all processes alike, whether enough time was spent."""
        end = time.monotonic() + PATIENCE
        self.stopped = False

        def tired() -> bool:
            self.stopped = self._anywhere(time.monotonic() > end)
            return self.stopped

        return tired

    def _largest_whole(self, inputs: dict[str, Any], low: int, high: int) -> int | None:
        """The largest pieces without gradient caching, by the whole step: larger ones are padded more."""
        held, last = self.meter.held(), 0.0

        def fits(tokens: int) -> bool:
            nonlocal last
            padded = sum(texts * longest for texts, longest in pieces_of(inputs["lengths"], tokens, 1 << 30))
            if self._anywhere(self.meter.kills and held + 1.1 * last * padded > self.limit):
                return False
            taken = self.step(inputs, Packing(tokens, cached=False))
            if taken is not None:
                last = max(taken.peak - held, 1) / padded
            return not self._anywhere(taken is None or taken.peak > self.limit)

        return largest_that_fits(fits, low, high, self.patience())

    def _largest_pieces(self, inputs: dict[str, Any], low: int, high: int) -> int | None:
        """The largest pieces for gradient caching, by the piece of the step that takes most."""
        last = (0, 0)

        def fits(tokens: int) -> bool:
            nonlocal last
            # Where asking for too much ends the process, nothing is tried that is not likely to fit.
            grown = last[1] * tokens / last[0] if last[0] else 0.0
            if self._anywhere(self.meter.kills and held + 1.1 * grown > self.limit):
                return False
            peak = self._piece(inputs, tokens)
            if peak is not None:
                last = (tokens, max(peak - held, 1))
            return not self._anywhere(peak is None or peak > self.limit)

        self.meter.forget()
        held = self.meter.held()
        found = largest_that_fits(fits, low, high, self.patience())
        self.model.zero_grad()
        return found

    def _piece(self, inputs: dict[str, Any], tokens: int) -> int | None:
        """Bytes held at most by the largest piece forth and back; None where it does not fit in here."""
        trainer = self.trainer
        trainer.in_hand, trainer.packing = inputs, Packing(tokens, True)
        step = replace(trainer.data_collator, piece_tokens=tokens).cut_anew(as_tensors(inputs))
        piece = max(step["pieces"], key=lambda piece: piece["input_ids"].numel())
        self.meter.forget()
        self.meter.reset()
        self.model.train()
        try:
            with trainer._noted(BACKWARD), trainer.accelerator.no_sync(self.model):
                with trainer.compute_loss_context_manager():
                    given = self.model([trainer._prepare_inputs(piece)])
                sent = [part for part in given.values() if part.requires_grad]
                torch.autograd.backward(sent, [torch.zeros_like(part) for part in sent])
        except (RuntimeError, MemoryError) as problem:
            if not is_full(problem):
                raise
            return None
        self.meter.wait()
        return self.meter.peak()[0]


def largest_that_fits(fits: Callable[[int], bool], low: int, high: int, tired: Callable[[], bool]) -> int | None:
    """The largest number from `low` to `high` that fits, to an eighth; None where `low` does not.

    Args:
        fits: Whether a number does; larger ones than one that does not are taken not to.
        low: The smallest number.
        high: The largest.
        tired: Whether to be content with what fits.
    """
    if not fits(low):
        return None
    good, bad = low, high + 1
    while good < high and not tired():
        # Doubled until one does not fit, then the middle.
        tried = min(2 * good, high) if bad > high else (good + bad) // 2 // low * low
        if not good < tried < bad or (bad <= high and bad - good <= max(good // 8, low)):
            break
        if fits(tried):
            good = tried
        else:
            bad = tried
    return good


@contextmanager
def rehearsing(trainer: EmbedderTrainer) -> Iterator[Rehearsal]:
    """Try steps, and leave the Trainer as it was. Its optimiser has taken no step yet."""
    random, packing, shown = RandomState(), trainer.packing, (trainer.shown, trainer.shown_steps)
    optimizer, model = trainer._plain_optimizer, trainer.model_wrapped
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    try:
        yield Rehearsal(trainer, model)
    finally:
        model.zero_grad()
        optimizer.state.clear()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        trainer.packing, trainer.in_hand, trainer.part = packing, {}, AFTER
        trainer.shown, trainer.shown_steps = shown
        random.restore()
        trainer.meter.forget()


def choose(rehearsal: Rehearsal, looked: Looked, asked: Packing, *, may_cache: bool) -> Packing:
    """The largest pieces that fit, up to those asked for; without gradient caching where that fits.

    Args:
        rehearsal: Where to try.
        looked: Steps.
        asked: No more tokens than here, and gradient caching where it is on here.
        may_cache: It may be turned on.

    Raises:
        RunError: The smallest do not fit.
    """
    found = None
    ready = rehearsal.ready(looked.longest)
    if ready and not asked.cached and not rehearsal.too_much(looked.weight):
        if rehearsal.fits(looked.longest, asked):
            return asked
        found = None if may_cache else rehearsal.largest_packing(looked.longest, asked)
    if ready and (may_cache or asked.cached):
        found = rehearsal.largest_packing(looked.longest, replace(asked, cached=True))
    if found is None:
        raise rehearsal.trainer.out_of_memory(of=f"the longest of {looked.count} steps looked at")
    return found


class Fitting(TrainerCallback):
    """Before the first step, chooses pieces that fit; see `choose`.

    Args:
        trainer: The Trainer.
        look: Finds the steps to try.
    """

    def __init__(self, trainer: EmbedderTrainer, look: Callable[[], Looked]) -> None:
        self.trainer = trainer
        self.look = look

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, looked = self.trainer, self.look()
        with rehearsing(trainer) as rehearsal:
            chosen = choose(rehearsal, looked, trainer.packing, may_cache=trainer.may_cache)
        trainer.packing = chosen
        console.info(
            f"steps are taken {chosen}: the largest that fit the longest of {looked.count} steps looked at, with "
            f"{MARGIN:.0%} of {rehearsal.meter.name}'s memory kept free"
        )


@dataclass(frozen=True)
class Probe:
    """What was measured before a run.

    Attributes:
        name: Of the device.
        total: Its bytes.
        free: Bytes free when the model, and no more, was there.
        limit: Bytes that may be held.
        asked: How the run would take its steps.
        longest: The longest step, as asked for; None where it does not fit.
        fitting: The largest pieces that fit, with gradient caching as asked for; None where none do.
        more: Larger ones may fit too; there was no time to try them.
        cached: The longest step with gradient caching where it is not asked for; None where it does not fit either.
        cached_fitting: The largest pieces that fit with it.
        cached_more: Larger ones may fit too.
        used: How the ordinary steps were taken; None where none fit.
        ordinary: Those that were taken.
        seconds: Of the gradients of a step, over the plan.
    """

    name: str
    total: int
    free: int
    limit: int
    asked: Packing
    longest: Taken | None
    fitting: Packing | None
    more: bool
    cached: Taken | None
    cached_fitting: Packing | None
    cached_more: bool
    used: Packing | None
    ordinary: list[Taken]
    seconds: float

    @property
    def optimiser(self) -> float:
        """Seconds of the optimiser."""
        return sum(taken.optimiser for taken in self.ordinary) / max(len(self.ordinary), 1)


def measure(rehearsal: Rehearsal, looked: Looked, asked: Packing) -> Probe:
    """Take the longest step as asked for and in other pieces, and some ordinary ones.

    Args:
        rehearsal: Where.
        looked: The steps.
        asked: How the run would take them.
    """
    step, endless = looked.longest, replace(asked, tokens=WHOLE)
    longest = fitting = cached = cached_fitting = used = None
    ordinary: list[Taken] = []
    seconds, more, cached_more = 0.0, False, False
    ready = rehearsal.ready(step)
    possible = ready and (asked.cached or not rehearsal.too_much(looked.weight))
    if possible:
        longest = rehearsal.step(step, asked)
    if longest is not None and longest.peak > rehearsal.limit:
        longest = None
    # What is timed comes before what is tried: a CPU's memory is not given back as a whole.
    if longest is not None:
        used = asked
        ordinary, seconds = take_ordinary(rehearsal, looked, asked)
    if ready and not asked.cached:
        cached = rehearsal.step(step, replace(asked, cached=True))
        cached_fitting = rehearsal.largest_packing(step, replace(endless, cached=True))
        cached_more = rehearsal.stopped
        if cached is None and cached_fitting is not None:
            cached = rehearsal.step(step, cached_fitting)
    if possible:
        fitting, more = rehearsal.largest_packing(step, endless), rehearsal.stopped
    if used is None and (found := fitting or cached_fitting) is not None:
        used = replace(found, tokens=min(found.tokens, asked.tokens))
        ordinary, seconds = take_ordinary(rehearsal, looked, used)
    return Probe(
        rehearsal.meter.name, rehearsal.total, rehearsal.free, rehearsal.limit, asked, longest, fitting, more, cached,
        cached_fitting, cached_more, used, ordinary, seconds,
    )  # fmt: skip


def take_ordinary(rehearsal: Rehearsal, looked: Looked, packing: Packing) -> tuple[list[Taken], float]:
    """Take some of the ordinary steps; returns them and the seconds of a step of the plan, without the optimiser."""
    rehearsal.step(looked.ordinary[0], packing)
    steps, seconds = [], 0.0
    for part in strata(looked.ordinary):
        middle = part[len(part) // 2]
        taken = rehearsal.step(middle, packing)
        if taken is None:
            continue
        steps.append(taken)
        mean = sum(step["tokens"] for step in part) / len(part)
        seconds += taken.seconds * mean / middle["tokens"] * len(part) / len(looked.ordinary)
    return steps, seconds


def strata(steps: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The steps by their tokens, in up to `TIMED` parts of nearly the same number."""
    ordered = sorted(steps, key=lambda step: step["tokens"])
    parts = min(TIMED, len(ordered))
    return [ordered[len(ordered) * part // parts : len(ordered) * (part + 1) // parts] for part in range(parts)]
