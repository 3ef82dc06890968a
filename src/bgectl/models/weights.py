"""A model's weights as they lie in its safetensors files, one at a time, and a writer of such files.

Both hold one tensor in memory, whatever the size of the model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bgectl.errors import RunError
from bgectl.models.hub import Hub, model_file, read_json

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADS = ("lm_head.", "score.", "classifier.")
"""Weights of what stands on a backbone in the files of a language model or a classifier."""
ROWS, SAMPLED = 4, 8

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The names that the format has for types."""


@dataclass(frozen=True)
class Weights:
    """Which file each weight of a backbone lies in."""

    places: dict[str, tuple[Path, str]]
    """Name in the backbone → file and name there."""

    def get(self, name: str) -> Tensor:
        """A weight, in memory of its own.

        Raises:
            RunError: The file is damaged.
        """
        with self._opened(name) as (stream, inside):
            # Not a view of the file, whose pages would count as this process's memory.
            tensor: Tensor = stream.get_tensor(inside).clone()
        return tensor

    def rows(self, name: str, count: int) -> Tensor:
        """The first rows of a weight."""
        with self._opened(name) as (stream, inside):
            tensor: Tensor = stream.get_slice(inside)[:count].clone()
        return tensor

    def shape(self, name: str) -> list[int]:
        """The shape of a weight."""
        with self._opened(name) as (stream, inside):
            return list(stream.get_slice(inside).get_shape())

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[Any, str]]:
        path, inside = self.places[name]
        try:
            with safe_open(path, framework="pt") as stream:
                yield stream, inside
        except (SafetensorError, OSError) as problem:
            raise RunError(f"the weights are damaged: {problem}", where=str(path)) from problem

    def fingerprint(self) -> str:
        """A short name for the values of the weights, from a few rows of some of them.

        It does not depend on how the weights are cut into files, nor on their precision down to bfloat16.
        """
        matrices = [name for name in sorted(self.places) if re.search(r"\.\d+\.", name) and name.endswith("weight")]
        matrices = [name for name in matrices if len(self.shape(name)) == 2]
        step = max(1, len(matrices) // SAMPLED)
        digest = hashlib.blake2b(digest_size=8)
        for name in matrices[::step][-SAMPLED:]:
            digest.update(name.encode())
            digest.update(self.rows(name, ROWS).bfloat16().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def open_weights(name: str, hub: Hub, *, heads: bool = False) -> Weights | None:
    """The weights of a model's backbone; None where it has no safetensors files.

    Args:
        name: Folder or hub name.
        hub: How to reach it.
        heads: Those of what stands on the backbone too.

    Raises:
        RunError: A file that the index names is missing or damaged.
    """
    index = model_file(name, INDEX, hub)
    if index is not None:
        files = sorted(set(read_json(index)["weight_map"].values()))
    elif model_file(name, ONE, hub) is not None:
        files = [ONE]
    else:
        return None
    places: dict[str, tuple[Path, str]] = {}
    for file in files:
        path = model_file(name, file, hub)
        if path is None:
            raise RunError(f"a file of the weights is missing: {file}", where=name)
        try:
            with safe_open(path, framework="pt") as stream:
                inside = list(stream.keys())
        except (SafetensorError, OSError) as problem:
            raise RunError(f"the weights are damaged: {problem}", where=str(path)) from problem
        places |= {in_backbone(key): (path, key) for key in inside if heads or not key.startswith(HEADS)}
    return Weights(places)


def fingerprint_of(name: str, hub: Hub) -> str | None:
    """See `Weights.fingerprint`; None where the model has no safetensors files."""
    weights = open_weights(name, hub)
    return None if weights is None else weights.fingerprint()


def in_backbone(name: str) -> str:
    """The name of a weight within the backbone: a language model's files put `model.` before it."""
    return name.removeprefix("model.")


def plan_shards(sizes: Sequence[tuple[str, int]], most: int) -> list[list[str]]:
    """Cut weights, in their order, into files of at most `most` bytes; a larger weight has a file of its own."""
    shards: list[list[str]] = []
    filled = 0
    for name, size in sizes:
        if not shards or filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_weights(
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    most: int,
) -> list[Path]:
    """Write weights one by one into safetensors files, with an index where there are several.

    The format is written here because safetensors' own writer wants all tensors of a file in memory, twice.

    Args:
        folder: Where the files go.
        weights: Each weight by name, in the order of `shapes`.
        shapes: The shape of each.
        dtype: The precision in the files.
        most: Bytes of a file at most.

    Returns:
        The files.
    """
    width = torch.empty((), dtype=dtype).element_size()
    sizes = [(name, width * torch.Size(shape).numel()) for name, shape in shapes.items()]
    shards = plan_shards(sizes, most)
    count = len(shards)
    files = [ONE] if count == 1 else [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    length = dict(sizes)
    source = iter(weights)
    for file, names in zip(files, shards, strict=True):
        with (folder / file).open("wb") as stream:
            _write_header(stream, [(name, shapes[name], length[name]) for name in names], dtype)
            for expected in names:
                name, tensor = next(source)
                assert name == expected, f"{name} came in place of {expected}"
                data = tensor.to(dtype).contiguous()
                data.view(-1).view(torch.uint8).numpy().tofile(stream)
    if count > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(length.values())}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / file for file in files]


def _write_header(stream: IO[bytes], entries: Sequence[tuple[str, Sequence[int], int]], dtype: torch.dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape, size in entries:
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data begins at a multiple of 8, so that it can be used where it lies.
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
