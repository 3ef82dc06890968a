"""From what the model gives for a step's texts to the loss of this process's queries.

Letters: B queries, G passages of a group, N candidates (B·G of each process that takes part), U distinct passages,
T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bgectl.distributed import gather, gather_uneven, gather_with_gradient, rank
from bgectl.losses.candidates import blocked_candidates
from bgectl.losses.contrastive import block, similarity
from bgectl.losses.embedding import EmbeddingLoss, full
from bgectl.losses.lexical import lexical_scores
from bgectl.losses.maxsim import maxsim
from bgectl.losses.tokens import Tokens
from bgectl.losses.unified import UnifiedLoss, ensemble


class Objective(Protocol):
    """What a step is trained on."""

    @property
    def cross_device(self) -> bool | str | None:
        """Whether processes exchange vectors for it."""
        ...

    def __call__(
        self, outputs: Mapping[str, Tensor], step: Mapping[str, Any], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's queries, a scalar, and what the log shows beside it: detached scalars by name.

        All processes call this together.

        Args:
            outputs: What the model gives for the step's pieces; see `Encoder.outputs`.
            step: What the collator says of the step.
            number: Steps taken before.
        """
        ...


@dataclass(frozen=True)
class DenseObjective:
    """One vector a text.

    Args:
        loss: The loss of vectors.
        cross_device: Take the passages of all processes as candidates.
        mask_duplicates: Block candidates that are a positive of the query.
    """

    loss: EmbeddingLoss
    cross_device: bool = False
    mask_duplicates: bool = True

    def __call__(
        self, outputs: Mapping[str, Tensor], step: Mapping[str, Any], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective`."""
        queries, passages = _dense(outputs, step)
        return dense_loss(self.loss, queries, passages, step, self.cross_device, self.mask_duplicates), {}


def dense_loss(
    loss: EmbeddingLoss, queries_BD: Tensor, passages_ND: Tensor, step: Mapping[str, Any], cross_device: bool,
    mask_duplicates: bool,
) -> Tensor:  # fmt: skip
    """The loss of this process's vectors, with the passages of all processes as candidates where asked for."""
    first = 0
    if cross_device:
        passages_ND, first = gather_with_gradient(passages_ND), rank() * len(queries_BD)
    blocked = _blocked(step, cross_device, mask_duplicates)
    return loss(
        queries_BD, passages_ND, step["group_size"], blocked_BN=blocked, teacher_BG=step["teacher"], first=first
    )


def _dense(outputs: Mapping[str, Tensor], step: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    texts = outputs["dense"][step["order"]]
    queries = len(step["own_only"])
    return texts[:queries], texts[queries:]


def _blocked(step: Mapping[str, Any], cross_device: bool, mask_duplicates: bool) -> Tensor:
    ids, first = step["passage_ids"], 0
    if cross_device:
        ids, first = gather(ids), rank() * len(step["own_only"])
    return blocked_candidates(
        ids, step["positive_ids"], step["own_only"], step["group_size"], first=first, mask_duplicates=mask_duplicates
    )


@dataclass(frozen=True)
class M3Objective:
    """Dense, sparse and ColBERT scores, and their sum.

    Args:
        dense: The loss of dense vectors.
        unified: The loss of all scores.
        cross_device: `dense` takes the passages of all processes as candidates of the dense term, as the reference
            does; `all` of every term. None takes each process's own.
        mask_duplicates: Block candidates that are a positive of the query.
        distill_from: Heads learn from the ensemble once more than this many steps were taken; None for never.
    """

    dense: EmbeddingLoss
    unified: UnifiedLoss
    cross_device: str | None = None
    mask_duplicates: bool = True
    distill_from: int | None = None

    def __call__(
        self, outputs: Mapping[str, Tensor], step: Mapping[str, Any], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective`; beside the losses of the heads, the log gets how often each ranks the positive first."""
        with torch.autocast(outputs["dense"].device.type, enabled=False):
            queries, passages = _dense(outputs, step)
            across = self.cross_device == "all"
            loss = dense_loss(self.dense, queries, passages, step, self.cross_device is not None, self.mask_duplicates)
            scores = self._scores(outputs, step, queries, passages, across)
            blocked = _blocked(step, across, self.mask_duplicates)
            first = rank() * len(queries) if across else 0
            # Its margin is in the scores' unit.
            total, parts = self.unified(
                scores, step["group_size"], dense_loss=loss, blocked_BN=blocked, teacher_BG=step["teacher"],
                first=first, self_distill=self.distill_from is not None and number > self.distill_from,
            )  # fmt: skip
        shown = {f"loss_{name}": part.detach() for name, part in parts.items()}
        named = {**scores, "ensemble": ensemble(scores)}
        shown |= {
            f"accuracy_{name}": accuracy(part, step["group_size"], blocked, first) for name, part in named.items()
        }
        shown["sparse_tokens"] = (outputs["sparse"].detach() > 0).float().mean()
        shown["chance"] = (~blocked).sum(dim=1).float().reciprocal().mean()
        return total, shown

    def _scores(
        self, outputs: Mapping[str, Tensor], step: Mapping[str, Any], queries_BD: Tensor, passages_ND: Tensor,
        across: bool,
    ) -> dict[str, Tensor]:  # fmt: skip
        """(B, N) of each head, over the temperature."""
        queries_BD, passages_ND = full(queries_BD), full(passages_ND)
        vectors = full(outputs["colbert"])
        if self.dense.normalize:
            queries_BD, passages_ND = normalize(queries_BD, dim=-1), normalize(passages_ND, dim=-1)
            vectors = normalize(vectors, dim=-1)
        lengths: Sequence[int] = step["lengths"]
        ids, weights = step_ids(step), full(outputs["sparse"])
        # Pieces that were added to have as many as other processes stand at the end.
        ids, weights = ids[: sum(lengths)], weights[: sum(lengths)]
        inner = [length - 1 for length in lengths]
        places = step["order"].tolist()
        own, (distinct, column) = places[: len(queries_BD)], _numbered(places[len(queries_BD) :])
        columns = torch.tensor(column, device=ids.device)
        lexical, id_tokens = Tokens(weights, lengths), Tokens(ids, lengths)
        late = Tokens(vectors[: sum(inner)], inner)
        passages: tuple[Tokens, ...] = (lexical.of(distinct), id_tokens.of(distinct), late.of(distinct))
        if across:
            passages_ND = gather_with_gradient(passages_ND)
            passages, columns = _gathered(passages, columns)
        sparse = lexical_scores(lexical.of(own), id_tokens.of(own).values, passages[0], passages[1].values)
        colbert = maxsim(late.of(own), passages[2])
        return {
            "dense": similarity(queries_BD, passages_ND, self.dense.temperature),
            "sparse": sparse[:, columns] / self.dense.temperature,
            "colbert": colbert[:, columns] / self.dense.temperature,
        }


def step_ids(step: Mapping[str, Any]) -> Tensor:
    """(T,) the token ids of the step's pieces without padding, in the order of the model's outputs."""
    return torch.cat([piece["input_ids"][piece["attention_mask"].bool()] for piece in step["pieces"]])


def _numbered(places: Sequence[int]) -> tuple[list[int], list[int]]:
    """The distinct places, and for each place its number among them."""
    seen: dict[int, int] = {}
    numbers = [seen.setdefault(place, len(seen)) for place in places]
    return list(seen), numbers


def _gathered(parts: tuple[Tokens, ...], columns_N: Tensor) -> tuple[tuple[Tokens, ...], Tensor]:
    """The passages' tokens of all processes, and where the candidates of all stand among the passages of all."""
    texts = gather(torch.tensor([len(parts[0].lengths)], device=columns_N.device)).tolist()
    before = sum(texts[: rank()])
    result = []
    for part in parts:
        lengths = gather_uneven(torch.tensor(part.lengths, device=columns_N.device))
        result.append(Tokens(gather_uneven(part.values), lengths.tolist()))
    return tuple(result), gather(columns_N + before)


def accuracy(scores_BN: Tensor, group_size: int, blocked_BN: Tensor, first: int) -> Tensor:
    """The share of queries whose positive scores above all other candidates; a scalar."""
    scores_BN = block(scores_BN.detach(), blocked_BN).clone()
    rows = torch.arange(len(scores_BN), device=scores_BN.device)
    targets = (first + rows) * group_size
    positive = scores_BN[rows, targets]
    scores_BN[rows, targets] = float("-inf")
    return (positive > scores_BN.max(dim=1).values).float().mean()
