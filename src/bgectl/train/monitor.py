"""What is seen of a run: a progress bar with speeds, a log file, a picture of the curves, held-out measures."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
from transformers import TrainerCallback

from bgectl import console, signals
from bgectl.distributed import gather_objects, largest, rank, wait
from bgectl.losses.unified import HEADS
from bgectl.meter import Meter, duration
from bgectl.train.checkpoints import finish

PARTS = (*HEADS, "ensemble")
"""Heads whose losses and accuracies the log has beside the whole, where the model has them."""


class Progress(TrainerCallback):
    """A bar with loss, examples/s and tokens/s on a terminal, a line every `logging_steps` elsewhere, and log.jsonl.

    Args:
        log: File that gets one JSON object for each entry.
        counts: Returns (examples, tokens) seen so far by this process.
    """

    def __init__(self, log: Path, counts: Callable[[], tuple[int, int]]) -> None:
        self.log = log
        self.counts = counts
        self.line: Any = None
        self.meter = Meter(None)
        self.started = 0.0
        self.before = (0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started = time.monotonic()
        self.before = self.counts()
        self.meter = Meter(int(state.max_steps), int(state.global_step))
        if not state.is_world_process_zero or console.quiet() or not console.live():
            return
        from bgectl.bar import open_line

        self.line = open_line("Training", "steps", self.meter)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.add(int(state.global_step) - self.meter.done)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs:
            return
        seconds = max(time.monotonic() - self.started, 1e-9)
        own = tuple(now - before for now, before in zip(self.counts(), self.before, strict=True))
        examples, tokens = (sum(parts) for parts in zip(*gather_objects(own), strict=True))
        if not state.is_world_process_zero:
            return
        entry = {"step": state.global_step, **logs}
        if "loss" in logs:
            entry |= {"examples_per_second": examples / seconds, "tokens_per_second": tokens / seconds}
        with self.log.open("ab") as stream:
            stream.write(orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
        if "loss" not in logs:
            return
        heads = [f"{name} {logs[key]:.3f}" for name in PARTS if (key := f"loss_{name}") in logs]
        parts = f" ({', '.join(heads)})" if heads else ""
        speed = f"{examples / seconds:,.1f} examples/s  {tokens / seconds:,.0f} tokens/s"
        if self.line:
            self.line.note = f"loss {logs['loss']:.4f}{parts}  {speed}"
            return
        rate = logs.get("learning_rate", 0.0)
        console.training_step(
            self.meter,
            f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}{parts}  lr {rate:.2e}  {speed}"
            f"  {duration(self.meter.remaining or 0)} left",
            {"loss": float(logs["loss"]), "learning_rate": float(rate), "examples_per_second": examples / seconds},
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal; a run that fails calls this too."""
        if self.line:
            from bgectl.bar import close_line

            close_line(self.line)
            self.line = None


class Collapse(TrainerCallback):
    """Warns, once for each head, when a head has stopped to tell passages apart: the sum of the losses hides it.

    Args:
        examples: Returns the queries seen so far by this process.
    """

    ENOUGH = 64
    """Queries, in two entries of the log, by which a head is judged."""

    def __init__(self, examples: Callable[[], int]) -> None:
        self.examples = examples
        self.before: list[tuple[int, dict[str, Any]]] = []
        self.told: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "chance" not in logs:
            return
        now = (self.examples(), logs)
        first = self.before[-2][0] if len(self.before) > 1 else 0
        if self.before and now[0] - first >= self.ENOUGH:
            for head, problem in self._problems([self.before[-1][1], logs]):
                if head not in self.told:
                    self.told.add(head)
                    console.warn(f"step {state.global_step}: the {head} head {problem}")
        self.before = [*self.before[-1:], now]

    @staticmethod
    def _problems(entries: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
        if all(entry["sparse_tokens"] == 0 for entry in entries):
            yield "sparse", "gives every token weight 0, from where it cannot come back; lower --learning-rate"
        for head in HEADS:
            # Ties are no hits, so that a head that finds all passages alike has none.
            if all(entry[f"accuracy_{head}"] <= entry["chance"] for entry in entries):
                yield head, "finds the positive no more often than chance would; a lower --learning-rate may help"


class Stopping(TrainerCallback):
    """Ends a run in order on Ctrl-C or SIGTERM: the step is finished and a checkpoint written, by all processes.

    A second signal ends it at once, also where Python drops the exception, as it does in destructors and finalizers.
    Use as a context manager around training, in the main thread.

    Attributes:
        stopped: The signal that ended the run; 0 where none did.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.stopped = 0
        self.seen = 0
        self.at_once = False
        self.training = False
        self.former: list[Any] = []
        self.former_hook: Any = None

    def __enter__(self) -> Stopping:
        self.former = [signal.signal(number, self._note) for number in self.SIGNALS]
        self.former_hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in zip(self.SIGNALS, self.former, strict=True):
            signal.signal(number, former)
        sys.unraisablehook = self.former_hook
        if self.stopped:
            signals.ending(self.stopped)

    def _dropped(self, dropped: Any) -> None:
        """Python would print a traceback."""
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            self.former_hook(dropped)

    def _note(self, number: int, _frame: object) -> None:
        if self.training and not self.seen:
            self.seen = number
            if rank() == 0:
                # Not by way of the console, which may be in the middle of a line.
                said = "finishing the step and writing a checkpoint; once more to stop at once"
                if os.isatty(2):
                    said = textwrap.fill(said, os.get_terminal_size(2).columns or 80)
                start = "\r\x1b[2K" if "bgectl.bar" in sys.modules and os.isatty(2) else ""
                line = f"{start}{said}\n".encode()
                os.write(2, console.json_line("warning", message=said) if console.as_json() else line)
            return
        self.at_once = True
        signals.end_at_once(number)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.at_once:
            raise KeyboardInterrupt
        self.training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The signal reaches the processes at different moments; they stop after the same step.
        self.stopped = largest(self.seen, args.device)
        if self.stopped and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.training = False
        if state.global_step >= state.max_steps:
            self.stopped = 0


class Checkpoints(TrainerCallback):
    """Declares each checkpoint whole once all processes have written their part of it.

    Args:
        state: Returns what the run wants to know when it goes on.
        keep: Checkpoints kept.
    """

    def __init__(self, state: Callable[[], dict[str, Any]], keep: int | None) -> None:
        self.state = state
        self.keep = keep
        self.last: Path | None = None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait()
        self.last = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        kept = self.state()
        if state.is_world_process_zero:
            finish(self.last, kept, keep=self.keep)


class HeldOut(TrainerCallback):
    """Measures retrieval every so many steps and keeps the best weights.

    Args:
        every: Steps between two measurements.
        measure: Returns the measures by name for the weights as they are.
        keep: Called when the weights are the best so far.
        metric: The measure that decides.

    Attributes:
        log: The Trainer's own, which also reaches the log file and `--report-to`; set once there is a Trainer.
    """

    def __init__(
        self, every: int, measure: Callable[[], dict[str, float]], keep: Callable[[], None], metric: str
    ) -> None:
        self.every = every
        self.measure = measure
        self.keep = keep
        self.metric = metric
        self.history: list[tuple[int, dict[str, float]]] = []
        self.best_step: int | None = None
        self.log: Callable[[dict[str, Any]], None] | None = None

    @property
    def best(self) -> dict[str, float]:
        """The measures of the best weights."""
        return next(measures for step, measures in self.history if step == self.best_step)

    @property
    def before(self) -> dict[str, float]:
        """The measures before the first step."""
        return self.history[0][1]

    def state(self) -> dict[str, Any]:
        """What has been measured, for a checkpoint."""
        return {"history": self.history, "best_step": self.best_step}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.history = [(int(step), measures) for step, measures in state["history"]]
        self.best_step = state["best_step"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.history:
            self._take(state, "before training")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            # Logging the measures takes back that the loss of this step is to be logged too.
            due = control.should_log
            self._take(state, f"step {state.global_step}")
            control.should_log = due

    def _take(self, state: Any, label: str) -> None:
        measures = self.measure()
        step = int(state.global_step)
        if step and (self.best_step is None or measures[self.metric] > self.best[self.metric]):
            self.history.append((step, measures))
            self.best_step = step
            self.keep()
            label += " (best)"
        else:
            self.history.append((step, measures))
        if self.log is not None:
            self.log({f"eval_{name}": value for name, value in measures.items()})
        console.info(label, measures=measures)


def rewind_log(log: Path, step: int) -> None:
    """Take the entries of later steps out of a log: the run goes on from `step` and will write them anew."""
    if not log.is_file():
        return
    entries = []
    for line in log.read_bytes().splitlines(keepends=True):
        with suppress(orjson.JSONDecodeError):  # a line that was cut off when the run was killed
            if orjson.loads(line)["step"] <= step:
                entries.append(line)
    beside = log.with_name(f".{log.name}.part")
    beside.write_bytes(b"".join(entries))
    beside.replace(log)


def mean_loss(history: Sequence[dict[str, Any]]) -> float | None:
    """The mean loss of all steps up to the last entry, each entry being the mean of the steps since the one before."""
    points = [(0, 0.0), *((entry["step"], entry["loss"]) for entry in history if "loss" in entry)]
    if len(points) == 1:
        return None
    total = sum(loss * (step - before) for (before, _), (step, loss) in pairwise(points))
    return float(total / points[-1][0])


def draw_curves(history: Sequence[dict[str, Any]], picture: Path, metric: str | None) -> None:
    """Losses and learning rate over the steps, and the held-out measure where there is one, into a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def points(key: str) -> list[tuple[int, float]]:
        return [(entry["step"], entry[key]) for entry in history if key in entry]

    # Each panel: its label, and its lines by name.
    panels = [("loss", {"all": points("loss")} | {name: points(f"loss_{name}") for name in PARTS})]
    panels.append(("positive first", {name: points(f"accuracy_{name}") for name in PARTS}))
    panels.append(("learning rate", {"all": points("learning_rate")}))
    panels.append((metric or "", {"all": points(f"eval_{metric}")} | {
        name: points(f"eval_{metric} {name}") for name in PARTS
    }))  # fmt: skip
    shown = [(label, {name: line for name, line in lines.items() if line}) for label, lines in panels]
    shown = [(label, lines) for label, lines in shown if lines]
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(8, 2.4 * len(shown)), sharex=True, squeeze=False)
    for axis, (label, lines) in zip(axes[:, 0], shown, strict=True):
        for name, line in lines.items():
            # A head has one colour in all panels.
            color = f"C{PARTS.index(name) + 1}" if name in PARTS else "C0"
            axis.plot(*zip(*line, strict=True), marker="o" if len(line) < 30 else "", label=name, color=color)
        if len(lines) > 1:
            axis.legend(fontsize="small")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("step")
    figure.tight_layout()
    # A name that ends in .part would leave matplotlib without a format.
    beside = picture.with_name(f".{picture.stem}.part{picture.suffix}")
    try:
        figure.savefig(beside, dpi=120)
        beside.replace(picture)
    finally:
        pyplot.close(figure)
        with suppress(FileNotFoundError):
            beside.unlink()
