"""An encoder with the three heads of BGE-M3: dense, sparse (lexical weights) and ColBERT (arXiv 2402.03216; SPEC §5).

Letters: N texts, L tokens, T tokens of all texts without padding, H hidden size, C size of the ColBERT vectors.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bgectl import console
from bgectl.errors import RunError, UsageError
from bgectl.models.encoder import Encoder
from bgectl.models.hub import Hub, model_file
from bgectl.models.pooling import pool

HEADS = ("sparse_linear", "colbert_linear")
"""The heads beside the pooling: attributes of the encoder, and files `<name>.pt` beside its weights."""

FIRST_WEIGHT = 0.2
"""Of every token in a new sparse head, which starts as counting the tokens that two texts share."""


class M3Encoder(Encoder):
    """Backbone, pooling and heads.

    Args:
        backbone: Any encoder that gives a last hidden state.
        pooling: Of the dense vector.
        sparse_linear: H → 1, the weight of a token before relu.
        colbert_linear: H → C.
        special_ids: Token ids whose weight is 0: cls, eos, pad and unk.
    """

    special_ids: Tensor

    def __init__(
        self, backbone: nn.Module, pooling: str, sparse_linear: nn.Linear, colbert_linear: nn.Linear,
        special_ids: list[int],
    ) -> None:  # fmt: skip
        super().__init__(backbone, pooling)
        self.sparse_linear = sparse_linear
        self.colbert_linear = colbert_linear
        self.register_buffer("special_ids", torch.tensor(special_ids, dtype=torch.long), persistent=False)

    def outputs(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """What the heads give for (N, L) ids and mask, not normalised and without padding.

        Returns:
            `dense` (N, H); `sparse` (T,), the weight of each token; `colbert` (T - N, C), a vector for each token but
            the first of its text. Tokens stand in the order of the texts.
        """
        hidden_NLH = self.hidden(input_ids, attention_mask)
        real_NL = attention_mask.bool()
        inner_NL = real_NL & (real_NL.cumsum(dim=1) > 1)
        weights_T = torch.relu(self.sparse_linear(hidden_NLH[real_NL]).squeeze(-1))
        special_T = torch.isin(input_ids[real_NL], self.special_ids)
        return {
            "dense": pool(hidden_NLH, attention_mask, self.pooling),
            "sparse": weights_T.masked_fill(special_T, 0.0),
            "colbert": self.colbert_linear(hidden_NLH[inner_NL]),
        }

    def load(self, folder: Path) -> None:
        super().load(folder)
        for name in HEADS:
            state = read_head(str(folder), name, Hub())
            assert state is not None
            getattr(self, name).load_state_dict(state)


def with_heads(
    encoder: Encoder, name: str, tokenizer: PreTrainedTokenizerBase, hub: Hub, *, colbert_dim: int = -1,
    new: bool = False, dtype: torch.dtype = torch.float32,
) -> M3Encoder:  # fmt: skip
    """An encoder with the heads that lie beside its weights.

    Args:
        encoder: Backbone and pooling.
        name: Folder or hub name of the model.
        tokenizer: Its tokenizer.
        hub: How to reach it.
        colbert_dim: C of a new ColBERT head; -1 is H.
        new: Make the heads that are missing.
        dtype: Precision of the heads.

    Raises:
        UsageError: The ColBERT head there is has another C than asked for.
        RunError: Heads are missing and `new` is not set, or cannot be read, or do not fit the backbone.
    """
    states = {head: read_head(name, head, hub) for head in HEADS}
    missing = [head for head in HEADS if states[head] is None]
    if missing and not new:
        raise RunError(
            f"the model has no {' and no '.join(f'{head}.pt' for head in missing)}, so it gives dense vectors only",
            where=name, hint="--score dense, or a model that `bgectl train m3` made",
        )  # fmt: skip
    hidden = encoder.dimension
    size = hidden if colbert_dim <= 0 else colbert_dim
    stored = states["colbert_linear"]
    if stored is not None:
        there = len(stored["weight"])
        if colbert_dim > 0 and there != colbert_dim:
            raise UsageError(
                f"{name} has a ColBERT head with vectors of {there}", where=f"--colbert-dim {colbert_dim}",
                hint="leave the option out to keep it",
            )  # fmt: skip
        size = there
    heads = {"sparse_linear": new_sparse_head(hidden), "colbert_linear": new_colbert_head(hidden, size)}
    for head, state in states.items():
        if state is None:
            continue
        try:
            heads[head].load_state_dict(state)
        except RuntimeError as problem:
            raise RunError(f"{head}.pt does not fit the model: hidden size {hidden}", where=name) from problem
    if missing:
        console.info(f"{name}: no {' and no '.join(f'{head}.pt' for head in missing)}; newly initialised")
    ids = [tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    special = sorted({number for number in ids if isinstance(number, int)})
    made = M3Encoder(encoder.backbone, encoder.pooling, heads["sparse_linear"], heads["colbert_linear"], special)
    made.lora = encoder.lora
    for head in HEADS:
        getattr(made, head).to(dtype)
    return made


def new_sparse_head(hidden: int) -> nn.Linear:
    """A head that gives all tokens nearly the same weight; torch's own start would give half of them none."""
    head = nn.Linear(hidden, 1)
    nn.init.normal_(head.weight, std=0.02 / hidden**0.5)
    nn.init.constant_(head.bias, FIRST_WEIGHT)
    return head


def new_colbert_head(hidden: int, size: int) -> nn.Linear:
    """A head that starts as a rotation of the hidden states, or a projection, and so keeps what they know."""
    head = nn.Linear(hidden, size)
    nn.init.orthogonal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def read_head(name: str, head: str, hub: Hub) -> dict[str, Tensor] | None:
    """The weights of a head; None where the model has none.

    Raises:
        RunError: The file cannot be read.
    """
    path = model_file(name, f"{head}.pt", hub)
    if path is None:
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        return {"weight": state["weight"].float(), "bias": state["bias"].float()}
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as problem:
        reason = str(problem).strip().split("\n")[0]
        raise RunError(f"cannot be read as the weights of a head: {reason}", where=str(path)) from problem


def save_heads(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write `sparse_linear.pt` and `colbert_linear.pt`, as FlagEmbedding reads them.

    Args:
        folder: Where the encoder's weights lie.
        state: The heads' weights, each named `<head>.weight` or `<head>.bias`.
    """
    for head in HEADS:
        own = {kind: state[f"{head}.{kind}"].detach().cpu().contiguous().clone() for kind in ("weight", "bias")}
        torch.save(own, folder / f"{head}.pt")


def colbert_sizes(encoder: Encoder) -> tuple[int, int] | None:
    """H and C; None for an encoder without heads."""
    return (encoder.dimension, encoder.colbert_linear.out_features) if isinstance(encoder, M3Encoder) else None


def apart(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the backbone and those of the heads."""
    heads = {name: weight for name, weight in state.items() if name.partition(".")[0] in HEADS}
    return {name: weight for name, weight in state.items() if name not in heads}, heads
