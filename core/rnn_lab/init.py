"""Initialisers, each a function that fills a tensor in place under no-grad."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Init = Callable[[Tensor], object]


def fill(tensor: Tensor, init: Init) -> None:
    """Initialise in place; nothing on the meta device, which holds no values."""
    if not tensor.is_meta:
        with torch.no_grad():
            init(tensor)


def xavier(gain: float = 1.0) -> Init:
    """U(-a, a) with a = gain * sqrt(6 / (rows + columns))."""
    return lambda w: torch.nn.init.xavier_uniform_(w, gain=gain)


def orthogonal(scale: float = 1.0) -> Init:
    """Semi-orthogonal matrix times `scale`; of a stack of matrices each one on its own."""

    def fill(w: Tensor) -> None:
        for matrix in w.view(-1, *w.shape[-2:]):
            torch.nn.init.orthogonal_(matrix, gain=scale)

    return fill


def normal(std: float) -> Init:
    """N(0, std^2)."""
    return lambda w: torch.nn.init.normal_(w, std=std)


def constant(value: float) -> Init:
    """The same value everywhere."""
    return lambda w: torch.nn.init.constant_(w, value)


def uniform_fan_in(fan_in: int) -> Init:
    """U(-b, b) with b = 1 / sqrt(fan_in), torch's default of convolutions and recurrent layers."""
    bound = 1 / math.sqrt(fan_in)
    return lambda w: torch.nn.init.uniform_(w, -bound, bound)


def log_uniform(low: float, high: float) -> Init:
    """Ln U(low, high): Mamba's A_log. The draw never touches `low` = 0 itself."""
    return lambda w: w.copy_(torch.empty_like(w).uniform_(low, high).clamp_(min=1e-6).log_())


def inverse_softplus_of_log_uniform(low: float, high: float, floor: float) -> Init:
    """softplus^-1(t) with t = exp U(ln low, ln high), at least `floor`: Mamba's dt_bias."""

    def fill(w: Tensor) -> None:
        t = torch.empty_like(w).uniform_(math.log(low), math.log(high)).exp_().clamp_(min=floor)
        w.copy_(t + (-torch.expm1(-t)).log())

    return fill
