"""The decoder of a run: loading it, its new tokens and its adapters."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bgectl import console
from bgectl.errors import RunError, UsageError
from bgectl.models.adapter import (
    Adapter,
    add_in_place,
    first_vectors,
    make_room,
    put_layers,
    read_adapter,
)
from bgectl.models.decoder import end_texts
from bgectl.models.encoder import Encoder, load_backbone, load_tokenizer
from bgectl.models.hub import ADAPTER_CONFIG, Hub, base_of, model_file
from bgectl.models.lora import Lora, add_adapters
from bgectl.models.weights import fingerprint_of
from bgectl.options.train import TrainLlmOptions


def load_decoder(options: TrainLlmOptions, hub: Hub, pooling: str) -> tuple[Encoder, PreTrainedTokenizerBase]:
    """The model, with adapters where they are trained, and its tokenizer.

    The frozen weights are held in the precision that is computed in; all that is trained is in float32.

    Raises:
        UsageError: Options that the model or this machine does not allow.
        RunError: The model or an adapter cannot be loaded, or they do not belong together.
    """
    name = options.model_name_or_path
    if base_of(name, hub) is not None:
        raise RunError(
            "is an adapter", where=name,
            hint="--from-peft goes on with it, --raw-peft trains another one on top; --model names its base",
        )  # fmt: skip
    started = read_adapter(options.from_peft, hub) if options.from_peft else None
    before = adapter_before(options, started, hub)
    tokenizer = load_tokenizer(tokenizer_name(options, hub), hub, decoder=True, slow=options.use_slow_tokenizer)
    end = end_texts(tokenizer)
    new = add_tokens(tokenizer, options.additional_special_tokens)
    backbone = load_backbone(
        name, hub, dtype=frozen_dtype(options), config_name=options.config_name, attention=options.attention,
        quantization=four_bit(options) if options.load_in_4bit else None,
    )  # fmt: skip
    # Else it keeps keys and values for tokens that never come.
    backbone.config.use_cache = False
    if before is not None:
        add_in_place(backbone, read_adapter(str(before), Hub()).chain)
    vectors = new_vectors(backbone, new, len(tokenizer))
    encoder = Encoder(backbone, pooling)
    encoder.end = end
    if options.use_lora:
        fingerprint = fingerprint_of(name, hub)
        if started is None:
            config = begin(backbone, options, vectors)
        else:
            started.check_base(name, fingerprint)
            config = go_on(backbone, started, vectors, tokenizer)
            config.base_model_name_or_path = base_name(name)
        encoder.lora = Lora(config, fingerprint, before, alone=True)
    return encoder, tokenizer


def base_name(name: str) -> str:
    """What an adapter calls its base: a folder by its whole path, so that it is found from elsewhere."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def adapter_before(options: TrainLlmOptions, started: Adapter | None, hub: Hub) -> Path | None:
    """The folder of the adapter that is merged into the model before its training.

    Raises:
        UsageError: `--from-peft` was trained on top of one, and `--raw-peft` names another.
    """
    name = options.raw_peft
    if started is not None and started.before:
        if name is not None:
            raise UsageError(
                f"{options.from_peft} was trained on top of an adapter, and brings it", where="--raw-peft",
                hint="leave it out",
            )  # fmt: skip
        return Path(started.before[-1].where)
    if name is None:
        return None
    path = model_file(name, ADAPTER_CONFIG, hub)
    if path is None:
        raise RunError(f"holds no adapter: there is no {ADAPTER_CONFIG}", where=name)
    return path.parent


def tokenizer_name(options: TrainLlmOptions, hub: Hub) -> str:
    """Where the tokenizer is: what is named, else an adapter that has one, for its new tokens, else the model."""
    if options.tokenizer_name:
        return options.tokenizer_name
    adapters = [name for name in (options.from_peft, options.raw_peft) if name]
    return next((n for n in adapters if model_file(n, "tokenizer_config.json", hub)), options.model_name_or_path)


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> dict[int, list[int]]:
    """Add the tokens that the vocabulary lacks; returns the id of each, and the ids its text was cut into before."""
    vocabulary = tokenizer.get_vocab()
    known = [token for token in tokens if token in vocabulary]
    new = [token for token in tokens if token not in vocabulary]
    pieces = [tokenizer(token, add_special_tokens=False)["input_ids"] for token in new]
    if known:
        console.info(f"in the vocabulary already: {' '.join(known)}")
    if not new:
        return {}
    tokenizer.add_tokens(new, special_tokens=True)
    console.info(f"{len(new)} new tokens: {' '.join(new)}")
    return dict(zip(tokenizer.convert_tokens_to_ids(new), pieces, strict=True))


def new_vectors(backbone: Any, new: dict[int, list[int]], rows: int) -> tuple[list[int], Tensor] | None:
    """Make room for new tokens and fill their rows; returns their ids, ascending, and vectors."""
    if not new:
        return None
    ids = sorted(new)
    vectors = first_vectors(backbone.get_input_embeddings().weight.detach(), [new[number] for number in ids])
    make_room(backbone, rows)
    table = backbone.get_input_embeddings().weight
    with torch.no_grad():
        table[ids] = vectors.to(table.dtype)
    return ids, vectors


def begin(backbone: Any, options: TrainLlmOptions, vectors: tuple[list[int], Tensor] | None) -> Any:
    """New adapters; returns their configuration."""
    return add_adapters(
        backbone, rank=options.lora_rank, alpha=options.lora_alpha, dropout=options.lora_dropout,
        targets=[] if options.target_modules == ["all-linear"] else options.target_modules,
        base=base_name(options.model_name_or_path), whole=options.modules_to_save, new_tokens=vectors,
    )  # fmt: skip


def go_on(
    backbone: Any, started: Adapter, vectors: tuple[list[int], Tensor] | None, tokenizer: PreTrainedTokenizerBase
) -> Any:
    """The adapter that `--from-peft` names, ready to be trained further, with new tokens beside its own.

    Raises:
        RunError: It was trained on another base.
    """
    known = {} if vectors is None else dict(zip(*vectors, strict=True))
    if started.tokens is not None:
        # FlagEmbedding keeps the vectors of all tokens: those of the base stay as they are.
        first = len(backbone.get_input_embeddings().weight) if vectors is None else vectors[0][0]
        ids, rows = started.tokens
        own = zip(ids, rows, strict=True)
        known |= {number: row for number, row in own if len(ids) < first or number >= first}
        make_room(backbone, len(tokenizer))
    ids = sorted(known)
    put_layers(backbone, started, (ids, torch.stack([known[key] for key in ids])) if known else None)
    return started.config


def frozen_dtype(options: TrainLlmOptions) -> torch.dtype:
    """The precision of weights that are not trained: that of the computation."""
    if not options.use_lora:
        return torch.float32
    return torch.bfloat16 if options.bf16 else torch.float16 if options.fp16 else torch.float32


def four_bit(options: TrainLlmOptions) -> Any:
    """Weights in 4 bits: NormalFloat, with the scales quantised too (QLoRA, arXiv 2305.14314).

    Raises:
        UsageError: The package for it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError("bitsandbytes is not installed", where="--load-in-4bit", hint="pip install 'bgectl[qlora]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=frozen_dtype(options),
    )  # fmt: skip


def check_kind(name: str, *, decoder: bool, wanted: bool) -> None:
    """Refuse a decoder where an encoder is wanted, and the other way round.

    Raises:
        RunError: It is of the other kind.
    """
    if decoder != wanted:
        found, command = ("a decoder", "llm") if decoder else ("an encoder", "base")
        raise RunError(f"is {found}", where=name, hint=f"`bgectl train {command}` trains those")
