"""Low-rank adapters (LoRA, arXiv 2106.09685), by peft: putting them into a model, and their weights in a state.

A layer with an adapter gives W·x + scale · B·A·x; only A and B are trained, and merging adds scale · B·A to W. Vectors
of tokens that the base model lacks, and modules that are to be trained whole, are trained beside them. The files that
adapters are kept in are the business of `adapter`.

Letters: N texts, L tokens, D hidden size, K new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from bgectl.errors import RunError, UsageError

if TYPE_CHECKING:
    from peft import LoraConfig

NAME = "default"
BASE, DOWN, UP = ".base_layer.", f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight"
NEW_TOKENS = "new_tokens"
"""The parameter of an embedding layer that holds the vectors of tokens which the base model lacks."""
PREFIX = "base_model.model."
"""What peft puts before the names of weights in its files."""
TOKENS_IN_FILE = ".token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class Lora:
    """What is to be known of a backbone's adapters to save them.

    Attributes:
        config: peft's LoraConfig.
        fingerprint: Of the base model's weights; see `Weights.fingerprint`.
        before: Folder of the adapter that was merged into the base before.
        alone: Adapters are saved alone, without the base model.
    """

    config: Any
    fingerprint: str | None = None
    before: Path | None = None
    alone: bool = False


def add_adapters(
    backbone: Any, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], base: str,
    whole: Sequence[str] = (), new_tokens: tuple[list[int], Tensor] | None = None,
) -> LoraConfig:  # fmt: skip
    """Put adapters into a backbone, whose own weights stay as they are from here on.

    Args:
        backbone: The model; its layers are replaced in place.
        rank: Rows of A and columns of B.
        alpha: scale is alpha / rank.
        dropout: Of what goes into A.
        targets: Names of the linear layers, or ends of names; empty for all.
        base: The model's name, for who opens the adapter later.
        whole: Ends of the names of modules that are trained whole.
        new_tokens: Ids of the tokens that the base lacks, ascending, and their first vectors (K, D).

    Raises:
        UsageError: There are no such layers or modules.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", task_type="FEATURE_EXTRACTION",
        target_modules=list(targets) or "all-linear", base_model_name_or_path=base,
    )  # fmt: skip
    inject(backbone, config)
    config.modules_to_save = list(whole) or None
    train_whole(backbone, whole)
    if new_tokens is not None:
        config.trainable_token_indices = {embedding_name(backbone): list(new_tokens[0])}
        train_tokens(backbone.get_input_embeddings(), *new_tokens)
    return config


def inject(backbone: Any, config: LoraConfig) -> None:
    """Put the low-rank layers that a configuration names into a backbone, in place; all else is frozen.

    Raises:
        UsageError: The backbone has no such layers.
    """
    from peft import inject_adapter_in_model

    # What is trained beside the low-rank layers is not left to peft, which copies the whole vocabulary in each step.
    rest = config.modules_to_save, config.trainable_token_indices
    config.modules_to_save = config.trainable_token_indices = None
    try:
        inject_adapter_in_model(config, backbone, adapter_name=NAME)
    except ValueError as problem:
        raise UsageError(
            str(problem).strip().split("\n")[0], where="--target-modules",
            hint="give the ends of the names of linear layers, such as query value dense, or leave it out for all",
        ) from problem  # fmt: skip
    finally:
        config.modules_to_save, config.trainable_token_indices = rest
    for name, parameter in backbone.named_parameters():
        trained = name.endswith((DOWN, UP))
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()


def train_whole(backbone: Any, ends: Sequence[str]) -> None:
    """Make modules trainable, named by the ends of their names as peft does: `norm` means `input_layernorm` too.

    Raises:
        UsageError: There is no such module.
    """
    for end in ends:
        chosen = [module for name, module in backbone.named_modules() if name.endswith(end)]
        if not chosen:
            raise UsageError("the model has no such module", where=f"--modules-to-save {end}")
        for parameter in (parameter for module in chosen for parameter in module.parameters()):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def new_token_ids(config: Any) -> list[int]:
    """The tokens whose vectors an adapter brings, from its configuration in either of peft's forms."""
    given = config.trainable_token_indices or []
    return list(next(iter(given.values()))) if isinstance(given, dict) else list(given)


def embedding_name(backbone: Any) -> str:
    """The name of the layer that turns token ids into vectors, such as `embed_tokens`."""
    layer = backbone.get_input_embeddings()
    return next(name for name, module in backbone.named_modules() if module is layer)


def train_tokens(layer: Any, ids: Sequence[int], vectors: Tensor) -> None:
    """Let an embedding layer take the vectors of some tokens from a small parameter of its own.

    peft's own layer for this writes the whole table, V · D, anew in every forward pass.

    Args:
        layer: (V, D) embedding, changed in place.
        ids: K token ids, ascending.
        vectors: (K, D).
    """
    layer.register_buffer("new_ids", torch.tensor(ids, device=vectors.device), persistent=False)
    layer.register_parameter(NEW_TOKENS, nn.Parameter(vectors.detach().float().clone()))
    layer.register_forward_hook(_with_new_tokens)


def _with_new_tokens(layer: Any, arguments: tuple[Tensor, ...], vectors_NLD: Tensor) -> Tensor:
    ids_NL = arguments[0]
    place_NL = torch.searchsorted(layer.new_ids, ids_NL).clamp(max=len(layer.new_ids) - 1)
    new_NL = layer.new_ids[place_NL] == ids_NL
    # Gemma 3 scales within the layer.
    rows_NLD = embedding(place_NL, layer.new_tokens) * getattr(layer, "embed_scale", 1.0)
    return torch.where(new_NL.unsqueeze(-1), rows_NLD.to(vectors_NLD.dtype), vectors_NLD)


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


def trained_names(backbone: Any) -> set[str]:
    """Names of the weights that training changes."""
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def name_in_file(name: str) -> str:
    """The name in peft's files of a weight of the backbone that is trained."""
    if name.endswith(f".{NEW_TOKENS}"):
        return PREFIX + name.removesuffix(f".{NEW_TOKENS}") + TOKENS_IN_FILE
    return PREFIX + name.replace(f".{NAME}.", ".").replace(BASE, ".")


def take_weights(backbone: Any, stored: Mapping[str, Tensor], where: str) -> None:
    """Give the trained weights of a backbone the values of an adapter's file.

    Raises:
        RunError: Some are missing, or of another shape.
    """
    for name, parameter in backbone.named_parameters():
        if not parameter.requires_grad:
            continue
        weight = stored.get(name_in_file(name))
        if weight is None or weight.shape != parameter.shape:
            shape = "nothing" if weight is None else f"{tuple(weight.shape)}"
            raise RunError(
                f"cannot be read as the adapter of this run: {name} is {tuple(parameter.shape)}, the file has {shape}",
                where=where,
            )
        with torch.no_grad():
            parameter.copy_(weight)
