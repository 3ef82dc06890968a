"""`bgectl run`: each stage as a process of its own, where something it depends on has changed."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bgectl import console, signals
from bgectl.errors import BgectlError, Interrupted, UsageError
from bgectl.options.run import RunOptions
from bgectl.options.train import TrainOptions
from bgectl.pipeline.child import GO_ON, StageFailed, run_stage
from bgectl.pipeline.plan import Stage, chosen, stages_of
from bgectl.pipeline.state import State, opened
from bgectl.pipeline.view import View

LOGS = "stages"
"""Folder of what the stages were given and said, within that of the pipeline."""


def run(options: RunOptions, config: Path | None) -> None:
    """Run what has changed, in order, and write the report.

    Args:
        options: What is asked for.
        config: The file given as --config.

    Raises:
        UsageError: The stages are not clear, their options are wrong, or an output was changed by hand.
        StageFailed: A stage failed; those before it stay done.
        Interrupted: By a signal.
    """
    stages = stages_of(options, config)
    asked = chosen(stages, options)
    if options.dry_run:
        from bgectl.pipeline.state import read_state

        show_plan(stages, asked, read_state(options.output_dir))
        return
    started = time.monotonic()
    signals.going_on(lambda: ("interrupted", GO_ON))
    with opened(options.output_dir) as state:
        pipeline = Pipeline(stages, state, View(stages))
        try:
            with pipeline.view.shown():
                for stage in stages:
                    pipeline.step(stage, asked.get(stage.command))
        finally:
            sys.stdout.writelines(pipeline.printed)
            sys.stdout.flush()
        if options.report:
            from bgectl.pipeline.report import write_report

            target = write_report(stages, state)
            if target is not None:
                console.info(f"report: {target}")
        state.save()
    if pipeline.ran:
        took = f"{time.monotonic() - started:.0f} s"
        console.info(f"ran {pipeline.ran} of {len(stages)} stages in {took}: {options.output_dir}")
    else:
        console.info(f"nothing to do: no stage has changed ({options.output_dir})")


def show_plan(stages: Sequence[Stage], asked: Mapping[str, str], state: State) -> None:
    """A table of what would run and why, on stdout. Whether a stage after one that runs has to run too depends on what
    that one writes.
    """
    rows = []
    before: str | None = None
    for stage in stages:
        reason = asked.get(stage.command)
        if reason is None:
            rows.append([stage.name, "left out", "", str(stage.output or "")])
            continue
        try:
            if not reason:
                state.refuse_others(stage)
        except UsageError as problem:
            rows.append([stage.name, "stops", problem.message, str(stage.output or "")])
            break
        why = reason or state.why(stage)
        if why is None and before:
            rows.append([stage.name, "perhaps", f"if {before} writes something else", str(stage.output or "")])
            continue
        rows.append([stage.name, "runs" if why else "unchanged", why or "", str(stage.output or "")])
        before = stage.name if why else before
    console.table("Plan", ["stage", "what", "why", "output"], rows, on_stdout=True)


class Pipeline:
    """One run.

    Args:
        stages: All stages.
        state: What earlier runs did.
        view: Shows it.

    Attributes:
        ran: Stages that were run.
        printed: What evaluations, or a stage that failed, printed on stdout.
    """

    def __init__(self, stages: Sequence[Stage], state: State, view: View) -> None:
        self.stages, self.state, self.view = stages, state, view
        self.ran = 0
        self.printed: list[str] = []

    def step(self, stage: Stage, asked: str | None) -> None:
        """Run a stage if need be.

        Args:
            stage: The stage.
            asked: Why it is to be run anyway; an empty text where only a change counts; None leaves it out.
        """
        if asked is None:
            self.state.adopt(stage)
            self.view.set(stage, "left out")
            return
        if not asked:
            self.state.refuse_others(stage)
        why = asked or self.state.why(stage)
        if why is None:
            self.view.set(stage, "unchanged", seconds=self.state.stages[stage.command].get("seconds"))
            return
        made_before = stage.command in self.state.stages
        again = self.state.start(stage)
        self.view.set(stage, "running", why)
        started = time.monotonic()
        try:
            with place_for(stage, made_before):
                printed = run_stage(
                    stage, goes_on(stage, again, made_before), self.state.folder / LOGS,
                    lambda said: self.view.heard(stage, said),
                )  # fmt: skip
        except BgectlError as problem:
            self.view.set(stage, "stopped" if isinstance(problem, Interrupted) else "failed")
            if isinstance(problem, StageFailed):
                self.printed.append(problem.printed)
            raise
        seconds = time.monotonic() - started
        self.state.done(stage, seconds)
        self.ran += 1
        self.view.set(stage, "done", seconds=seconds)
        if stage.command == "eval":
            self.printed.append(printed)


def goes_on(stage: Stage, again: bool, made_before: bool) -> dict[str, Any]:
    """What training is told of its output folder: to go on where it was stopped, or to make anew what this pipeline has
    made before. A folder of which the pipeline knows nothing is left to training, which refuses it.
    """
    if not isinstance(stage.options, TrainOptions):
        return {}
    if again:
        return {"resume": stage.options.resume or "auto", "overwrite_output_dir": False}
    return {"overwrite_output_dir": True} if made_before else {}


@contextmanager
def place_for(stage: Stage, made_before: bool) -> Iterator[None]:
    """Put aside the model that `merge-lora` made before: it writes into empty folders alone. Back where it fails."""
    target = stage.output
    if stage.command != "merge-lora" or target is None:
        yield
        return
    aside = target.with_name(f".{target.name}.before.part")
    # Where a run was killed with the former model aside, that is made anew now.
    shutil.rmtree(aside, ignore_errors=True)
    if not made_before or not target.is_dir():
        yield
        return
    target.rename(aside)
    try:
        yield
    finally:
        if target.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)
