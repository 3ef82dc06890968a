"""An adapter's folder: what it holds, reading it, and adding it to the weights of its base model.

A folder that bgectl writes is complete: beside peft's own two files it has the tokenizer, pooling and prompts (the
files of sentence-transformers), and `bgectl_adapter.json`, which tells the base model it belongs to from others of
the same shape. An adapter that was trained on top of another one has that in `raw_peft/`.

Letters: D hidden size, K new tokens, V vocabulary.
"""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bgectl import __version__, console
from bgectl.errors import RunError
from bgectl.models.hub import ADAPTER_CONFIG, Hub, model_file, read_json
from bgectl.models.lora import (
    PREFIX,
    TOKENS_IN_FILE,
    embedding_name,
    inject,
    name_in_file,
    new_token_ids,
    take_weights,
    train_tokens,
    train_whole,
)
from bgectl.models.weights import in_backbone

WEIGHTS, OLD_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
RECORD = "bgectl_adapter.json"
BEFORE = "raw_peft"
OLD_TOKENS = "embedding/emb.pth"
"""Where FlagEmbedding keeps all token vectors of an adapter with new tokens: a pickled layer."""

UNKNOWN = ("use_dora", "use_bdlora", "layer_replication", "target_parameters", "alora_invocation_tokens")
"""Kinds of adapters whose sum is not W + scale · B·A."""


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory, in float32. Names are those of the backbone's weights."""

    where: str
    base: str
    config: Any
    """peft's LoraConfig."""
    low_rank: dict[str, tuple[Tensor, Tensor, float]]
    """Weight → A, B and the scale."""
    whole: dict[str, Tensor]
    """Weights that were trained whole."""
    tokens: tuple[list[int], Tensor] | None = None
    """Ids of new tokens, ascending, and their vectors (K, D)."""
    stored: dict[str, Tensor] = field(default_factory=dict)
    """The weights under the names of the file."""
    fingerprint: str | None = None
    """Of the base model's weights, where it is known."""
    before: tuple[Adapter, ...] = ()
    """What was merged into the base before this one was trained."""

    @property
    def chain(self) -> tuple[Adapter, ...]:
        """All adapters that have to be added to the base, in order."""
        return (*self.before, self)

    def added(self, name: str, weight: Tensor, embedding: str) -> Tensor:
        """A weight of the base with what this adapter learnt, in the precision of the weight.

        Args:
            name: The weight.
            weight: Its values before.
            embedding: The name of the embedding's weight, whose new rows there must be room for.

        Raises:
            RunError: The adapter was made for a weight of another shape.
        """
        if name in self.whole:
            self._same(name, self.whole[name].shape, weight.shape)
            return self.whole[name].to(weight.dtype)
        if name in self.low_rank:
            down, up, scale = self.low_rank[name]
            transposed = bool(self.config.fan_in_fan_out)
            shape = (len(up), down.shape[1])
            self._same(name, shape[::-1] if transposed else shape, weight.shape)
            change = scale * (up @ down)
            return (weight.float() + (change.T if transposed else change)).to(weight.dtype)
        if name == embedding and self.tokens is not None:
            ids, vectors = self.tokens
            self._same(name, (len(weight), vectors.shape[1]), weight.shape)
            return weight.index_copy(0, torch.tensor(ids), vectors.to(weight.dtype))
        return weight

    def _same(self, name: str, ours: Any, theirs: Any) -> None:
        if tuple(ours) != tuple(theirs):
            raise RunError(
                f"was trained on another base model: {name} is {tuple(theirs)} in the base and {tuple(ours)} in the "
                "adapter", where=self.where, hint=f"its own base is {self.base}",
            )  # fmt: skip

    @property
    def rows(self) -> int:
        """Token ids that the base must have room for."""
        return self.tokens[0][-1] + 1 if self.tokens else 0

    def changes(self, embedding: str) -> set[str]:
        """Names of the weights it changes."""
        return {*self.low_rank, *self.whole, *([embedding] if self.tokens else [])}

    def check_base(self, base: str, fingerprint: str | None) -> None:
        """Refuse a base of other weights than the adapter was trained on, where both are known.

        Raises:
            RunError: It is another one.
        """
        if self.fingerprint is not None and fingerprint is not None and self.fingerprint != fingerprint:
            raise RunError(
                f"was trained on another base model: the weights of {base} are others", where=self.where,
                hint=f"its own base was {self.base}",
            )  # fmt: skip

    def check_names(self, names: Collection[str], embedding: str) -> None:
        """Refuse a base that lacks what the adapter changes.

        Args:
            names: Of the base's weights.
            embedding: The name of the embedding's weight.

        Raises:
            RunError: It is another model's adapter.
        """
        unknown = sorted(self.changes(embedding) - set(names))
        if unknown:
            raise RunError(
                f"was trained on another base model: it changes {unknown[0]}, which this one lacks", where=self.where,
                hint=f"its own base is {self.base}",
            )  # fmt: skip


def read_adapter(name: str, hub: Hub) -> Adapter:
    """An adapter from its folder, or from the hub.

    Raises:
        RunError: It is incomplete or damaged, or of a kind that is not LoRA.
        DataError: Its configuration is not JSON.
    """
    config = _config(name, hub)
    stored = _stored(name, hub)
    low_rank, whole = {}, {}
    tokens = None
    used = {key for key in stored if key.endswith((".lora_A.weight", ".lora_B.weight"))}
    for key in sorted(stored):
        inner = key.removeprefix(PREFIX)
        if key.endswith(".lora_A.weight"):
            up = stored.get(key.replace(".lora_A.", ".lora_B."))
            if up is None:
                raise RunError(f"lacks the second half of {key}", where=name)
            layer = inner.removesuffix(".lora_A.weight")
            low_rank[f"{layer}.weight"] = (stored[key], up, _scale(config, layer, len(stored[key])))
        elif key.endswith(TOKENS_IN_FILE):
            ids = new_token_ids(config)
            order = sorted(range(len(ids)), key=ids.__getitem__)
            if len(ids) != len(stored[key]):
                raise RunError(f"names {len(ids)} new tokens and has vectors of {len(stored[key])}", where=name)
            tokens = [ids[index] for index in order], stored[key][order]
        elif ".token_adapter." in key:
            continue  # a copy of the base's own table, which peft adds where the vocabulary grew
        elif key not in used and ".lora_" in key:
            raise RunError(f"has weights of a kind that bgectl does not know: {key}", where=name)
        elif key not in used:
            whole[inner] = stored[key]
    if not low_rank and not whole and tokens is None:
        raise RunError("holds no weights of an adapter", where=name)
    record_path = model_file(name, RECORD, hub)
    record = read_json(record_path) if record_path else {}
    before_path = model_file(name, f"{BEFORE}/{ADAPTER_CONFIG}", hub)
    before = read_adapter(str(before_path.parent), Hub()).chain if before_path else ()
    adapter = Adapter(
        name, str(config.base_model_name_or_path or ""), config, low_rank, whole, tokens, stored,
        record.get("base_fingerprint"), before,
    )  # fmt: skip
    return _with_old_tokens(adapter, name, hub)


def _config(name: str, hub: Hub) -> Any:
    from peft import LoraConfig

    path = model_file(name, ADAPTER_CONFIG, hub)
    if path is None:
        raise RunError(
            f"holds no adapter: there is no {ADAPTER_CONFIG}", where=name,
            hint="give the output folder of a training with LoRA",
        )  # fmt: skip
    given = read_json(path)
    if given.get("peft_type") != "LORA":
        raise RunError(f"is an adapter of kind {given.get('peft_type')}; LoRA is what can be merged", where=name)
    odd = [key for key in UNKNOWN if given.get(key)]
    if odd:
        raise RunError(
            f"is LoRA with {' and '.join(odd)}, which bgectl does not compute", where=name,
            hint="peft's merge_and_unload does",
        )  # fmt: skip
    if given.get("bias", "none") != "none" or given.get("lora_bias"):
        raise RunError("has biases of its own, which bgectl does not compute", where=name)
    # Keys of newer releases of peft that mean nothing where they are not set.
    known = LoraConfig.__dataclass_fields__
    return LoraConfig(**{key: value for key, value in given.items() if key in known and key != "peft_type"})


def _stored(name: str, hub: Hub) -> dict[str, Tensor]:
    path = model_file(name, WEIGHTS, hub) or model_file(name, OLD_WEIGHTS, hub)
    if path is None:
        raise RunError(f"lacks the adapter's weights, {WEIGHTS}", where=name, hint="was its training cut off?")
    try:
        stored = load_file(path) if path.name == WEIGHTS else torch.load(path, map_location="cpu", weights_only=True)
        return {PREFIX + in_backbone(key.removeprefix(PREFIX)): tensor.float() for key, tensor in stored.items()}
    except (OSError, SafetensorError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as problem:
        reason = str(problem).split("\n")[0]
        raise RunError(f"the adapter's weights are damaged: {reason}", where=str(path)) from problem


def _scale(config: Any, layer: str, rank: int) -> float:
    """What B·A counts in a layer."""
    from peft.utils.other import get_pattern_key

    alphas = config.alpha_pattern or {}
    alpha = alphas.get(get_pattern_key(alphas.keys(), layer), config.lora_alpha)
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _with_old_tokens(adapter: Adapter, name: str, hub: Hub) -> Adapter:
    """The token vectors that FlagEmbedding keeps beside its adapters, taken in."""
    path = model_file(name, OLD_TOKENS, hub)
    if path is None:
        return adapter
    try:
        with torch.serialization.safe_globals([nn.Embedding]):
            table = torch.load(path, map_location="cpu", weights_only=True).weight.detach().float()
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as problem:
        reason = str(problem).split("\n")[0]
        raise RunError(f"cannot be read as a table of token vectors: {reason}", where=str(path)) from problem
    console.info(f"{name}: token vectors of {OLD_TOKENS}")
    return replace(adapter, tokens=(list(range(len(table))), table))


def add_in_place(backbone: Any, adapters: tuple[Adapter, ...]) -> None:
    """Add adapters to the weights of a model in memory.

    Args:
        backbone: The base model.
        adapters: In order. The table of token vectors grows to hold the tokens they bring.

    Raises:
        RunError: They were trained on another base model.
    """
    make_room(backbone, max(adapter.rows for adapter in adapters))
    own = dict(backbone.named_parameters())
    embedding = f"{embedding_name(backbone)}.weight"
    for adapter in adapters:
        adapter.check_names(own.keys(), embedding)
        with torch.no_grad():
            for name in sorted(adapter.changes(embedding)):
                own[name].data = adapter.added(name, own[name].data, embedding)


def put_layers(backbone: Any, adapter: Adapter, tokens: tuple[list[int], Tensor] | None) -> None:
    """Put an adapter into a model as it is trained, in layers of its own, with its weights.

    Args:
        backbone: The base model, with room for the tokens.
        adapter: Its configuration will name the tokens.
        tokens: Ids, ascending, and vectors (K, D) of the tokens whose vectors are the adapter's.

    Raises:
        RunError: It was trained on another base model.
    """
    config = adapter.config
    config.inference_mode, config.trainable_token_indices = False, None
    inject(backbone, config)
    train_whole(backbone, config.modules_to_save or [])
    take_weights(backbone, adapter.stored, adapter.where)
    if tokens is not None:
        config.trainable_token_indices = {embedding_name(backbone): tokens[0]}
        train_tokens(backbone.get_input_embeddings(), *tokens)


def make_room(backbone: Any, rows: int) -> None:
    """Let the table of token vectors have at least `rows` rows; new ones are zero until something fills them."""
    table = backbone.get_input_embeddings().weight
    before = len(table)
    if rows > before:
        backbone.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            backbone.get_input_embeddings().weight[before:] = 0.0


def first_vectors(table_VD: Tensor, pieces: list[list[int]]) -> Tensor:
    """(K, D) vectors for new tokens to begin with: the mean of the tokens that the text was cut into so far.

    Args:
        table_VD: The vectors of the known tokens.
        pieces: For each new token the ids of its text's former tokens; where there are none, all known tokens count.
    """
    mean_D = table_VD.float().mean(dim=0)
    return torch.stack([table_VD[ids].float().mean(dim=0) if ids else mean_D for ids in pieces])


def save_adapter(
    folder: Path, weights: Mapping[str, Tensor], config: Any, *, fingerprint: str | None = None,
    before: Path | None = None,
) -> None:  # fmt: skip
    """Write an adapter as peft reads it, and what bgectl knows of it beside.

    Args:
        folder: Where to.
        weights: The trained weights by the names they have in the backbone with adapters.
        config: peft's LoraConfig.
        fingerprint: Of the base model's weights.
        before: Folder of the adapter that was merged into the base before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {name_in_file(name): weight.detach().cpu().float().contiguous() for name, weight in weights.items()}
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
    kept = replace(config, inference_mode=True)
    if isinstance(kept.target_modules, set):
        # The same bytes from run to run.
        kept.target_modules = sorted(kept.target_modules)
    kept.save_pretrained(str(folder))
    record = {"base_fingerprint": fingerprint, "bgectl_version": __version__}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if before is not None:
        _copy(before, folder / BEFORE)


def _copy(source: Path, target: Path) -> None:
    """The adapter in a folder, without the checkpoints and models that lie there too."""
    target.mkdir()
    for name in (ADAPTER_CONFIG, WEIGHTS, OLD_WEIGHTS, RECORD):
        if (source / name).is_file():
            shutil.copy2(source / name, target / name)
    for name in (BEFORE, "embedding"):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
