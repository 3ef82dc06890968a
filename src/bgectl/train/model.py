"""The model of a run: loading it, what is frozen or recomputed in it, and what its folder will say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from bgectl import console
from bgectl.data.datasets import Collection
from bgectl.data.prompts import Prompts, prefix_of
from bgectl.errors import UsageError
from bgectl.models.decoder import is_decoder
from bgectl.models.encoder import Encoder, load_backbone, load_tokenizer, position_limit
from bgectl.models.facts import EmbedderFacts, embedder_facts
from bgectl.models.hub import Hub
from bgectl.models.lora import Lora, add_adapters
from bgectl.models.m3 import with_heads
from bgectl.models.weights import fingerprint_of
from bgectl.options.train import TrainBaseOptions, TrainIclOptions, TrainLlmOptions, TrainM3Options, TrainOptions
from bgectl.train.decoder import base_name, check_kind, load_decoder


def load_model(options: TrainOptions, collection: Collection) -> tuple[Encoder, PreTrainedTokenizerBase, EmbedderFacts]:
    """The encoder, its tokenizer, and what will be written beside the trained weights, which are in float32."""
    hub = Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code)
    name = options.model_name_or_path
    decoder = is_decoder(name, hub)
    check_kind(name, decoder=decoder, wanted=isinstance(options, TrainLlmOptions))
    usual = "last_token" if decoder else "cls"
    facts = embedder_facts(name, hub, default_pooling=usual, pooling=options.sentence_pooling_method)
    console.info(f"{name}: {facts.describe()}")
    query, passage = saved_prompts(options, collection)
    if facts.query_prompt and facts.query_prompt != query:
        console.warn(
            f"{name} was trained with the query prompt {facts.query_prompt!r} and this run uses {query!r}; "
            "--query-instruction-for-retrieval sets it"
        )
    if isinstance(options, TrainLlmOptions):
        encoder, tokenizer = load_decoder(options, hub, facts.pooling)
    else:
        encoder, tokenizer = load_encoder(options, hub, facts.pooling)
    backbone: Any = encoder.backbone
    limit = position_limit(backbone.config)
    longest = max(options.query_max_len, options.passage_max_len)
    facts = replace(
        facts,
        normalize=options.normalize_embeddings,
        query_prompt=query,
        passage_prompt=passage,
        query_instruction=query_instruction(options, collection) or "",
        query_format=options.query_instruction_format,
        query_suffix=options.icl_suffix_str if isinstance(options, TrainIclOptions) else "",
        max_length=min(longest, limit or longest),
        sources={},
    )
    if encoder.lora is not None:
        tell_trained(backbone)
    if options.fix_position_embedding:
        freeze_positions(backbone)
    if options.gradient_checkpointing:
        recompute_activations(backbone)
    if options.torch_compile:
        # Pieces are of all lengths; in place, so that the weights keep their names.
        backbone.compile(dynamic=True)
    if isinstance(options, TrainM3Options) and options.heads:
        encoder = with_heads(encoder, name, tokenizer, hub, colbert_dim=options.colbert_dim, new=True)
        if options.fix_encoder:
            backbone.requires_grad_(False)
    return encoder, tokenizer, facts


def load_encoder(options: TrainOptions, hub: Hub, pooling: str) -> tuple[Encoder, PreTrainedTokenizerBase]:
    """The encoder in float32, with adapters where they are trained, and its tokenizer."""
    name = options.model_name_or_path
    tokenizer = load_tokenizer(options.tokenizer_name or name, hub)
    backbone = load_backbone(name, hub, config_name=options.config_name, attention=options.attn_implementation)
    encoder = Encoder(backbone, pooling)
    if isinstance(options, TrainBaseOptions | TrainM3Options) and options.use_lora:
        config = add_adapters(
            backbone, rank=options.lora_rank, alpha=options.lora_alpha, dropout=options.lora_dropout,
            targets=options.target_modules, base=base_name(name),
        )  # fmt: skip
        encoder.lora = Lora(config, fingerprint_of(name, hub))
    return encoder, tokenizer


def tell_trained(backbone: Any) -> None:
    """Say how much of a model with adapters is trained."""
    parameters = list(backbone.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters)
    console.info(f"LoRA: {trained:,} of {total:,} weights are trained ({trained / total:.1%})")


def recompute_activations(backbone: Any) -> None:
    """Turn gradient checkpointing on; transformers 5 renamed it in a minor release."""
    enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def freeze_positions(backbone: Any) -> None:
    """Keep the position embeddings as they are.

    Raises:
        UsageError: The model has none.
    """
    frozen = [p for name, p in backbone.named_parameters() if "position_embeddings" in name]
    if not frozen:
        raise UsageError("the model has no position embeddings to freeze", where="--fix-position-embedding")
    for parameter in frozen:
        parameter.requires_grad_(False)


def prompts_of(options: TrainOptions) -> Prompts:
    """The instructions that rows without a `prompt` get."""
    return Prompts(
        options.query_instruction_for_retrieval,
        options.query_instruction_format,
        options.passage_instruction_for_retrieval,
        options.passage_instruction_format,
    )


def query_instruction(options: TrainOptions, collection: Collection) -> str | None:
    """The option's, else the `prompt` of the rows where all retrieval rows have the same one."""
    if options.query_instruction_for_retrieval is not None:
        return options.query_instruction_for_retrieval
    files = [file for file in collection.files() if not any("symmetric" in kind for kind in file.types)]
    found = {prompt for file in files for prompt in file.prompts}
    return found.pop() if len(found) == 1 else None


def saved_prompts(options: TrainOptions, collection: Collection) -> tuple[str, str]:
    """The prefixes that a user of the trained model should put before queries and passages."""
    query = prefix_of(options.query_instruction_format, query_instruction(options, collection))
    passage = prefix_of(options.passage_instruction_format, options.passage_instruction_for_retrieval)
    if query is None or passage is None:
        console.warn(
            "the instruction format puts text behind the query or passage, which a model folder cannot say; "
            "whoever uses the model must do so"
        )
    return query or "", passage or ""


def fit_lengths(options: TrainOptions, encoder: Encoder) -> tuple[int, int]:
    """Query and passage length, no longer than the model's position table."""
    limit = position_limit(encoder.backbone.config)
    asked = (options.query_max_len, options.passage_max_len)
    if limit is not None and max(asked) > limit:
        console.warn(f"the model takes {limit} tokens; longer texts are cut there")
    return min(asked[0], limit or asked[0]), min(asked[1], limit or asked[1])


def matryoshka_dims(options: TrainOptions, width: int) -> list[int]:
    """The prefixes to train: those given, else the whole, half, … down to 32."""
    if not options.use_mrl:
        return []
    if options.mrl_dims:
        return options.mrl_dims
    dims = [width]
    while dims[-1] // 2 >= 32:
        dims.append(dims[-1] // 2)
    return dims


def learning_rates(model: nn.Module, rate: float, decay: float) -> dict[str, float]:
    """The learning rate of each parameter: `rate` in the last layer and above it, less by `decay` for each layer below.

    Layer-wise learning-rate decay (ULMFiT, arXiv 1801.06146 §3.2; ELECTRA, arXiv 2003.10555, appendix B).

    Raises:
        UsageError: The model's layers are not numbered.
    """
    depths = dict(_depths(model))
    layers = max(depths.values(), default=-1)
    if layers < 0:
        raise UsageError("the model's layers are not numbered", where="--layerwise-lr-decay")
    # Embeddings stand below layer 0; what follows the last layer, such as a final norm, learns as it does.
    first = next(index for index, name in enumerate(depths) if depths[name] >= 0)
    result = {}
    for index, (name, depth) in enumerate(depths.items()):
        level = depth if depth >= 0 else (-1 if index < first else layers)
        result[name] = rate * decay ** (layers - level)
    return result


def _depths(model: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, number of the layer) of each parameter in the model's order; -1 outside of layers."""
    for name, _ in model.named_parameters():
        found = re.search(r"\b(?:layer|layers|h|block|blocks)\.(\d+)\.", name)
        yield name, int(found[1]) if found else -1
