"""Options of `bgectl export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bgectl.options.base import Flag, Options
from bgectl.options.common import HubOptions, Pooling


class ExportingOptions(Options):
    """What is exported, and how."""

    panel: ClassVar[str] = "Export"

    model_name_or_path: Annotated[str, Flag("--model", positional=True, metavar="MODEL")]
    """Name on the hub or folder of the embedder; of an adapter, it is merged into its base."""
    output_dir: Annotated[Path, Flag("-o", "--output", positional=True, metavar="OUT")]
    """Folder for the exported model; it must not exist, or be empty."""
    to: Literal["onnx"] = "onnx"
    """Format."""
    dtype: Literal["float32", "float16"] = "float32"
    """Precision of the weights. Texts are told apart as well in float16, which takes half the space; a CPU is slower in
    it."""
    opset: int | None = Field(None, ge=18)
    """Version of the ONNX operators. Default: the one that the exporter knows best."""
    pooling_method: Pooling | None = None
    """How token vectors become one. Default: seen from the model's files, else known for its name."""
    normalize_embeddings: bool | None = None
    """Scale `sentence_embedding` to length 1. Default: seen from the model's files, else yes."""
    check: bool = True
    """Compare what the exported and the given model compute for texts of different lengths; fails where they differ."""


class ExportOptions(ExportingOptions, HubOptions):
    """Options of `bgectl export`."""
