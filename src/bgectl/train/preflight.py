"""What a dry run tells of the steps that it took: memory, the largest pieces that fit, and the hours of the run."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from bgectl import console
from bgectl.encode import Embedder
from bgectl.evaluate.judged import Judged
from bgectl.models.encoder import Encoder
from bgectl.options.train import TrainOptions
from bgectl.train.memory import Meter
from bgectl.train.probe import MARGIN, Looked, Probe, Taken
from bgectl.train.report import MIB, say
from bgectl.train.trainer import WHOLE, EmbedderTrainer, Packing

SAMPLED_TEXTS = 64
"""Of the held-out passages, how many are encoded for an estimate."""

WRITTEN = 64 * MIB
"""Bytes that are written to see how fast the disk is."""


class _Stop(Exception):
    """Training was only to be prepared."""


class _Before(TrainerCallback):
    def __init__(self, take: Callable[[], None]) -> None:
        self.take = take

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.take()
        raise _Stop


def before_training(trainer: EmbedderTrainer, take: Callable[[], None]) -> None:
    """Prepare training, call `take` where the first step would be, and stop."""
    trainer.callback_handler.callbacks.insert(0, _Before(take))
    try:
        trainer.train()
    except _Stop:
        return


def mib(count: int) -> str:
    """Bytes in MiB."""
    return f"{count / MIB:,.0f}"


def show_probe(probe: Probe, looked: Looked, *, chosen: bool) -> None:
    """Print what was measured; `chosen` where the pieces were found by --auto-sub-batch."""
    say(f"\nMeasured on {probe.name}: {mib(probe.total)} MiB, of which {mib(probe.free)} MiB were free")
    rows = [_row("longest step", probe.asked, probe.longest)]
    if not probe.asked.cached:
        tokens = min(probe.asked.tokens, probe.cached_fitting.tokens if probe.cached_fitting else probe.asked.tokens)
        rows.append(_row("longest step", Packing(tokens, cached=True), probe.cached))
    if probe.ordinary and probe.used:
        most = max(probe.ordinary, key=lambda taken: taken.peak)
        rows.append(_row("ordinary steps", probe.used, most))
    console.table("", ["peak of the", "pieces of", "cached", "MiB held", "MiB reserved"], rows, on_stdout=True)
    step = looked.longest
    say(
        f"the longest of {looked.count} steps looked at: {len(step['places'])} queries, {step['tokens']:,} tokens, the "
        f"longest text {max(step['lengths']):,}, rows from {step['places'][0]} on"
    )
    if chosen:
        say(f"--auto-sub-batch takes steps {probe.asked}")
    whole = max(step["lengths"]) * len(step["lengths"])
    name = "with" if probe.asked.cached else "without"
    largest = _fitting(probe.fitting, whole, probe.more)
    say(f"the largest --sub-batch-tokens that fits {name} gradient caching: {largest}")
    if not probe.asked.cached:
        say(f"the largest with --gradient-cache: {_fitting(probe.cached_fitting, whole, probe.cached_more)}")
    say(f"(it fits where {MARGIN:.0%} of the memory stays free: {mib(probe.limit)} MiB may be held)")


def _row(name: str, packing: Packing, taken: Taken | None) -> list[str]:
    pieces = "any size" if packing.tokens >= WHOLE else f"{packing.tokens:,} tokens"
    peaks = [mib(taken.peak), mib(taken.reserved)] if taken else ["does not fit", "-"]
    return [name, pieces, "yes" if packing.cached else "no", *peaks]


def _fitting(packing: Packing | None, whole: int, more: bool) -> str:
    if packing is None:
        return "none"
    if packing.tokens >= whole:
        return f"{packing.tokens:,} (the whole step in one piece)"
    return f"{packing.tokens:,}" + (" at least; there was no time to try larger ones" if more else "")


@dataclass
class Hours:
    """The seconds of a whole run.

    Args:
        steps: Of the optimiser.
        probe: What was measured.
        looked: The steps it was measured on.
        options: What else there is to do.
    """

    steps: int
    probe: Probe
    looked: Looked
    options: TrainOptions
    evaluation: float = 0.0
    """Seconds of one evaluation."""

    @property
    def reading(self) -> float:
        """Seconds that reading a step takes, shared among the processes that do so."""
        return self.looked.seconds / max(self.options.dataloader_num_workers, 1)

    @property
    def step(self) -> float:
        """Seconds between two steps: of the gradients, or of reading where that is slower."""
        if not self.options.dataloader_num_workers:
            return self.probe.seconds + self.reading
        return max(self.probe.seconds, self.reading)

    def evaluate(self, judged: Judged, embedder: Embedder, meter: Meter) -> None:
        """See how long the held-out texts take, by a few of them."""
        spread = max(1, len(judged.passages) // SAMPLED_TEXTS)
        sample = judged.passages[::spread][:SAMPLED_TEXTS]
        embedder.encoders[0].eval()
        embedder.encode_passages(sample[:8])
        meter.wait()
        started = time.perf_counter()
        embedder.encode_passages(sample)
        meter.wait()
        texts = len(judged.passages) + len(judged.queries)
        self.evaluation = (time.perf_counter() - started) / len(sample) * texts

    def show(self, encoder: Encoder) -> None:
        """Print the hours."""
        options, probe = self.options, self.probe
        accumulated = options.gradient_accumulation_steps
        training = self.steps * (accumulated * self.step + probe.optimiser)
        times = [taken.seconds for taken in probe.ordinary]
        slow = "; reading and tokenising are what it waits for" if self.step > 1.05 * probe.seconds else ""
        each = f" of {accumulated} accumulated batches each" if accumulated > 1 else ""
        say(
            f"\n{self.step:,.3g} s a batch (those taken: {min(times):,.3g} to {max(times):,.3g} s){slow}, "
            f"{probe.optimiser:,.3g} s the optimiser"
        )
        rows = [[f"{self.steps:,} steps{each}", clock(training)]]
        evaluations = saves = 0.0
        if options.eval_data is not None:
            count = 1 + -(-self.steps // options.eval_steps)
            evaluations = count * self.evaluation
            rows.append([f"{count:,} evaluations", clock(evaluations)])
        if options.save_steps:
            count = -(-self.steps // options.save_steps)
            size = checkpoint_bytes(encoder)
            saves = count * size / write_speed(options.output_dir)
            rows.append([f"{count:,} checkpoints of {mib(size)} MiB", clock(saves)])
        rows.append(["in all", clock(training + evaluations + saves)])
        console.table("", ["the whole run, estimated", "h:min:s"], rows, on_stdout=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def checkpoint_bytes(encoder: Encoder) -> int:
    """Bytes of a checkpoint: the weights that are saved, and two numbers of the optimiser for each that is trained."""
    trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    saved = trained if encoder.alone else sum(parameter.numel() for parameter in encoder.parameters())
    return 4 * saved + 8 * trained


def write_speed(folder: Path) -> float:
    """Bytes a second that the disk of a folder, which need not exist yet, takes; 200 MB where nothing can be written.

    Nothing is left there.
    """
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as stream:
            started = time.perf_counter()
            stream.write(bytes(WRITTEN))
            stream.flush()
            os.fsync(stream.fileno())
            return WRITTEN / (time.perf_counter() - started)
    except OSError:
        return 2e8
