"""The option models, by command. Importing one costs pydantic and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from bgectl.options.base import Options


def _model(module: str, name: str) -> Callable[[], type[Options]]:
    def load() -> type[Options]:
        model: type[Options] = getattr(import_module(f"bgectl.options.{module}"), name)
        return model

    return load


MODELS: dict[str, Callable[[], type[Options]]] = {
    "init": _model("tools", "InitOptions"),
    "data validate": _model("data", "ValidateOptions"),
    "data stats": _model("data", "StatsOptions"),
    "data convert": _model("convert", "ConvertOptions"),
    "data split": _model("split", "SplitOptions"),
    "mine": _model("mine", "MineOptions"),
    "score": _model("score", "ScoreOptions"),
    "relabel": _model("relabel", "RelabelOptions"),
    "train base": _model("train", "TrainBaseOptions"),
    "train m3": _model("train", "TrainM3Options"),
    "train llm": _model("train", "TrainLlmOptions"),
    "train icl": _model("train", "TrainIclOptions"),
    "merge-lora": _model("merge", "MergeOptions"),
    "export": _model("export", "ExportOptions"),
    "push": _model("push", "PushOptions"),
    "eval": _model("evaluate", "EvalOptions"),
    "run": _model("run", "RunOptions"),
    "presets": _model("tools", "PresetsOptions"),
    "translate": _model("tools", "TranslateOptions"),
    "doctor": _model("doctor", "DoctorOptions"),
    "schema": _model("tools", "SchemaOptions"),
}
"""Command → function that imports and returns its model."""


def command_name(options: Options) -> str:
    """The command whose options these are."""
    return next(name for name, load in MODELS.items() if load() is type(options))
