"""The teacher that the options describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bgectl import console, distributed
from bgectl.encode import load_embedder
from bgectl.errors import RunError, UsageError
from bgectl.models.decoder_rerankers import KINDS, LAYERWISE, LIGHTWEIGHT, teacher_kind
from bgectl.models.hub import Hub
from bgectl.options.common import WorkOptions
from bgectl.options.score import TeacherOptions
from bgectl.score.pairs import HEADS_PAIRS, EmbedderTeacher, HeadsTeacher, Pairs, Scores, Teacher, digest, pair_teacher
from bgectl.work.vectors import SHARD


@dataclass(frozen=True)
class Scored:
    """A teacher with what is done to its scores.

    Attributes:
        kind: Its kind.
        teacher: What scores.
        score: From pairs to their scores; all processes call it together.
        facts: What decides the scores, for a manifest.
    """

    kind: str
    teacher: Teacher
    score: Callable[[Pairs], Scores]
    facts: dict[str, Any]


def open_teacher(options: TeacherOptions, name: str, work: Path) -> Scored:
    """The teacher; its weights are loaded when a pair is first to be scored.

    Args:
        options: Of a command that has a teacher.
        name: Name or folder of it.
        work: The work folder.

    Raises:
        UsageError: An option means nothing to a teacher of this kind.
        RunError: The teacher cannot be read.
    """
    hub = Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code)
    asked = options.reranker_model_class
    kind = teacher_kind(name, hub) if asked == "auto" else asked
    refuse_options_of_others(options, name, kind)
    files = digest(name, hub)
    teacher: Teacher = (
        embedder_teacher(options, name, files, work, hub) if kind == "embedder"
        else reader(options, name, files, kind, work, hub)
    )  # fmt: skip

    def score(pairs: Pairs) -> Scores:
        values = teacher.of(pairs)
        if options.normalize:
            values = sigmoid(values)
        values *= np.float32(options.scale)
        if not np.isfinite(values).all():
            pair = pairs[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise RunError(
                f"the teacher's score is not finite for {pair.query[:60]!r} and {pair.passage[:60]!r}",
                hint="use --dtype float32 or bfloat16",
            )
        return values

    facts = {
        "teacher": name, "kind": kind, "revision": options.revision, "files": files,
        "normalize": options.normalize, "scale": options.scale, "options": changed(options),
    }  # fmt: skip
    return Scored(kind, teacher, score, facts)


CHANGES_NO_SCORE = frozenset(
    {"revision", "normalize", "scale", "token", "cache_dir", "trust_remote_code", "batch_tokens", "reranker_batch_size",
     *WorkOptions.model_fields} - {"dtype", "use_fp16", "use_bf16"}
)  # fmt: skip


def changed(options: TeacherOptions) -> dict[str, Any]:
    """The options that are not the defaults and decide scores."""
    result = {}
    for name, field in TeacherOptions.model_fields.items():
        value = getattr(options, name)
        if name not in CHANGES_NO_SCORE and value != field.get_default(call_default_factory=True):
            result[name] = value
    return result


def refuse_options_of_others(options: TeacherOptions, name: str, kind: str) -> None:
    """Options that mean nothing to a teacher of this kind are mistakes.

    Raises:
        UsageError: Names them.
    """
    of = {
        "reranker_peft_path": KINDS, "prompt": KINDS, "cutoff_layers": (LAYERWISE, LIGHTWEIGHT),
        "compress_layers": (LIGHTWEIGHT,), "compress_ratio": (LIGHTWEIGHT,), "score": ("embedder",),
    }  # fmt: skip
    given = [field for field in options.model_fields_set if kind not in of.get(field, (kind,))]
    for field in sorted(given):
        if getattr(options, field) != type(options).model_fields[field].get_default(call_default_factory=True):
            flag = f"--{field.replace('_', '-')}"
            raise UsageError(f"{name} is of kind {kind}, which has no such thing", where=flag)
    if options.compress_ratio > 1 and not options.compress_layers:
        raise UsageError("nothing is compressed without --compress-layers", where="--compress-ratio")
    if options.normalize and kind == "embedder":
        raise UsageError("a similarity is no logit to put through a sigmoid", where="--normalize")


def reader(options: TeacherOptions, name: str, files: str, kind: str, work: Path, hub: Hub) -> Teacher:
    """A teacher that reads query and passage together."""
    return pair_teacher(
        name, files, kind, work=work, hub=hub, devices=distributed.own_devices(options.devices), dtype=options.dtype,
        use_fp16=options.use_fp16, use_bf16=options.use_bf16, batch_tokens=options.batch_tokens,
        batch_size=options.reranker_batch_size, query_max_length=options.reranker_query_max_length,
        max_length=options.reranker_max_length, query=options.query_instruction_for_rerank,
        query_format=options.query_instruction_format_for_rerank, passage=options.passage_instruction_for_rerank,
        passage_format=options.passage_instruction_format_for_rerank, prompt=options.prompt,
        cutoff_layer=options.cutoff_layers[0] if options.cutoff_layers else None,
        compress_layers=options.compress_layers, compress_ratio=options.compress_ratio,
        adapter=options.reranker_peft_path, shard=options.shard_size,
    )  # fmt: skip


def embedder_teacher(options: TeacherOptions, name: str, files: str, work: Path, hub: Hub) -> Teacher:
    """A teacher that is an embedder."""
    given = "query_instruction_format_for_rerank" in options.model_fields_set
    embedder = load_embedder(
        name,
        pooling=options.pooling_method,
        query_instruction=options.query_instruction_for_rerank,
        query_format=options.query_instruction_format_for_rerank if given else None,
        passage_instruction=options.passage_instruction_for_rerank,
        passage_format=options.passage_instruction_format_for_rerank,
        query_max_length=options.reranker_query_max_length or options.reranker_max_length,
        passage_max_length=options.reranker_max_length,
        devices=distributed.own_devices(options.devices),
        dtype=options.dtype,
        use_fp16=options.use_fp16,
        use_bf16=options.use_bf16,
        batch_tokens=options.batch_tokens,
        batch_size=options.reranker_batch_size,
        heads=options.score != "dense",
        lazy=True,
        quick=True,
        hub=hub,
    )
    console.info(f"{name}: {embedder.description}")
    if options.score == "dense":
        return EmbedderTeacher(embedder, files, work, options.shard_size or SHARD)
    return HeadsTeacher(embedder, files, work, options.score, options.weights, options.shard_size or HEADS_PAIRS)


def sigmoid(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 / (1 + e^-x), without overflow."""
    result: npt.NDArray[np.float32] = (0.5 * (1.0 + np.tanh(0.5 * values))).astype(np.float32)
    return result
