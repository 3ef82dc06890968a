"""What the stages of a pipeline are: their options, what they read and what they write. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bgectl.errors import UsageError
from bgectl.options import MODELS
from bgectl.options.base import Options, shape_of
from bgectl.options.common import ASIDE, LaunchOptions, deciding
from bgectl.options.resolve import PROJECT_FILE, resolve, sections_in
from bgectl.options.run import STAGES, RunOptions
from bgectl.presets import read_preset, sections

MODEL_OPTIONS = frozenset({
    "model_name_or_path", "embedder_name_or_path", "reranker_name_or_path", "cross_encoder", "reranker_peft_path",
    "tokenizer", "tokenizer_name", "config_name", "from_peft", "raw_peft", "base", "adapters", "deepspeed",
})  # fmt: skip
"""Options that may name a folder or a file though they are text."""

HUB_OPTIONS = MODEL_OPTIONS - {"deepspeed"}

WRITTEN = ("output_file", "output_dir", "report", "fix")
"""Options that name what is written."""


@dataclass(frozen=True)
class Stage:
    """One command of the pipeline.

    Attributes:
        command: Its words.
        options: Its options.
    """

    command: str
    options: Options

    @property
    def name(self) -> str:
        """One word: `validate`, `mine`, `train-base`."""
        return self.command.removeprefix("data ").replace(" ", "-")

    @property
    def output(self) -> Path | None:
        """What the stage is run for: a file of rows, a folder with a model; None for validation."""
        found = getattr(self.options, "output_file", None) or getattr(self.options, "output_dir", None)
        return found if found is None else Path(found)

    def written(self) -> list[Path]:
        """Everything that the stage writes."""
        return [path for name in WRITTEN if isinstance(path := getattr(self.options, name, None), Path)]

    def read(self) -> Iterator[Path]:
        """The files and folders that the stage reads, as far as they are there."""
        for name in type(self.options).model_fields:
            if name in ASIDE or name in WRITTEN:
                continue
            for path in self._paths(name):
                if path.exists():
                    yield path

    def _paths(self, name: str) -> list[Path]:
        value = getattr(self.options, name)
        kind = shape_of(type(self.options).model_fields[name]).kind
        if value is None or not (kind is Path or name in MODEL_OPTIONS):
            return []
        return [Path(item) for item in (value if isinstance(value, list) else [value]) if str(item)]

    def hub_models(self) -> list[str]:
        """The models that are no folder here."""
        fields = type(self.options).model_fields
        return [str(path) for name in fields if name in HUB_OPTIONS for path in self._paths(name) if not path.exists()]

    def defaults(self) -> dict[str, Any]:
        """The defaults of the options, as JSON knows them."""
        return type(self.options).model_construct().model_dump(mode="json", warnings=False)

    def deciding(self) -> dict[str, Any]:
        """The options that decide what comes out. How many processes train together is among them: it is part of the
        batch.
        """
        values = deciding(self.options)
        if self.command.startswith("train ") and isinstance(self.options, LaunchOptions):
            values["processes"] = self.options.processes * self.options.nnodes
        return values


@dataclass
class Flow:
    """What the stages so far hand on to the next.

    Attributes:
        rows: Training rows.
        base: The model that training starts from.
        models: What was trained, the last one last.
        folder: For outputs that have no other place.
        presets: Names of presets, for the stages that they have a section for.
    """

    rows: list[Path]
    base: str | None
    folder: Path
    presets: list[str] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)

    def defaults(self, command: str) -> dict[str, Any]:
        """The options of a stage that follow from the stages before it, where its section does not say otherwise."""
        rows = [str(path) for path in self.rows]
        one = {"input_file": rows[0]} if len(rows) == 1 else {}
        base = self.base
        found: dict[str, Any] = {}
        if command == "data validate":
            found = {"paths": rows}
        elif command == "mine":
            found = {
                **one, "output_file": self._place("mined.jsonl"), "report": self._place("mined.html"),
                "embedder_name_or_path": base,
            }  # fmt: skip
        elif command == "score":
            found = {**one, "output_file": self._place("scored.jsonl")}
        elif command == "relabel":
            found = {
                **one, "output_file": self._place("relabelled.jsonl"), "report": self._place("relabelled.html"),
            }  # fmt: skip
        elif command.startswith("train "):
            name = "model" if not self.models else f"model-{command.split()[1]}"
            found = {"train_data": rows, "output_dir": self._place(name), "model_name_or_path": base}
        elif command == "merge-lora":
            found = {"adapters": [str(path) for path in self.models[-1:]], "output_dir": self._place("merged")}
        elif command == "eval":
            models = [*([base] if base else []), *map(str, self.models)]
            found = {
                "model_name_or_path": models, "output_file": self._place("eval.json"),
                "report": self._place("eval.html"),
            }  # fmt: skip
        found["preset"] = [name for name in self.presets if command in sections(read_preset(name))]
        return {name: value for name, value in found.items() if value not in (None, [])}

    def _place(self, name: str) -> str:
        return str(self.folder / name)

    def after(self, stage: Stage) -> None:
        """Take in what a stage writes."""
        output = stage.output
        if stage.command.startswith("train "):
            assert output is not None
            self.models.append(output)
            self.base = self.base or str(getattr(stage.options, "model_name_or_path"))  # noqa: B009
        elif stage.command == "merge-lora":
            assert output is not None
            # The whole model takes the place of its adapter.
            self.models[-1:] = [output]
        elif output is not None and stage.command != "eval":
            self.rows = [output]


def stages_of(options: RunOptions, config: Path | None, project: Path = PROJECT_FILE) -> list[Stage]:
    """The stages with their options.

    Args:
        options: What is asked for.
        config: The file given as --config; its sections win over those of the project file.
        project: The project file, if it is there.

    Raises:
        UsageError: There are none, it is not clear which, or their options are wrong; all stages' problems are named.
    """
    names = options.stages or _present([path for path in (project, config) if path is not None and path.is_file()])
    flow = Flow(list(options.data), options.model, options.output_dir, options.preset)
    stages = []
    problems = []
    for command in names:
        try:
            resolved = resolve(
                MODELS[command](), command, {}, config, project=project, fallback=flow.defaults(command)
            )  # fmt: skip
        except UsageError as problem:
            place = f"{problem.where}: " if problem.where else ""
            problems.append(f"{command}: {place}{problem.message}")
            continue
        stage = Stage(command, resolved.options)
        stages.append(stage)
        flow.after(stage)
    if problems:
        hint = f"options stand in {config or project}, in the section of each command; see `bgectl init`"
        raise UsageError("\n       ".join(problems), hint=hint)
    refuse_unclear(stages)
    return stages


def _present(files: Sequence[Path]) -> list[str]:
    """The stages whose sections are in the files, in their usual order.

    Raises:
        UsageError: There are none, or several trainings.
    """
    found = {command for file in files for command in sections_in(file)}
    names = [name for name in STAGES if name in found]
    trainings = [name for name in names if name.startswith("train ")]
    if not names:
        raise UsageError(
            "there is nothing to run", where=", ".join(map(str, files)) or str(PROJECT_FILE),
            hint="`bgectl init` writes a bgectl.yaml with a section for each stage",
        )  # fmt: skip
    if len(trainings) > 1:
        raise UsageError(
            f"there are sections for {', '.join(trainings)}, and it is not said which to run",
            where=", ".join(map(str, files)),
            hint="name the stages: `run:` with `stages: [validate, mine, train-base, eval]`",
        )  # fmt: skip
    return names


def refuse_unclear(stages: Sequence[Stage]) -> None:
    """Stages that write to one place, or to a pipe, cannot hand on what they wrote.

    Raises:
        UsageError: Names them.
    """
    seen: dict[Path, Stage] = {}
    for stage in stages:
        for path in stage.written():
            if str(path) == "-":
                raise UsageError(f"{stage.command}: a stage writes to a file, not to a pipe", hint="name a file")
            key = path.absolute()
            if key in seen:
                raise UsageError(
                    f"{seen[key].command} and {stage.command} both write {path}", hint="give one of them another output"
                )
            seen[key] = stage


def chosen(stages: Sequence[Stage], options: RunOptions) -> Mapping[str, str]:
    """The stages that may run, each with why it is to be run anyway; an empty text where only a change counts.

    Raises:
        UsageError: A stage that is asked for is not in the pipeline.
    """
    names = [stage.command for stage in stages]
    for asked in (*options.only, *([options.from_stage] if options.from_stage else [])):
        if asked not in names:
            raise UsageError(f"`{asked}` is no stage of this pipeline", hint=f"its stages: {', '.join(names)}")
    first = names.index(options.from_stage) if options.from_stage else 0
    return {
        name: "--only" if name in options.only else "--from" if options.from_stage else ""
        for place, name in enumerate(names)
        if (name in options.only if options.only else place >= first)
    }
