"""The pieces a layer is made of. Declaring a part gives its module, initial values, count and FLOPs at once.

A layer lists its parts in `parts(cfg)`; the parameter tree, the meta-device count and the FLOPs formula all
come from that list. FLOPs count 2 per multiply-add of one forward token; element-wise work is left out.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_lab.init import Init, constant, fill, orthogonal, uniform_fan_in, xavier


class Part(Protocol):
    """What every part can tell and do."""

    @property
    def n_params(self) -> int:
        """Closed form of the parameter count."""

    @property
    def flops(self) -> int:
        """Forward FLOPs per token, applied once."""

    def build(self) -> nn.Module | nn.Parameter:
        """The module or parameter, initialised."""


@dataclass(frozen=True)
class Dense:
    """Linear map `[d_out, d_in]`, applied once per token outside the recurrence; `bias` is its initial value."""

    d_in: int
    d_out: int
    bias: float | None = None
    init: Init = field(default_factory=xavier)

    @property
    def n_params(self) -> int:
        """d_in * d_out, and d_out with a bias."""
        return self.d_in * self.d_out + (self.d_out if self.bias is not None else 0)

    @property
    def flops(self) -> int:
        """2 * d_in * d_out."""
        return 2 * self.d_in * self.d_out

    def build(self) -> nn.Linear:
        """An initialised nn.Linear."""
        module = _Linear(self.d_in, self.d_out, bias=self.bias is not None)
        fill(module.weight, self.init)
        if self.bias is not None:
            fill(module.bias, constant(self.bias))
        return module


@dataclass(frozen=True)
class Weight:
    """Bare parameter of any shape; `flops` says what one token costs where it enters a matrix product."""

    shape: tuple[int, ...]
    init: Init
    flops: int = 0

    @property
    def n_params(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    def build(self) -> nn.Parameter:
        """An initialised nn.Parameter."""
        return _parameter(self.shape, self.init)


class _Linear(nn.Linear):
    """nn.Linear that leaves its first values to the part that builds it."""

    def reset_parameters(self) -> None:
        """Nothing."""


def vector(size: int, value: float) -> Weight:
    """Vector `[size]` that starts at `value`: biases and diagonal recurrences."""
    return Weight((size,), constant(value))


@dataclass(frozen=True)
class Recurrent:
    """Square recurrent matrix `[size, size]`, one product per step, free or held to a spectral norm.

    `constraint`: `none`; `spectral` rescales the matrix to norm `radius`; `orthogonal` is sigmoid(w) * Q with a
    fixed orthogonal Q and one trained scalar w.
    """

    size: int
    init: Init
    constraint: str = "none"
    radius: float = 0.99

    @property
    def n_params(self) -> int:
        """size^2, or 1 for the scaled orthogonal form."""
        return 1 if self.constraint == "orthogonal" else self.size**2

    @property
    def flops(self) -> int:
        """2 * size^2."""
        return 2 * self.size**2

    def build(self) -> nn.Module:
        """A module whose call gives the effective matrix `[size, size]`."""
        if self.constraint == "orthogonal":
            return ScaledOrthogonal(self.size)
        matrix = _parameter((self.size, self.size), self.init)
        return SpectralMatrix(matrix, self.radius) if self.constraint == "spectral" else FreeMatrix(matrix)


class FreeMatrix(nn.Module):
    """A matrix without constraint."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> Tensor:
        """The matrix itself."""
        return self.weight


class SpectralMatrix(nn.Module):
    """W * radius / (s + 1e-8), s = |u' W v| the largest singular value by power iteration.

    u and v are persistent buffers, so a resumed run goes on exactly; `prepare` advances them by three rounds,
    once per optimizer step, and they are constants for autograd. Always rescales, also upwards.
    """

    u: Tensor
    v: Tensor
    ROUNDS = 3

    def __init__(self, weight: nn.Parameter, radius: float) -> None:
        super().__init__()
        self.weight, self.radius = weight, radius
        u = torch.randn(weight.shape[0], device=weight.device)
        self.register_buffer("u", u / (u.norm() + 1e-8))
        self.register_buffer("v", torch.zeros(weight.shape[1], device=weight.device))
        self.prepare()

    @torch.no_grad()
    def prepare(self) -> None:
        """Three rounds of v <- W'u / |W'u|, u <- W v / |W v|."""
        for _ in range(self.ROUNDS):
            v = self.weight.T @ self.u
            self.v.copy_(v / (v.norm() + 1e-8))
            u = self.weight @ self.v
            self.u.copy_(u / (u.norm() + 1e-8))

    def forward(self) -> Tensor:
        """The rescaled matrix, differentiated through its own norm."""
        with torch.autocast(self.weight.device.type, enabled=False):
            # The buffers are cloned so that a later prepare() cannot touch what backward needs.
            s = torch.dot(self.u.clone(), torch.mv(self.weight, self.v.clone())).abs()
            return self.weight * (self.radius / (s + 1e-8))


class ScaledOrthogonal(nn.Module):
    """sigmoid(w) * Q with Q a fixed orthogonal matrix and w a trained scalar that starts at -0.01."""

    Q: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-0.01))
        self.register_buffer("Q", _parameter((size, size), orthogonal()).detach())

    def forward(self) -> Tensor:
        """The scaled matrix."""
        return torch.sigmoid(self.log_scale) * self.Q


@dataclass(frozen=True)
class Conv:
    """Depthwise causal convolution over time, `kernel` taps per channel."""

    channels: int
    kernel: int = 4
    bias: bool = True

    @property
    def n_params(self) -> int:
        """Kernel * channels, and channels with a bias."""
        return self.kernel * self.channels + (self.channels if self.bias else 0)

    @property
    def flops(self) -> int:
        """2 * kernel * channels."""
        return 2 * self.kernel * self.channels

    def build(self) -> "CausalConv":
        """An initialised CausalConv."""
        return CausalConv(self.channels, self.kernel, self.bias)


class CausalConv(nn.Module):
    """Depthwise causal convolution that carries its last inputs as state and stops at document resets."""

    def __init__(self, channels: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = _parameter((channels, 1, kernel), uniform_fan_in(kernel))
        self.bias = _parameter((channels,), uniform_fan_in(kernel)) if bias else None

    def forward(self, x_BTd: Tensor, past_BKd: Tensor, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolved x and the new past.

        Args:
            x_BTd: input `[B, T, d]`.
            past_BKd: the kernel - 1 inputs before it, zeros at the start `[B, kernel - 1, d]`.
            reset_BT: True where a new document begins; taps never reach across it.

        Returns:
            y_BTd in the dtype of x, and the new past `[B, kernel - 1, d]` in the dtype of `past_BKd`.

        """
        K = self.kernel - 1
        full = torch.cat([past_BKd.to(x_BTd.dtype), x_BTd], 1)
        if reset_BT is None:
            y = F.conv1d(full.transpose(1, 2), self.weight.to(full.dtype), None, groups=full.shape[2]).transpose(1, 2)
            new_past = full[:, full.shape[1] - K :]
        else:
            document = F.pad(reset_BT.long().cumsum(1), (K, 0))
            y, T = torch.zeros_like(x_BTd), x_BTd.shape[1]
            for tap in range(self.kernel):
                same = document[:, tap : tap + T] == document[:, K:]
                y = y + torch.where(same[..., None], full[:, tap : tap + T], 0) * self.weight[:, 0, tap].to(full.dtype)
            alive = document[:, -K:] == document[:, -1:]
            new_past = torch.where(alive[..., None], full[:, full.shape[1] - K :], 0)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y, new_past.to(past_BKd.dtype)


def _parameter(shape: tuple[int, ...], init: Init) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(shape))
    fill(parameter, init)
    return parameter
