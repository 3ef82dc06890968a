"""Options of `bgectl run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from bgectl.options.base import Flag, Options
from bgectl.options.common import Presets, known_presets

STAGES = (
    "data validate", "mine", "score", "relabel", "train base", "train m3", "train llm", "train icl", "merge-lora",
    "eval",
)  # fmt: skip
"""Commands that can be stages, in their usual order."""
SHORT = {"validate": "data validate", "merge": "merge-lora"} | {name.replace(" ", "-"): name for name in STAGES}

Stages = Annotated[list[str], Flag(metavar="STAGE...", pattern=r"[a-z].*")]


def stage_of(word: str) -> str:
    """A stage by one of its names: `train base` is `train-base` too, and `data validate` is `validate`.

    Raises:
        ValueError: There is no such stage.
    """
    name = SHORT.get(word, " ".join(word.split()))
    if name not in STAGES:
        from bgectl.options.resolve import did_you_mean

        raise ValueError(f"no stage `{word}`; {did_you_mean(word, [*STAGES, *SHORT])}")
    return name


class RunOptions(Options):
    """Options of `bgectl run`."""

    panel: ClassVar[str] = "Pipeline"

    stages: Stages = Field(default_factory=list)
    """The stages in their order: validate, mine, score, relabel, train-base, train-m3, train-llm, train-icl, merge,
    eval; each takes its options from its own section. Default: the sections that are there."""
    data: Annotated[list[Path], Flag(metavar="PATH...")] = Field(default_factory=list)
    """Training rows that the first stages read, where their sections name none. A later stage reads what the one before
    it wrote."""
    model: str | None = None
    """Name or folder of the embedder to fine-tune: what mining and training start from, and evaluation compares with,
    where their sections name none."""
    preset: Presets = Field(default_factory=list)
    """Presets for all stages that they have values for; `bgectl presets` lists them. Sections win over them."""
    output_dir: Annotated[Path, Flag("-o")] = Path("run")
    """Folder for the report, the logs of the stages, and the outputs whose sections name no other place."""
    from_stage: Annotated[str | None, Flag("--from", metavar="STAGE")] = None
    """Run this stage and those after it, though nothing changed; what stages before it left is taken as it is."""
    only: Stages = Field(default_factory=list)
    """Run these stages alone, though nothing changed."""
    dry_run: bool = False
    """Show which stages would run, and why, and stop."""
    report: bool = True
    """Write report.html at the end: data, mining, training curves, evaluation with queries to read."""

    _presets = field_validator("preset")(known_presets)

    @field_validator("stages", "only")
    @classmethod
    def _known(cls, words: list[str]) -> list[str]:
        names = [stage_of(word) for word in words]
        if len(set(names)) < len(names):
            raise ValueError("a stage stands twice")
        return names

    @field_validator("from_stage")
    @classmethod
    def _one_known(cls, word: str | None) -> str | None:
        return None if word is None else stage_of(word)
