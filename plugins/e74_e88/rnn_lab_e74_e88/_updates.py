"""What E74 may write to its state, `update(cfg, S, k, v, *extra)`, and what bounds the state afterwards."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rnn_lab.layers import retrieve, write
from torch import Tensor

EPS = 1e-6


def step(change: Any, f: Any, cfg: Any, S: Tensor, *args: Tensor) -> Tensor:
    """f(change(S))."""
    new: Tensor = f(change(cfg, S, *args))
    return new


def delta(cfg: Any, S: Tensor, k: Tensor, v: Tensor, *extra: Tensor) -> Tensor:
    """S + w (v - (S z) k) k'; z for `full`, w for the write gates."""
    z, gate = (extra[0], extra[1:]) if cfg.projection == "full" else (None, extra)
    error = v - retrieve(S, k if z is None else z * k)
    if gate:
        error = write_gate(cfg, S.square().mean(-1), *gate) * error
    return write(S, error, k)


def write_gate(cfg: Any, e: Tensor, d_g: Tensor, b_g: Tensor) -> Tensor:
    """W = sigmoid(d_g e + b_g); `retain` is 1 - w."""
    w = torch.sigmoid(d_g * e + b_g)
    return 1 - w if cfg.gate == "retain" else w


def simple(cfg: Any, S: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
    """sigmoid(theta) S + v k'."""
    return write(torch.sigmoid(theta) * S, v, k)


def ema(cfg: Any, S: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """A S + (1 - a) v k', a per row."""
    return write(a.unsqueeze(-1) * S, (1 - a) * v, k)


def residual(cfg: Any, S: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """S + r tanh((v - S k) k'), r per row."""
    change = torch.tanh((v - retrieve(S, k)).unsqueeze(-1) * k.unsqueeze(-2))
    return S + scale.unsqueeze(-1) * change


def ntm(cfg: Any, S: Tensor, k: Tensor, v: Tensor, e: Tensor, w: Tensor) -> Tensor:
    """S (1 - e k') + (w v) k'."""
    return write(S * (1 - e.unsqueeze(-1) * k.unsqueeze(-2)), w * v, k)


def retrieved_gate(cfg: Any, S: Tensor, k: Tensor, v: Tensor, s: Tensor) -> Tensor:
    """S + g (v - S k) k' with g = sigmoid(s + mean of the squared error)."""
    error = v - retrieve(S, k)
    return write(S, torch.sigmoid(s + error.square().mean(-1, keepdim=True)) * error, k)


def low_rank(cfg: Any, U: Tensor, k: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """U + (v - U k) c' with k = V'key, c = W_kr key."""
    return write(U, v - retrieve(U, k), c)


UPDATES = {
    "delta": delta,
    "simple": simple,
    "ema": ema,
    "residual": residual,
    "ntm": ntm,
    "retrieved_gate": retrieved_gate,
}


def linear(A: Tensor) -> Tensor:
    """The state as it is."""
    return A


def rmsnorm(A: Tensor, axes: tuple[int, ...] = (-2, -1)) -> Tensor:
    """A / (rms(A) + eps) over the whole state."""
    return A / (A.square().mean(axes, keepdim=True).sqrt() + EPS)


def frobnorm(A: Tensor, axes: tuple[int, ...] = (-2, -1)) -> Tensor:
    """A / (|A| + eps) over the whole state."""
    return A / (A.square().sum(axes, keepdim=True).sqrt() + EPS)


NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "linear": linear,
    "rmsnorm": rmsnorm,
    "frobnorm": frobnorm,
}
"""For a square state."""

OF_A_VECTOR = NONLINEARITIES | {"rmsnorm": partial(rmsnorm, axes=(-1,)), "frobnorm": partial(frobnorm, axes=(-1,))}
"""For a state that is one vector per sequence."""
