"""Pieces of layers."""

import pytest
import torch
from rnn_lab.parts import Dense, pieces, together


@pytest.mark.parametrize("rows", [2, 40])
def test_maps_of_one_input_are_one_product(rows):
    """Whichever is put together, results or weights: the same values and gradients as one map after another."""
    torch.manual_seed(0)
    maps = [Dense(8, d).build().double() for d in (3, 5)]
    x = torch.randn(1, rows, 8, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(m.weight for m in maps)]
    found, wanted = together(x, *maps), torch.cat([m(x) for m in maps], -1)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((y * weight).sum(), leaves) for y in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_one_piece_is_the_whole():
    x = torch.randn(2, 3, 6)
    assert pieces(x, 1) == (x,)
    torch.testing.assert_close(torch.cat(pieces(x, 3), -1), x)
