"""h_t = h_{t-1} W + u_t with one dense matrix: a scan over time whose products are few and large.

    e_0[t]   = u_t                                                       level i has T / 2^i blocks of 2^i steps
    e_i+1[j] = e_i[2j] W^(2^i) + e_i[2j+1]                               up: where a block that starts at zero ends
    h[jC]    = h[(j-1)C] W^C + e_n[j-1],                  C = 2^n        along: T / C dependent steps
    h[(2j+1) 2^i] = h[2j 2^i] W^(2^i) + e_i[2j]                          down: the states in between

Both sweeps together are two products of [B T, D] by [D, D], in 2n launches instead of T; W is squared n times, and only
the steps along depend on each other. Backward is the same scan of the adjoint, from the end and with W', and one
product for W's gradient; nothing is differentiated through powers. Powers of W are as accurate as W is, since a level
rounds once: error does not compound over the steps of a block.

Products are fp32, or fp64 for such inputs. Where inputs are of 16 bits, those of the sweeps are three bf16 products of
parts, x y = x_hi y_hi + x_lo y_hi + x_hi y_lo to 2^-17, for tensor cores. One product in tf32 would be half as dear
and drop what the state holds below 2^-11.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnn_lab.kernels.cell import Cell, Streams
from rnn_lab.kernels.linear.costs import NARROW, Cost, cost_of
from rnn_lab.kernels.linear.dense_step import Step
from rnn_lab.kernels.recurrence import run_by

WIDE_ROWS = 128
"""Sequences from which a step along is worth its operands' parts; with fewer it is over before they are taken."""


def doublings(B: int, T: int, D: int, cost: Cost) -> int:
    """How often blocks are doubled, n: 0 is the plain loop, whose products have few rows.

    Doubling costs one more square of W, halves the steps along and adds to both sweeps; forward and backward share the
    squares.

    Args:
        B: sequences.
        T: steps.
        D: width of the state.
        cost: of the device.

    """
    square = cost.launch + 2 * D**3 / cost.rate

    def seconds(n: int) -> float:
        along = cost.thin(B, D, D)
        if n and B >= WIDE_ROWS and cost.rate > cost.thin_rate:  # by parts, which takes more launches
            along = 2 * cost.launch + cost.thin(B, D, D, cost.rate)
        swept = 4 * B * (T - (T >> n)) * D**2 / cost.rate + 2 * n * cost.launch
        return n * square + 2 * ((T >> n) * along + swept)

    return min(range(T.bit_length()), key=seconds)


def refuses(x: Tensor, D: int) -> str | None:
    """Why a scan over time would not pay, or None.

    Args:
        x: an input `[B, T, ...]`.
        D: width of the state.

    """
    if not x.is_cuda:
        return f"tensors are on {x.device.type}, where twice the products of the plain loop take longer than it"
    B, T = x.shape[:2]
    if T > 1 and doublings(B, T, D, cost_of(x)) == 0:
        return f"{T} steps of {B} sequences take no longer one after the other"
    return None


def run(
    step: Step, cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None, n: int | None = None
) -> tuple[Tensor, Tensor]:
    """See recurrence.reference.

    Args:
        step: what `cell.update` is.
        cell: the rest of it.
        h: see recurrence.reference.
        streams: see recurrence.reference.
        reset_BT: see recurrence.reference.
        n: how often blocks are doubled; None: as often as pays.

    """
    x = streams.inputs[0]
    B, T = x.shape[:2]
    if n is None:  # at least once, so that a short call, of which a certificate is made, is of the same kind
        n = max(int(T > 1), doublings(B, T, h.shape[1], cost_of(x)))
    return run_by(partial(_walk, step, n, x.dtype in NARROW), cell, h, streams, reset_BT)


def _walk(
    step: Step, n: int, narrow: bool, cell: Cell, h: Tensor, inputs: list[Tensor], weights: list[Tensor],
    queries: list[Tensor], reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    first, *rest = (inputs[i] for i in step.inputs)
    u_BTD = sum(rest, first).expand(*first.shape[:2], h.shape[1])
    W = weights[step.weight].mT if step.transposed else weights[step.weight]
    y_BTD, last, _ = scan(u_BTD, h, W, reset_BT, n, narrow)
    if cell.read is not None:
        seen = cell.read(y_BTD.flatten(0, 1), *[q.flatten(0, 1) for q in queries])
        y_BTD = seen.unflatten(0, y_BTD.shape[:2])  # type: ignore[no-untyped-call]
    return y_BTD, last


class Factor(NamedTuple):
    """A matrix that rows are multiplied by: itself, and its parts above each other where inputs are narrow."""

    matrix: Tensor
    parts: Tensor | None

    def times(self, x: Tensor, plus: Tensor, keep: Tensor | None, many: bool = True) -> Tensor:
        """X [..., D] times the matrix plus what it ends in without x, which is all where `keep` [..., 1] is False."""
        rows = x.reshape(-1, x.shape[-1])
        if self.parts is not None and many:
            y = _wide(torch.cat(_first(rows), 1), self.parts).view(x.shape).add_(plus)
        else:
            y = torch.addmm(plus.reshape(rows.shape), rows, self.matrix).view(x.shape)
        return y if keep is None else torch.where(keep, y, plus)


def _factor(matrix: Tensor, narrow: bool) -> Factor:
    return Factor(matrix, torch.cat(_second(matrix), 0) if narrow else None)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first 8 bits of fp32 numbers, and the next."""
    high = x.bfloat16()
    return high, (x - high).bfloat16()


def _first(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    high, low = _halves(x)
    return high, low, high


def _second(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    high, low = _halves(x)
    return high, high, low


def _wide(a: Tensor, b: Tensor) -> Tensor:
    """A product of bf16 matrices in fp32, which a CPU has only of fp32 ones."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a.float(), b.float())


def _product(a: Tensor, b: Tensor, narrow: bool) -> Tensor:
    """Of two matrices, a [m, k] and b [k, n]."""
    return _wide(torch.cat(_first(a), 1), torch.cat(_second(b), 0)) if narrow else a @ b


def _states(u: Tensor, h: Tensor, factors: list[Factor], keep: Tensor | None, back: bool) -> Tensor:
    """The initial state and those after every step `[B, T + 1, D]`; `back` goes from the end of time to its start.

    `keep` [B, T, 1] is False where a step begins from zero. `factors` are W, W^2, W^4, ... W^C.
    """
    (B, T, D), side = u.shape, int(back)
    *powers, along = factors
    levels = [(u, keep)]
    for power in powers:
        e, k = levels[-1]
        odd = e.shape[1] % 2  # a block without a second: the last one in this direction
        pairs = slice(odd, None) if back else slice(e.shape[1] - odd)
        (first, second), keeps = _pairs(e[:, pairs], side), None if k is None else _pairs(k[:, pairs], side)
        ends = power.times(first, second, keeps and keeps[1])
        levels.append((ends, keeps and keeps[0] & keeps[1]))
    e, k = levels.pop()
    C, N = 1 << len(powers), e.shape[1]
    y = u.new_empty(B, T + 1, D)
    y[:, -side] = h
    for j in range(N):
        own = N - 1 - j if back else j
        h = along.times(h, e[:, own], None if k is None else k[:, own], B >= WIDE_ROWS)
        y[:, T - (j + 1) * C if back else (j + 1) * C] = h
    for power, (e, k) in zip(reversed(powers), reversed(levels), strict=True):
        C //= 2
        early, late = y[:, : T + 1 - C], y[:, C:]
        before, between = (late, early) if back else (early, late)
        every = slice((T - C) % (2 * C) if back else 0, None, 2 * C)
        firsts = slice((e.shape[1] - 1) % 2 if back else 0, None, 2)
        between[:, every] = power.times(before[:, every], e[:, firsts], None if k is None else k[:, firsts])
    return y


def _pairs(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """First and second blocks `[B, N / 2, ...]`; the odd ones are first where `side` is 1."""
    return x[:, side::2], x[:, 1 - side :: 2]


def _squares(W: Tensor, n: int, narrow: bool) -> Tensor:
    """W^2, W^4, ... `[n, D, D]`."""
    squares = W.new_empty(n, *W.shape)
    for i in range(n):
        squares[i] = _product(*2 * (squares[i - 1] if i else W,), narrow)
    return squares


@torch.library.custom_op("rnn_lab::chunked", mutates_args=())
def scan(
    u: Tensor, h: Tensor, W: Tensor, reset: Tensor | None, n: int, narrow: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """States of h <- h W + u, the last one, and the squares of W.

    Args:
        u: `[B, T, D]`, fp32 or fp64 like all floating arguments.
        h: initial state `[B, D]`.
        W: `[D, D]`, from the right.
        reset: `[B, T]`, True zeroes the state before a step.
        n: how often blocks are doubled; 2^n <= T.
        narrow: whether products of many rows are those of 16-bit parts.

    Returns:
        `[B, T, D]`, `[B, D]`, `[n, D, D]`.

    """
    squares = _squares(W, n, narrow)
    factors = [_factor(A, narrow) for A in (W, *squares)]
    y = _states(u, h, factors, None if reset is None else ~reset[..., None], False)
    return y[:, 1:], y[:, -1].clone(), squares


@scan.register_fake
def _(u: Tensor, h: Tensor, W: Tensor, reset: Tensor | None, n: int, narrow: bool) -> tuple[Tensor, Tensor, Tensor]:
    B, T, D = u.shape
    return u.new_empty(B, T + 1, D)[:, 1:], u.new_empty(B, D), u.new_empty(n, D, D)


@torch.library.custom_op("rnn_lab::chunked_backward", mutates_args=())
def _backward(
    dy: Tensor, dlast: Tensor | None, y: Tensor, h: Tensor, W: Tensor, squares: Tensor, reset: Tensor | None,
    narrow: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by u, h and W."""
    keep = None if reset is None else ~reset[..., None]
    later = None if keep is None else torch.cat((keep[:, 1:], torch.ones_like(keep[:, :1])), 1)
    if dlast is not None:
        dy = dy.clone()
        dy[:, -1] += dlast
    factors = [_factor(A.mT, narrow) for A in (W, *squares)]
    du = _states(dy, torch.zeros_like(h), factors, later, True)[:, :-1]
    before = torch.cat((h[:, None], y[:, :-1]), 1)
    dh = du[:, 0] @ W.mT
    if keep is not None:
        before, dh = torch.where(keep, before, 0), torch.where(keep[:, 0], dh, 0)
    return du, dh, _product(before.flatten(0, 1).mT, du.flatten(0, 1), narrow)


@_backward.register_fake
def _(
    dy: Tensor, dlast: Tensor | None, y: Tensor, h: Tensor, W: Tensor, squares: Tensor, reset: Tensor | None,
    narrow: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    B, T, D = y.shape
    return y.new_empty(B, T + 1, D)[:, :-1], y.new_empty(B, D), y.new_empty(D, D)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, h, W, reset, _, ctx.narrow = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], h, W, output[2], reset)


def _differentiate(ctx: Any, dy: Tensor | None, dlast: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    y, h, W, squares, reset = ctx.saved_tensors
    dy = torch.zeros_like(y) if dy is None else dy
    return (*_backward(dy, dlast, y, h, W, squares, reset, ctx.narrow), None, None, None)


scan.register_autograd(_differentiate, setup_context=_keep)
