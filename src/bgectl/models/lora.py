"""Low-rank adapters of an encoder (LoRA, arXiv 2106.09685), by peft: adding, merging and keeping them.

A layer with an adapter gives W·x + scale · B·A·x; only A and B are trained, and merging adds scale · B·A to W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from bgectl.errors import RunError, UsageError

if TYPE_CHECKING:
    from peft import LoraConfig

NAME = "default"
BASE, DOWN, UP = ".base_layer.", f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight"
WEIGHTS = "adapter_model.safetensors"


def add_adapters(
    backbone: Any, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], base: str
) -> LoraConfig:  # fmt: skip
    """Put adapters into a backbone, whose own weights stay as they are from here on.

    Args:
        backbone: The model; its layers are replaced in place.
        rank: Rows of A and columns of B.
        alpha: scale is alpha / rank.
        dropout: Of what goes into A.
        targets: Names of the linear layers, or ends of names; empty for all.
        base: The model's name, for who opens the adapter later.

    Raises:
        UsageError: There are no such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none",
        target_modules=list(targets) or "all-linear", base_model_name_or_path=base,
    )  # fmt: skip
    try:
        inject_adapter_in_model(config, backbone, adapter_name=NAME)
    except ValueError as problem:
        raise UsageError(
            str(problem).strip().split("\n")[0], where="--target-modules",
            hint="give the ends of the names of linear layers, such as query value dense, or leave it out for all",
        ) from problem  # fmt: skip
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name.endswith((DOWN, UP)))
    return config


def merged(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """The weights of the backbone without adapters, named as before; what adapters learnt is added to them."""
    scale = config.lora_alpha / config.r
    result = {}
    for name, weight in state.items():
        if name.endswith((DOWN, UP)):
            continue
        layer = name.removesuffix("weight").removesuffix(BASE)
        if name.endswith(f"{BASE}weight"):
            weight = weight + scale * (state[layer + UP].to(weight) @ state[layer + DOWN].to(weight))
        result[name.replace(BASE, ".")] = weight
    return result


def save_adapter(folder: Path, state: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write the adapter alone, as peft reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": weight.detach().cpu().contiguous()
        for name, weight in state.items()
        if name.endswith((DOWN, UP))
    }
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def load_adapter(backbone: Any, folder: Path) -> None:
    """Take the adapters' weights from a folder that `save_adapter` wrote.

    Raises:
        RunError: It is not there, or is of another shape.
    """
    own = backbone.state_dict()
    try:
        stored = load_file(folder / WEIGHTS)
        for name in own:
            if name.endswith((DOWN, UP)):
                own[name].copy_(stored[f"base_model.model.{name.replace(f'.{NAME}.', '.')}"])
    except (OSError, KeyError, RuntimeError) as problem:
        raise RunError(f"cannot be read as the adapter of this run: {problem}", where=str(folder)) from problem
