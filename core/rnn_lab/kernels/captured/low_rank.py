"""Recurrent matrices of low rank, W = U V with U [..., D, r] and V [..., r, D]: as two products per step or as one.

Folding takes 2 D^2 r FLOP, once per call, and leaves one dependent product per step instead of two, of D / 2r times
their FLOP. It is exact, and autograd carries W's gradient on to the factors: dU = dW V', dV = U' dW.
"""

from math import prod

import torch
from torch import Tensor

from rnn_lab.kernels.cell import Cell, Streams
from rnn_lab.kernels.linear.costs import Cost

GAIN = 1.25
"""What folding has to promise: costs are arithmetic."""


def plus_product(u: Tensor, h: Tensor, U: Tensor, *V: Tensor) -> Tensor:
    """u + U V h for rows h [B, D], where `U` and `V` are given, or `U` is their product."""
    return torch.addmm(u, h @ V[0].T if V else h, U.T)


def folded(U: Tensor, V: Tensor) -> Tensor:
    """U V [..., D, D] in the dtype of the factors, whatever autocast says."""
    with torch.autocast(U.device.type, enabled=False):
        return U @ V


def folds(B: int, T: int, U: Tensor, cost: Cost) -> bool:
    """Whether a loop over time is sooner done with one product per step.

    Per step: products forward and backward, which wait for each other. Once: the gradient by the weights, over all
    steps; and the fold and its two gradients.

    Args:
        B: sequences.
        T: steps.
        U: one of the factors.
        cost: of the device.

    """
    *slots, D, r = U.shape
    D, r, S = max(D, r), min(D, r), prod(slots)
    one = 2 * T * cost.thin(B, D, S * D) + S * (2 * B * T * D**2 + 6 * D**2 * r) / cost.rate
    two = 4 * T * cost.thin(B, D, S * r) + S * 4 * B * T * D * r / cost.rate
    return GAIN * one < two


def fold(cell: Cell, streams: Streams) -> Streams:
    """Streams of a cell with the product of its two factors in the place of both."""
    at = cell.low_rank
    assert at is not None
    U, V = streams.weights[at : at + 2]
    return streams._replace(weights=(*streams.weights[:at], folded(U, V), *streams.weights[at + 2 :]))
