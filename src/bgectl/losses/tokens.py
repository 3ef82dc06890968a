"""Values of tokens, one text after the other, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """What a head gives for the tokens of N texts.

    Args:
        values: (T, …), T the tokens of all texts.
        lengths: Tokens of each text, N numbers whose sum is T.
    """

    values: Tensor
    lengths: Sequence[int]

    @property
    def owners(self) -> Tensor:
        """(T,) the number of the text that each token belongs to."""
        lengths = torch.tensor(self.lengths, device=self.values.device)
        return torch.repeat_interleave(
            torch.arange(len(self.lengths), device=lengths.device), lengths, output_size=len(self.values)
        )

    def of(self, texts: Sequence[int]) -> Tokens:
        """The tokens of some of the texts, in the order given; a text may be named twice."""
        places = torch.from_numpy(places_of(self.lengths, texts)).to(self.values.device)
        return Tokens(self.values[places], [self.lengths[text] for text in texts])


def places_of(lengths: Sequence[int], texts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Where the tokens of some texts stand among those of all."""
    sizes = np.asarray(lengths, dtype=np.int64)
    chosen = np.asarray(texts, dtype=np.int64)
    starts = np.concatenate([[0], sizes.cumsum()])[chosen]
    own = sizes[chosen]
    before = np.concatenate([[0], own.cumsum()])[:-1]
    return np.repeat(starts - before, own) + np.arange(own.sum())
