"""Collider's token filter: matrix products whose backward meets a part of the positions only.

Every map of one position to one position calls `linear`. Inside `TokenFilter.during` it computes forward over all
positions; backward takes the rows of kept positions, as if what a filtered position put in were a constant:

    y = x W' + b          g = dL/dy [kept]          dW = g' x[kept]     db = sum g     dx[kept] = g W, else 0

A recurrence stays as it is: its gradient flows through every step. So the residual stream below is sparse again, in
every layer, which is what Collider (arXiv 2502.00340) does to attention's keys and values. The gradient is biased.
"""

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.dispatch import REFERENCE, Choice
from rnn_lab.kernels.fused.filtered_linear import FILTERED_LINEAR, gathered
from rnn_lab.kernels.fused.filtered_linear_cuda import filtered_gradients

MASKED = "how many positions are kept is not known in advance, so they are masked"
_active: "TokenFilter | None" = None


class TokenFilter:
    """Positions of one pass that backward goes through; all of them until `keep` or `mask` is set.

    Args:
        shape: B and T of the pass.
        record: hears what runs the products' backward; see kernels.dispatch.
        recurrent: `full`, or `kept`: matrices within a recurrence learn from kept positions alone (kernels.kept).

    """

    def __init__(
        self, shape: tuple[int, int], record: dict[str, Choice] | None = None, recurrent: str = "full"
    ) -> None:
        self.shape, self.record, self.recurrent = shape, {} if record is None else record, recurrent
        self.kept_N: Tensor | None = None
        """Kept positions as indices into B * T."""
        self.mask_BT: Tensor | None = None
        """True where a position is kept; for numbers of positions that are not known in advance."""
        self.maps = 0
        """Products that were filtered."""
        self.span = (0, shape[1])
        """Positions of each sequence that the pass at hand is over."""

    def keep(self, kept_BK: Tensor) -> None:
        """Keep these positions of each sequence, equally many of each."""
        rows = torch.arange(self.shape[0], device=kept_BK.device)[:, None] * self.shape[1]
        self.kept_N = (kept_BK + rows).flatten()
        self.mask_BT = torch.zeros(self.shape, dtype=torch.bool, device=kept_BK.device).scatter(1, kept_BK, True)

    def keep_where(self, mask_BT: Tensor) -> None:
        """Keep the positions where `mask_BT` is True, any number: the products keep their size."""
        self.kept_N, self.mask_BT = None, mask_BT

    @contextmanager
    def during(self, start: int = 0, stop: int | None = None) -> Iterator[None]:
        """`linear` is filtered by this inside the block: a forward pass over positions `start` to `stop`."""
        global _active
        before = _active, self.span
        _active, self.span = self, (start, self.shape[1] if stop is None else stop)
        try:
            yield
        finally:
            _active, self.span = before

    def takes(self, x: Tensor) -> bool:
        """Whether x has a row, or several, for each position of this pass."""
        return x.dim() >= 3 and tuple(x.shape[:2]) == (self.shape[0], self.span[1] - self.span[0])

    def products(self, x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None) -> tuple[Tensor, ...]:
        """The filtered products of rows that `takes` accepted; a bias is the first one's."""
        self.maps += len(weights)
        found: tuple[Tensor, ...] = FilteredLinear.apply(x, bias, self, self.span, *weights)  # type: ignore[no-untyped-call]
        return found


def active() -> "TokenFilter | None":
    """The filter of the pass that is being computed."""
    return _active


@contextmanager
def unfiltered() -> Iterator[None]:
    """No product inside the block is filtered: parts that a family has vetoed, reference models."""
    global _active
    before, _active = _active, None
    try:
        yield
    finally:
        _active = before


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` for maps of one position to one position, `[B, T, ..., K]` to `[B, T, ..., M]`."""
    if _active is None or not _active.takes(x):
        return F.linear(x, weight, bias)
    return _active.products(x, (weight,), bias)[0]


def linears(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`linear` by each matrix: filtered, the gradients by x are added up before they are spread over all positions."""
    if _active is None or not _active.takes(x):
        return tuple(F.linear(x, weight) for weight in weights)
    return _active.products(x, weights)


class FilteredLinear(torch.autograd.Function):
    """See the module docstring. Which positions are kept is read in backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, held: TokenFilter, span: tuple[int, int], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """The products over all positions."""
        device = x.device.type
        ctx.dtypes = x.dtype, None if bias is None else bias.dtype, [weight.dtype for weight in weights]
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weights = x.to(dtype), tuple(weight.to(dtype) for weight in weights)
            bias = None if bias is None else bias.to(dtype)
        ctx.save_for_backward(x, *weights)
        ctx.held, ctx.span = held, span
        nothing = torch.empty(0, dtype=torch.int64, device=x.device)
        _, choice = FILTERED_LINEAR.select(x, weights, nothing)
        ctx.fused = choice.backend != REFERENCE
        held.record[choice.op] = choice
        with torch.autocast(device, enabled=False):
            return F.linear(x, weights[0], bias), *(F.linear(x, weight) for weight in weights[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients from the kept positions."""
        x, *weights = ctx.saved_tensors
        of_x, of_bias, of_weights = ctx.dtypes
        held, span = ctx.held, ctx.span
        biased = grads[0]
        if span == (0, held.shape[1]) and held.kept_N is not None:
            if ctx.fused:
                dx, found = filtered_gradients(grads, x, weights, held.kept_N, held.mask_BT)
            else:
                dx, found = gathered(grads, x, weights, held.kept_N)
            if of_bias:
                biased = biased.flatten(0, 1).index_select(0, held.kept_N)
        else:
            rows = [_masked(grad, held, span) for grad in grads]
            flat = [grad.reshape(-1, grad.shape[-1]) for grad in rows]
            dx = reduce(operator.add, (g @ weight for g, weight in zip(flat, weights, strict=True))).view(x.shape)
            found = [g.mT @ x.reshape(-1, x.shape[-1]) for g in flat]
            biased = rows[0]
            held.record[FILTERED_LINEAR.name] = Choice(FILTERED_LINEAR.name, REFERENCE, (("cuda", MASKED),))
        dbias = biased.reshape(-1, biased.shape[-1]).sum(0).to(of_bias) if of_bias else None
        return dx.to(of_x), dbias, None, None, *(d.to(dtype) for d, dtype in zip(found, of_weights, strict=True))


def _masked(grad: Tensor, held: TokenFilter, span: tuple[int, int]) -> Tensor:
    """The gradient with the rows of filtered positions zero.

    How many positions of a chunk of time are kept differs between sequences, and products need a fixed size.
    """
    if held.mask_BT is None:
        return grad
    mask = held.mask_BT[:, span[0] : span[1]]
    return torch.where(mask.view(*mask.shape, *[1] * (grad.dim() - 2)), grad, 0)
