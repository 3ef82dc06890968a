"""Pooling against loops, with padding on either side."""

import pytest
import torch

from bgectl.models.pooling import pool

LENGTHS = [5, 1, 3, 4]
LONGEST = 5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", ["cls", "mean", "last_token"])
def test_padding_has_no_part_in_the_vector(how, side):
    torch.manual_seed(0)
    texts = [torch.randn(length, 6) for length in LENGTHS]
    hidden = torch.full((len(texts), LONGEST, 6), 1e6)
    mask = torch.zeros(len(texts), LONGEST, dtype=torch.long)
    for index, text in enumerate(texts):
        place = slice(LONGEST - len(text), LONGEST) if side == "left" else slice(0, len(text))
        hidden[index, place], mask[index, place] = text, 1
    by_hand = {"cls": lambda text: text[0], "mean": lambda text: text.mean(dim=0), "last_token": lambda text: text[-1]}
    expected = torch.stack([by_hand[how](text) for text in texts])
    torch.testing.assert_close(pool(hidden, mask, how), expected)


def test_mean_keeps_the_precision_of_the_hidden_states():
    assert pool(torch.ones(2, 3, 4, dtype=torch.bfloat16), torch.ones(2, 3), "mean").dtype == torch.bfloat16


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="'max'"):
        pool(torch.ones(1, 1, 1), torch.ones(1, 1), "max")
