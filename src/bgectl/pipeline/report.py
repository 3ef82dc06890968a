"""One page about a whole pipeline: the stages, the data, mining, training curves, and what evaluation found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgectl import console
from bgectl.data.stats import FileStats, count_files
from bgectl.errors import BgectlError
from bgectl.jsonl import expand_paths
from bgectl.meter import duration
from bgectl.options.train import TrainOptions
from bgectl.pipeline.plan import Stage
from bgectl.pipeline.state import State

if TYPE_CHECKING:
    from bgectl.page import Page

NAME = "report.html"
FORMAT = 1
"""Counts up where pages of former versions are to be written anew."""
CURVES = {
    "Loss": ("loss", "loss_dense", "loss_sparse", "loss_colbert", "loss_ensemble"),
    "Positive first": ("accuracy_dense", "accuracy_sparse", "accuracy_colbert", "accuracy_ensemble"),
    "Learning rate": ("learning_rate",),
    "Held-out nDCG@10": (
        "eval_nDCG@10", "eval_nDCG@10 dense", "eval_nDCG@10 sparse", "eval_nDCG@10 colbert",
    ),
}  # fmt: skip
"""Pictures, and which keys of a training log they show."""


def write_report(stages: Sequence[Stage], state: State) -> Path | None:
    """Write the page; None where nothing has changed since it was written."""
    made_of = json.dumps([FORMAT, [state.stages.get(stage.command) for stage in stages]], sort_keys=True, default=str)
    target = state.folder / NAME
    if state.report == made_of and target.is_file():
        return None
    from bgectl.page import Page

    page = Page("Pipeline", f"What bgectl run made in {state.folder.absolute()}.")
    add_result(page, stages, state)
    add_stages(page, stages, state)
    add_data(page, stages)
    for stage in stages:
        entry = state.stages.get(stage.command)
        if entry is None or entry["status"] != "done":
            continue
        if isinstance(stage.options, TrainOptions):
            add_training(page, stage)
        report = getattr(stage.options, "report", None)
        if isinstance(report, Path) and report.is_file():
            try:
                page.include(report)
            except BgectlError as problem:
                console.warn(f"{problem.where}: {problem.message}; it is not in the report")
    add_options(page, stages)
    page.write(target)
    state.report = made_of
    return target


def add_result(page: Page, stages: Sequence[Stage], state: State) -> None:
    """What evaluation found, in short: the reader's first question."""
    for stage in stages:
        found = stage.output
        if stage.command != "eval" or found is None or state.stages.get("eval", {}).get("status") != "done":
            continue
        try:
            told = json.loads(found.read_text(encoding="utf-8"))
            names = list(told["models"][0]["measures"])
            rows = [[model["model"], model["score"], *(f"{model['measures'][name]:.4f}" for name in names)]
                    for model in told["models"]]  # fmt: skip
            changes = [
                f"{change['measure']} of {change['model']} ({change['score']}): {change['difference']:+.4f}, "
                f"p {change['p_value']:.3f}, {change['wins']} queries won, {change['losses']} lost"
                for change in told["comparisons"]
            ]
        except (OSError, ValueError, KeyError, IndexError) as problem:
            console.warn(f"{found} cannot be read ({problem}); the report has no result")
            continue
        page.table("Result", ["model", "score", *names], rows, "\n".join(changes))


def add_stages(page: Page, stages: Sequence[Stage], state: State) -> None:
    """What was run with what."""
    rows = []
    for stage in stages:
        entry = state.stages.get(stage.command) or {}
        seconds = entry.get("seconds")
        took = "" if seconds is None else duration(seconds)
        rows.append(
            [stage.name, entry.get("status", "not run"), took, str(stage.output or ""), entry.get("bgectl", "")]
        )
    page.table("Stages", ["stage", "", "time", "output", "bgectl"], rows)


def add_options(page: Page, stages: Sequence[Stage]) -> None:
    """The options of each stage that are not left at their defaults."""
    page.heading("Options")
    for stage in stages:
        given = stage.options.model_dump(mode="json", exclude_unset=True, exclude={"token"})
        page.facts(f"Options of {stage.name}", {name: in_words(value) for name, value in given.items()})


def in_words(value: Any) -> Any:
    """An option's value for people."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def add_data(page: Page, stages: Sequence[Stage]) -> None:
    """The rows that go in and those that were trained on: how many, and how long their texts are."""
    files: dict[Path, None] = {}
    for stage in stages:
        for name in ("paths", "input_file", "train_data"):
            given = getattr(stage.options, name, None) or []
            files |= dict.fromkeys(expand_paths([path for path in (given if isinstance(given, list) else [given])
                                                 if path.exists()]))  # fmt: skip
    if not files:
        return
    counted = count_files(list(files))
    page.heading("Data")
    rows = [
        [stats.name, stats.rows, per_row(stats, "pos"), per_row(stats, "neg"), stats.scored, stats.bad_rows]
        for stats in counted
    ]
    page.table("Rows", ["file", "rows", "positives a row", "negatives a row", "with scores", "with errors"], rows)
    last = counted[-1]
    sides = {"queries": "query", "positives": "pos", "negatives": "neg"}
    lengths = {name: spread(last.characters[side]) for name, side in sides.items()}
    page.histogram("Lengths of the texts that were trained on", lengths, "characters", last.name)


MOST = 100_000
"""Values that stand for those of a picture, where there are more."""


def spread(counts: Mapping[int, int]) -> list[int]:
    """The values that were counted, each as often as it was; a share of them where they are many."""
    share = min(1.0, MOST / max(1, sum(counts.values())))
    return [value for value, count in counts.items() for _ in range(math.ceil(count * share))]


def per_row(stats: FileStats, side: str) -> str:
    """`1 to 15`."""
    counts = stats.texts[side]
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low} to {high}"


def add_training(page: Page, stage: Stage) -> None:
    """The curves of a training, from its log."""
    folder = stage.output
    assert folder is not None
    entries = []
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
    except (OSError, ValueError) as problem:
        console.warn(f"{folder}/log.jsonl cannot be read ({problem}); the report has no curves")
    page.heading(f"Training: {folder}")
    for title, keys in CURVES.items():
        lines_of = {key: [(entry["step"], entry[key]) for entry in entries if key in entry] for key in keys}
        shown = {key.partition("_")[2] or key: points for key, points in lines_of.items() if points}
        if shown:
            page.lines(title, shown, "step", title.lower())
