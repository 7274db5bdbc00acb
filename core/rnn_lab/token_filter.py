"""Collider's token filter: matrix products whose backward meets a part of the positions only.

Every map of one position to one position calls `linear`. Inside `TokenFilter.during` it computes forward over all
positions; backward takes the rows of kept positions, as if what a filtered position put in were a constant:

    y = x W' + b          g = dL/dy [kept]          dW = g' x[kept]     db = sum g     dx[kept] = g W, else 0

A recurrence stays as it is: its gradient flows through every step. So the residual stream below is sparse again, in
every layer, which is what Collider (arXiv 2502.00340) does to attention's keys and values. The gradient is biased.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_active: "TokenFilter | None" = None


class TokenFilter:
    """Positions of one pass that backward goes through; all of them until `keep` or `mask` is set.

    Args:
        shape: B and T of the pass.

    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
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

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The filtered product of rows that `takes` accepted."""
        self.maps += 1
        found: Tensor = FilteredLinear.apply(x, weight, bias, self, self.span)  # type: ignore[no-untyped-call]
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
    return _active.product(x, weight, bias)


class FilteredLinear(torch.autograd.Function):
    """See the module docstring. Which positions are kept is read in backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, held: TokenFilter, span: tuple[int, int]
    ) -> Tensor:
        """The product over all positions."""
        device = x.device.type
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.held, ctx.span = held, span
        with torch.autocast(device, enabled=False):
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients from the kept positions."""
        (grad,) = grads
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.dtypes
        g, rows = _kept(grad, ctx.held, ctx.span)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[1]:
            kept_x = x.flatten(0, 1) if rows is None else x.flatten(0, 1).index_select(0, rows)
            dweight = (g.mT @ kept_x.reshape(-1, x.shape[-1])).to(of_weight)
        if ctx.needs_input_grad[2]:
            dbias = g.sum(0).to(of_bias)
        if ctx.needs_input_grad[0]:
            small = (g @ weight).to(of_x)
            if rows is None:
                dx = small.view(x.shape)
            else:
                flat = small.new_zeros(x.shape).flatten(0, 1)
                dx = flat.index_copy_(0, rows, small.view(len(rows), *x.shape[2:])).view(x.shape)
        return dx, dweight, dbias, None, None


def _kept(grad: Tensor, held: TokenFilter, span: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Rows of the gradient `[N, M]` that count, and their positions; all, the filtered zero, where None."""
    whole = span == (0, held.shape[1])
    if whole and held.kept_N is not None:
        g = grad.flatten(0, 1).index_select(0, held.kept_N)
        return g.reshape(-1, grad.shape[-1]), held.kept_N
    if held.mask_BT is not None:
        # How many of a chunk of time are kept differs between sequences: products of a fixed size take zeros.
        mask = held.mask_BT[:, span[0] : span[1]]
        grad = torch.where(mask.view(*mask.shape, *[1] * (grad.dim() - 2)), grad, 0)
    return grad.reshape(-1, grad.shape[-1]), None
