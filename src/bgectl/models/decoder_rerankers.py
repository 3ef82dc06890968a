"""Decoders that score a pair of query and passage: the logit of `Yes`, a head on an early layer, or a head after the
passage was compressed (reference, SPEC §8; bge-reranker-v2-gemma, -minicpm-layerwise and -2.5-gemma2-lightweight).

Letters: N pairs, L tokens, H hidden size, R tokens that become one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2Model,
    GraniteConfig,
    GraniteModel,
    PreTrainedTokenizerBase,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from bgectl.errors import RunError, UsageError
from bgectl.models.adapter import add_in_place, read_adapter
from bgectl.models.encoder import load_tokenizer
from bgectl.models.hub import ADAPTER_CONFIG, Hub, check_model_name, model_file, read_json, unreachable
from bgectl.models.pooling import pool
from bgectl.models.rerankers import PairScorer
from bgectl.models.weights import open_weights

BASE, LAYERWISE, LIGHTWEIGHT = "decoder-only-base", "decoder-only-layerwise", "decoder-only-lightweight"
KINDS = (BASE, LAYERWISE, LIGHTWEIGHT)

PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
LIGHTWEIGHT_PROMPT = "Predict whether passage B contains an answer to query A."
QUERY, PASSAGE, BETWEEN = "A: ", "B: ", "\n"


@dataclass(frozen=True)
class PairTokens:
    """The tokens of a pair, and where the passage lies among them."""

    ids: list[int]
    start: int
    end: int


class Scoring(Protocol):
    """A model that scores sequences."""

    def __call__(self, ids_NL: Tensor, mask_NL: Tensor, spans_N2: Tensor) -> Tensor:
        """(N,) logits.

        Args:
            ids_NL: Padded on the right: positions then count from the first token, and what a pair is batched with does
                not change how they are rounded.
            mask_NL: 1 for a token.
            spans_N2: Where each passage starts and ends.
        """
        ...


class YesLogit(nn.Module):
    """The logit of one token at the last position; no other of the vocabulary is computed."""

    def __init__(self, model: Any, token: int) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        # In float32: the three digits of bfloat16 are too few to tell candidates apart.
        one = nn.Linear(head.in_features, 1, bias=head.bias is not None)
        one.weight = nn.Parameter(head.weight[token : token + 1].detach().clone().float(), requires_grad=False)
        if head.bias is not None:
            one.bias = nn.Parameter(head.bias[token : token + 1].detach().clone().float(), requires_grad=False)
        one.register_forward_pre_hook(lambda _, given: (given[0].float(),))
        # What the model does to logits, such as a soft cap, it does to this one too.
        model.set_output_embeddings(one)
        self.model = model

    def forward(self, ids_NL: Tensor, mask_NL: Tensor, spans_N2: Tensor) -> Tensor:
        """See `Scoring`."""
        logits_NL1 = self.model(input_ids=ids_NL, attention_mask=mask_NL, use_cache=False).logits
        return pool(logits_NL1, mask_NL, "last_token")[:, 0]


class LayerHead(nn.Module):
    """A head of one logit on the normalised states of a layer.

    Args:
        backbone: Its layers up to that one.
        head: (1, H).
    """

    def __init__(self, backbone: Any, head: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Parameter(head, requires_grad=False)

    def forward(self, ids_NL: Tensor, mask_NL: Tensor, spans_N2: Tensor) -> Tensor:
        """See `Scoring`."""
        states_NLH = self.backbone(input_ids=ids_NL, attention_mask=mask_NL, use_cache=False).last_hidden_state
        return nn.functional.linear(pool(states_NLH, mask_NL, "last_token").float(), self.head)[:, 0]


class CompressedHead(nn.Module):
    """A Gemma 2 whose passages get shorter on the way.

    Args:
        backbone: Its layers up to the one that the head is on.
        head: (1, H).
        layers: Before these layers passages are compressed.
        ratio: R.
        soft_cap: Of the logit; None for none.
    """

    def __init__(
        self, backbone: Gemma2Model, head: Tensor, layers: Sequence[int], ratio: int, soft_cap: float | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Parameter(head, requires_grad=False)
        self.layers = set(layers)
        self.ratio = ratio
        self.soft_cap = soft_cap

    def forward(self, ids_NL: Tensor, mask_NL: Tensor, spans_N2: Tensor) -> Tensor:
        """See `Scoring`."""
        backbone: Any = self.backbone
        states_NLH = backbone.embed_tokens(ids_NL)
        if not hasattr(backbone.embed_tokens, "embed_scale"):
            states_NLH = states_NLH * torch.tensor(self.head.shape[1] ** 0.5, dtype=states_NLH.dtype)
        masks, positions = self._masks(states_NLH, mask_NL)
        for number, layer in enumerate(backbone.layers):
            if number in self.layers and number != 0 and self.ratio > 1:
                states_NLH, mask_NL, spans_N2 = compress(states_NLH, mask_NL, spans_N2, self.ratio)
                masks, positions = self._masks(states_NLH, mask_NL)
            states_NLH = layer(
                states_NLH, attention_mask=masks[backbone.config.layer_types[number]],
                position_embeddings=backbone.rotary_emb(states_NLH, positions), position_ids=positions,
            )  # fmt: skip
        last_NH = backbone.norm(pool(states_NLH, mask_NL, "last_token"))
        logits = nn.functional.linear(last_NH.float(), self.head)[:, 0]
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def _masks(self, states_NLH: Tensor, mask_NL: Tensor) -> tuple[dict[str, Any], Tensor]:
        positions = torch.arange(states_NLH.shape[1], device=states_NLH.device).unsqueeze(0)
        given = {
            "config": self.backbone.config, "inputs_embeds": states_NLH, "attention_mask": mask_NL,
            "past_key_values": None, "position_ids": positions,
        }  # fmt: skip
        made = {"full_attention": create_causal_mask(**given)}
        return made | {"sliding_attention": create_sliding_window_causal_mask(**given)}, positions


def compress(states_NLH: Tensor, mask_NL: Tensor, spans_N2: Tensor, ratio: int) -> tuple[Tensor, Tensor, Tensor]:
    """Put the mean of each run of R states of the passage in the run's place; what stands around it stays.

    Args:
        states_NLH: Padded on the right.
        mask_NL: 1 for a token.
        spans_N2: Where each passage starts and ends.
        ratio: R; the last run of a passage may be shorter.

    Returns:
        States, mask and spans of the shorter sequences.
    """
    places = torch.arange(states_NLH.shape[1], device=states_NLH.device).expand(mask_NL.shape)
    start_N1, end_N1 = spans_N2[:, :1], spans_N2[:, 1:]
    kept_N1 = (end_N1 - start_N1 + ratio - 1) // ratio
    within = start_N1 + (places - start_N1) // ratio
    target_NL = torch.where(
        places < start_N1, places, torch.where(places < end_N1, within, places - end_N1 + start_N1 + kept_N1)
    )
    lengths_N = mask_NL.sum(dim=1) - (end_N1 - start_N1 - kept_N1)[:, 0]
    longest = int(lengths_N.max())
    real = mask_NL.bool()
    rows = torch.arange(len(mask_NL), device=mask_NL.device).unsqueeze(1).expand(mask_NL.shape)[real]
    new = states_NLH.new_zeros(len(mask_NL), longest, states_NLH.shape[-1], dtype=torch.float32)
    count = new.new_zeros(len(mask_NL), longest)
    new.index_put_((rows, target_NL[real]), states_NLH[real].float(), accumulate=True)
    count.index_put_((rows, target_NL[real]), new.new_ones(len(rows)), accumulate=True)
    mean = (new / count.clamp(min=1).unsqueeze(-1)).to(states_NLH.dtype)
    mask = (torch.arange(longest, device=mask_NL.device) < lengths_N.unsqueeze(1)).to(mask_NL.dtype)
    return mean, mask, torch.cat([start_N1, start_N1 + kept_N1], dim=1)


@dataclass
class DecoderReranker(PairScorer[PairTokens]):
    """A decoder that scores pairs, on one or several devices."""

    prompt: str = PROMPT
    _parts: tuple[list[int], list[int], list[int]] = field(init=False, repr=False)
    """Token ids of bos, of what stands between the parts, and of the prompt."""

    def __post_init__(self) -> None:
        bos = self.tokenizer.bos_token_id
        first = [] if bos is None or bos == self.tokenizer.pad_token_id else [bos]
        between, prompt = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (BETWEEN, self.prompt)
        )
        self._parts = first, between, prompt

    def encode(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[PairTokens], int]:
        """`[bos] query \\n passage \\n prompt`, the passage cut so that what stands before the prompt fits."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        ids = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        tokens = dict(zip(texts, ids, strict=True))
        first, between, prompt = self._parts
        longest = self.max_length + len(between) + len(prompt)
        result, cut = [], 0
        for query, passage in pairs:
            head = [*first, *tokens[query][: self.query_max_length], *between]
            own = tokens[passage][: min(self.max_length, max(longest - len(head), 0))]
            cut += len(own) < len(tokens[passage]) or self.query_max_length < len(tokens[query])
            result.append(PairTokens([*head, *own, *between, *prompt], len(head), len(head) + len(own)))
        return result, cut

    def length(self, item: PairTokens) -> int:
        """Tokens of a sequence."""
        return len(item.ids)

    def forward(self, items: Sequence[PairTokens], device: int) -> Tensor:
        """(N,) logits."""
        inputs = self.tokenizer.pad({"input_ids": [item.ids for item in items]}, return_tensors="pt")
        place = self.devices[device]
        spans = torch.tensor([[item.start, item.end] for item in items], device=place)
        logits: Tensor = self.models[device](inputs["input_ids"].to(place), inputs["attention_mask"].to(place), spans)
        return logits


def load_decoder_reranker(
    name: str, kind: str, *, hub: Hub, devices: Sequence[torch.device], dtype: torch.dtype,
    query_max_length: int | None, max_length: int, batch_tokens: int, batch_size: int, prompt: str | None = None,
    cutoff_layer: int | None = None, compress_layers: Sequence[int] = (), compress_ratio: int = 1,
    adapter: str | None = None,
) -> DecoderReranker:  # fmt: skip
    """Load a decoder that scores pairs.

    Args:
        name: Folder or hub name.
        kind: One of KINDS.
        hub: How to reach it.
        devices: Where it runs; each holds a copy.
        dtype: Precision of the weights.
        query_max_length: Tokens of a query; None for three quarters of `max_length`.
        max_length: Tokens of query and passage.
        batch_tokens: Tokens of a batch.
        batch_size: Pairs of a batch at most.
        prompt: What is asked of the model; None for the kind's own.
        cutoff_layer: The layer whose head scores; None for the last.
        compress_layers: Before these layers passages are compressed.
        compress_ratio: Tokens that become one.
        adapter: A LoRA adapter to add to it.

    Raises:
        UsageError: It has no head on that layer.
        RunError: The model cannot be loaded.
    """
    tokenizer = load_tokenizer(name, hub, decoder=True)
    tokenizer.padding_side = "right"
    try:
        if kind == BASE:
            model: nn.Module = yes_logit(name, hub, dtype, tokenizer, adapter)
        elif kind == LAYERWISE:
            model = layer_head(name, hub, dtype, cutoff_layer, adapter)
        else:
            model = compressed_head(name, hub, dtype, cutoff_layer, compress_layers, compress_ratio, adapter)
    except (OSError, ValueError) as problem:
        raise unreachable(name, problem) from problem
    except SafetensorError as problem:
        raise RunError(f"the weights are damaged: {problem}", where=name) from problem
    models = [deepcopy(model) for _ in devices[1:]] + [model]
    models = [replica.to(device).eval() for replica, device in zip(models, devices, strict=True)]
    own = LIGHTWEIGHT_PROMPT if kind == LIGHTWEIGHT else PROMPT
    return DecoderReranker(
        models, list(devices), tokenizer, query_max_length or max_length * 3 // 4, max_length, batch_tokens, batch_size,
        prompt=own if prompt is None else prompt,
    )  # fmt: skip


def yes_logit(name: str, hub: Hub, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, adapter: str | None) -> Any:
    """A language model that says how sure it is of `Yes`."""
    model, loading = AutoModelForCausalLM.from_pretrained(
        name, dtype=dtype, output_loading_info=True, **hub.arguments()
    )  # fmt: skip
    missing = sorted(loading["missing_keys"])
    if missing:
        raise RunError(f"is no language model: its files lack {', '.join(missing[:3])}", where=name)
    _add(model.get_decoder(), adapter, hub)
    return YesLogit(model, tokenizer("Yes", add_special_tokens=False)["input_ids"][0])


def layer_head(name: str, hub: Hub, dtype: torch.dtype, cutoff: int | None, adapter: str | None) -> LayerHead:
    """A MiniCPM with heads on its layers, which is Granite with other names for its multipliers (arXiv 2404.06395)."""
    given = raw_config(name, hub)
    if given.get("head_type", "simple") != "simple" or not given.get("head_multi", True):
        raise RunError("has other heads than one of one logit on each layer", where=name)
    layers, cutoff = _layer(given, cutoff, name)
    hidden, heads = given["hidden_size"], given["num_attention_heads"]
    config = GraniteConfig(
        **_shared(given), num_hidden_layers=cutoff, embedding_multiplier=given.get("scale_emb", 1),
        # Cut or not, a layer adds what it added in the whole model.
        residual_multiplier=given.get("scale_depth", 1) / math.sqrt(layers),
        attention_multiplier=1 / math.sqrt(hidden / heads),
    )  # fmt: skip
    backbone = GraniteModel.from_pretrained(name, config=config, dtype=dtype, **_plain(hub))
    _add(backbone, adapter, hub)
    head = _heads(name, hub, cutoff - given["start_layer"])
    return LayerHead(backbone, head)


def compressed_head(
    name: str, hub: Hub, dtype: torch.dtype, cutoff: int | None, compress_layers: Sequence[int], ratio: int,
    adapter: str | None,
) -> CompressedHead:  # fmt: skip
    """A Gemma 2 with heads on its layers, and passages that are compressed."""
    given = raw_config(name, hub)
    _, cutoff = _layer(given, cutoff, name)
    # The reference computes its attention without the soft cap, whatever the configuration says.
    names = ("head_dim", "query_pre_attn_scalar", "sliding_window", "hidden_activation")
    config = Gemma2Config(
        **_shared(given), num_hidden_layers=cutoff, attn_logit_softcapping=None,
        **{key: given[key] for key in names if key in given},
    )  # fmt: skip
    backbone = Gemma2Model.from_pretrained(name, config=config, dtype=dtype, **_plain(hub))
    _add(backbone, adapter, hub)
    # The published model is scored by its first head, whichever layer is asked for.
    head = _heads(name, hub, 0)
    return CompressedHead(backbone, head, compress_layers, ratio, given.get("final_logit_softcapping"))


def raw_config(name: str, hub: Hub) -> dict[str, Any]:
    """A configuration of a kind that transformers does not know, as it stands in the file.

    Raises:
        RunError: There is none.
    """
    path = model_file(name, "config.json", hub)
    if path is None:
        raise RunError("the model cannot be loaded: there is no config.json", where=name)
    config: dict[str, Any] = read_json(path)
    return config


def teacher_kind(name: str, hub: Hub) -> str:
    """`encoder-only-base`, one of KINDS, or `embedder`, as the model's configuration says.

    Raises:
        RunError: The model cannot be read.
    """
    check_model_name(name)
    if model_file(name, ADAPTER_CONFIG, hub) is not None:
        return "embedder"
    # Not by way of transformers, to which two of the kinds are unknown.
    names = raw_config(name, hub).get("architectures") or []
    for part, kind in (("LayerWise", LAYERWISE), ("CostWise", LIGHTWEIGHT), ("ForCausalLM", BASE),
                       ("ForSequenceClassification", "encoder-only-base")):  # fmt: skip
        if any(part in architecture for architecture in names):
            return kind
    return "embedder"


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_act",
        "max_position_embeddings", "rms_norm_eps", "attention_bias", "pad_token_id", "bos_token_id", "eos_token_id",
    )  # fmt: skip
    rope = given.get("rope_scaling") or {}
    kind = {**rope, "rope_type": rope.get("rope_type", rope.get("type", "default"))}
    found = {name: given[name] for name in names if name in given}
    return found | {"rope_parameters": {**kind, "rope_theta": given.get("rope_theta", 10_000.0)}}


def _layer(given: dict[str, Any], cutoff: int | None, name: str) -> tuple[int, int]:
    """The number of layers, and the one whose head scores."""
    missing = [key for key in ("num_hidden_layers", "hidden_size", "start_layer") if key not in given]
    if missing:
        raise RunError(f"has no heads on its layers: config.json lacks {' and '.join(missing)}", where=name)
    layers, first, step = given["num_hidden_layers"], given["start_layer"], given.get("layer_sep", 1)
    if cutoff is not None and cutoff not in range(first, layers + 1, step):
        raise UsageError(f"{name} has heads on its layers {first} to {layers}", where=f"--cutoff-layers {cutoff}")
    return layers, layers if cutoff is None else cutoff


def _plain(hub: Hub) -> dict[str, Any]:
    """The model's own code is not wanted: transformers' layers compute it."""
    return hub.arguments() | {"trust_remote_code": False}


def _heads(name: str, hub: Hub, number: int) -> Tensor:
    weights = open_weights(name, hub, heads=True)
    key = f"lm_head.{number}.linear_head.weight"
    if weights is None or key not in weights.places:
        raise RunError(f"the files lack {key}", where=name)
    return weights.get(key).float()


def _add(backbone: Any, adapter: str | None, hub: Hub) -> None:
    if adapter is not None:
        add_in_place(backbone, read_adapter(adapter, replace(hub, revision=None)).chain)
