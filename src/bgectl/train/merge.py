"""`bgectl merge-lora`: adapters and their base model → one model.

The weights go from the base's files to the new ones one at a time, so that merging holds one of them and the adapters.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedTokenizerBase

from bgectl import console
from bgectl.data.prompts import Prompts
from bgectl.encode import embedder_over
from bgectl.errors import RunError
from bgectl.jsonl import plain_mode
from bgectl.manifest import described, write_manifest
from bgectl.models.adapter import WEIGHTS, Adapter, add_in_place, make_room, put_layers, read_adapter
from bgectl.models.decoder import end_of, end_texts, is_decoder
from bgectl.models.encoder import (
    ADAPTER,
    Encoder,
    load_backbone,
    load_config,
    load_tokenizer,
    model_beside,
    quiet_libraries,
    refuse_used,
    save_beside,
    without_pooler,
    written,
)
from bgectl.models.facts import EmbedderFacts, embedder_facts
from bgectl.models.files import model_facts
from bgectl.models.hub import ADAPTER_CONFIG, Hub, model_file
from bgectl.models.lora import embedding_name
from bgectl.models.weights import Weights, open_weights, write_weights
from bgectl.options.merge import MergeOptions, shard_bytes
from bgectl.train.card import merged_card
from bgectl.train.checkpoints import WHOLE, is_whole, newest
from bgectl.train.folder import MARK

TEXTS = (
    "a short query", "What is the capital of the state in the north?", "模型 naïve Zürich",
    "A passage of some length says one thing after the other, so that the vectors of all layers have their share.",
)  # fmt: skip
AGREEMENT = {torch.float32: 0.9999, torch.float16: 0.999, torch.bfloat16: 0.99}
"""The least cosine between a text's vectors by adapter and by merged model; rounding takes the rest."""


def run(options: MergeOptions) -> None:
    """Merge what the options name.

    Raises:
        UsageError: The target is in use.
        RunError: An adapter or the base is missing, damaged, or they do not belong together; the disk is full.
    """
    quiet_libraries()
    hub = Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code)
    merge(
        options.adapters, options.output_dir, hub=hub, base=options.base,
        dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        shard=shard_bytes(options.max_shard_size), check=options.check,
    )  # fmt: skip


def merge(
    names: Sequence[str], out: Path, *, hub: Hub, base: str | None = None, base_revision: str | None = None,
    dtype: torch.dtype | None = None, shard: int = 5_000_000_000, check: bool = True,
) -> None:  # fmt: skip
    """Write the model that is the base and adapters together.

    Args:
        names: Adapters, added in their order.
        out: Folder that must not exist, or be empty.
        hub: How to reach models.
        base: Name or folder of the base; None asks the adapters.
        base_revision: Of a base on the hub.
        dtype: Precision of the weights; None keeps the base's.
        shard: Bytes of a file of weights at most.
        check: Compare vectors by adapter and by merged model.

    Raises:
        UsageError, RunError: See `run`.
    """
    refuse_used(out)
    folders = [adapter_folder(name, hub) for name in names]
    adapters = chain_of([read_adapter(folder, hub) for folder in folders])
    base = base or base_of_all(adapters)
    own_hub = replace(hub, revision=base_revision)
    config = base_config(base, own_hub)
    weights = open_weights(base, own_hub)
    check_fingerprints(adapters, base, weights)
    tokenizer, facts = what_goes_along(folders[-1], base, hub)
    with model_beside(out) as beside:
        with written(beside):
            write_merged(beside, adapters, base, config, weights, dtype, shard, own_hub)
            write_card(beside, out.name, adapters, base, facts)
            inputs = described({"adapters": [Path(folder) / WEIGHTS for folder in folders]})
            models = {"models": model_facts([base], own_hub), "dtype": None if dtype is None else str(dtype)}
            write_manifest(beside, "merge-lora", inputs, models)
        save_beside(beside, tokenizer, facts, config)
        for path in beside.rglob("*.safetensors"):
            path.chmod(plain_mode())
        if check:
            compare(beside, adapters, base, facts, tokenizer, own_hub)
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    console.info(f"merged model: {out} ({size / 1e9:.2f} GB)")


def adapter_folder(name: str, hub: Hub) -> str:
    """Where the adapter that a name means lies: there, in the `adapter/` of an encoder's training, or, of a training
    that did not get to its end, in the newest whole checkpoint.

    Raises:
        RunError: There is none, or it is a checkpoint that was not written to its end.
    """
    folder = Path(name)
    if not folder.is_dir():
        if model_file(name, ADAPTER_CONFIG, hub) is None:
            raise RunError(f"holds no adapter: there is no {ADAPTER_CONFIG}", where=name)
        return name
    # Other trainers' checkpoints are not marked as whole.
    ours = (folder.parent / MARK).is_file() or (folder / WHOLE).is_file() or not (folder / WEIGHTS).is_file()
    if folder.name.startswith("checkpoint-") and ours and not is_whole(folder):
        found = newest(folder.parent)
        hint = f"the newest whole one is {found}" if found else "there is no whole one beside it"
        raise RunError("the checkpoint was not written to its end, or was changed", where=name, hint=hint)
    for place in (folder, folder / ADAPTER):
        if (place / ADAPTER_CONFIG).is_file():
            return str(place)
    found = newest(folder)
    if found is not None:
        console.info(f"{name}: taking the newest whole checkpoint, {found.name}")
        return adapter_folder(str(found), hub)
    unfinished = any(folder.glob("checkpoint-*"))
    raise RunError(
        "no checkpoint in it is whole" if unfinished else f"holds no adapter: there is no {ADAPTER_CONFIG}", where=name,
        hint="give the output folder of a training with LoRA, or one of its checkpoints",
    )  # fmt: skip


def chain_of(given: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """All adapters to add, in order; those that one was trained on top of come with it, once."""
    chain: list[Adapter] = []
    for adapter in given:
        for link in adapter.chain:
            if not any(_same(link, other) for other in chain):
                chain.append(link)
    return tuple(chain)


def _same(one: Adapter, other: Adapter) -> bool:
    return one.stored.keys() == other.stored.keys() and all(
        torch.equal(one.stored[key], other.stored[key]) for key in one.stored
    )


def base_of_all(adapters: Sequence[Adapter]) -> str:
    """The base that the adapters name.

    Raises:
        RunError: They name none, or several.
    """
    named = {adapter.base for adapter in adapters if adapter.base}
    if not named:
        raise RunError("the adapter does not name its base model", where=adapters[-1].where, hint="give --base")
    if len(named) > 1:
        raise RunError(
            f"the adapters were trained on different base models: {', '.join(sorted(named))}", where=adapters[-1].where,
            hint="if these are copies of one model, say which by --base",
        )  # fmt: skip
    return named.pop()


def base_config(base: str, hub: Hub) -> Any:
    """The configuration of the base.

    Raises:
        RunError: The base cannot be found.
    """
    try:
        config = load_config(base, hub)
    except RunError as problem:
        raise RunError(
            f"the base model cannot be loaded: {problem.message}", where=base,
            hint="--base says where it is now",
        ) from problem  # fmt: skip
    if getattr(config, "quantization_config", None):
        raise RunError("the base model is quantised; adapters are merged into whole weights", where=base)
    return config


def check_fingerprints(adapters: Sequence[Adapter], base: str, weights: Weights | None) -> None:
    """Refuse a base of other weights than the adapters were trained on.

    Raises:
        RunError: It is another one.
    """
    if weights is None or not any(adapter.fingerprint for adapter in adapters):
        console.info("whether this is the base the adapter was trained on, only the shapes of its weights can tell")
        return
    found = weights.fingerprint()
    for adapter in adapters:
        adapter.check_base(base, found)


def what_goes_along(folder: str, base: str, hub: Hub) -> tuple[PreTrainedTokenizerBase, EmbedderFacts]:
    """Tokenizer, pooling and prompts of the adapter; of one that has none, those of its base."""
    decoder = is_decoder(base, replace(hub, revision=None))
    complete = model_file(folder, "tokenizer_config.json", hub) is not None
    tokenizer = load_tokenizer(folder if complete else base, hub, decoder=decoder)
    if decoder:
        end_texts(tokenizer)
    told = model_file(folder, "modules.json", hub) is not None
    facts = embedder_facts(folder if told else base, hub, default_pooling="last_token" if decoder else "cls")
    return tokenizer, facts


def write_merged(
    folder: Path, adapters: tuple[Adapter, ...], base: str, config: Any, weights: Weights | None,
    dtype: torch.dtype | None, shard: int, hub: Hub,
) -> None:  # fmt: skip
    """Write configuration and weights.

    Raises:
        RunError: The adapters do not fit the base, or the disk is too small.
    """
    dtype = dtype or getattr(config, "dtype", None)
    with torch.device("meta"):
        skeleton = AutoModel.from_config(
            config, trust_remote_code=hub.trust_remote_code, **without_pooler(config)
        )  # fmt: skip
    make_room(skeleton, max(adapter.rows for adapter in adapters))
    embedding = f"{embedding_name(skeleton)}.weight"
    shapes = {name: list(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    for adapter in adapters:
        adapter.check_names(shapes.keys(), embedding)
    if weights is not None and not shapes.keys() - weights.places.keys():
        shapes = {name: shapes[name] for name in weights.places if name in shapes}
        get = weights.get
    else:
        # Other forms of files, or names that transformers translates as it loads.
        backbone = load_backbone(base, hub, dtype=dtype or torch.float32)
        get = backbone.state_dict().__getitem__
    dtype = dtype or get(embedding).dtype
    needed = sum(torch.Size(shape).numel() for shape in shapes.values()) * torch.empty((), dtype=dtype).element_size()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"the disk is too small: the model takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            where=str(folder.parent),
        )
    rows = shapes[embedding][0]

    def each() -> Iterator[tuple[str, Tensor]]:
        with console.progress("Merging", len(shapes), "weights") as advance:
            for name in shapes:
                weight = get(name)
                if name == embedding and len(weight) < rows:
                    weight = torch.cat([weight, weight.new_zeros(rows - len(weight), weight.shape[1])])
                if any(name in adapter.changes(embedding) for adapter in adapters):
                    weight = weight.float()
                    for adapter in adapters:
                        weight = adapter.added(name, weight, embedding)
                yield name, weight
                advance(1)

    write_weights(folder, each(), shapes, dtype, shard)
    config.vocab_size = max(rows, int(getattr(config, "vocab_size", 0)))
    config.dtype = dtype
    config.architectures = [type(skeleton).__name__]
    config.save_pretrained(folder)


def write_card(folder: Path, name: str, adapters: Sequence[Adapter], base: str, facts: EmbedderFacts) -> None:
    """Write the model card: what was merged, and how to use it."""
    text = merged_card(name=name, base_model=base, adapters=[adapter.where for adapter in adapters], facts=facts)
    (folder / "README.md").write_text(text, encoding="utf-8")


def compare(
    folder: Path, adapters: tuple[Adapter, ...], base: str, facts: EmbedderFacts, tokenizer: PreTrainedTokenizerBase,
    hub: Hub,
) -> None:  # fmt: skip
    """See that adapter and merged model give the same vectors, and say how near they are.

    Raises:
        RunError: They do not.
    """
    dtype = getattr(load_config(str(folder), Hub()), "dtype", None) or torch.float32
    decoder = is_decoder(str(folder), Hub())

    def vectors(backbone: Any) -> Tensor:
        encoder = Encoder(backbone.eval(), facts.pooling)
        encoder.end = end_of(tokenizer) if decoder else None
        embedder = embedder_over(encoder, tokenizer, replace(facts, normalize=True, query_suffix=""), Prompts(), 64, 64)
        return torch.from_numpy(embedder.encode_passages(list(TEXTS)))

    backbone = load_backbone(base, hub, dtype=dtype)
    if len(adapters) > 1:
        add_in_place(backbone, adapters[:-1])
    make_room(backbone, adapters[-1].rows)
    put_layers(backbone, adapters[-1], adapters[-1].tokens)
    by_adapter = vectors(backbone)
    del backbone
    gc.collect()
    by_merged = vectors(load_backbone(str(folder), Hub(), dtype=dtype))
    cosine = float((by_adapter * by_merged).sum(dim=1).min())
    difference = float((by_adapter - by_merged).abs().max())
    told = f"vectors of {len(TEXTS)} texts by adapter and by merged model: cosine {cosine:.6f} or more, largest "
    told += f"difference {difference:.1e} ({str(dtype).removeprefix('torch.')})"
    if not cosine >= AGREEMENT.get(dtype, 0.99):
        raise RunError(f"the merged model does not agree with the adapter; {told}", where=str(folder))
    console.info(told)
