"""The pieces a layer is made of. Declaring a part gives its module, initial values, count and FLOPs at once.

A layer lists its parts in `parts(cfg)`; the parameter tree, the meta-device count and the FLOPs formula all
come from that list. FLOPs count 2 per multiply-add of one forward token; element-wise work is left out.

A part also declares which of its parameters are matrices that act on vectors, for optimizers such as Muon that
orthogonalise them: `matrices` maps the parameter's name within the part (`""` for a bare parameter) to the heights of
the maps that are stacked in its rows, `()` for one map. What is not named there is not such a matrix.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_lab.init import Init, constant, fill, uniform_fan_in, xavier
from rnn_lab.kernels.dispatch import Choice
from rnn_lab.kernels.fused.causal_conv import CAUSAL_CONV
from rnn_lab.spectral import ClippedMatrix, FreeMatrix, ScaledOrthogonal, SpectralMatrix, SpectralProduct
from rnn_lab.token_filter import linear as linear
from rnn_lab.token_filter import linears

Matrices = dict[str, tuple[int, ...]]
"""Parameters of a part that are matrices, by name within it, with the heights of what is stacked in their rows."""


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
    """Linear map `[d_out, d_in]`, applied once per token outside the recurrence; `bias` is its initial value.

    `stacked` gives the heights of several maps that share one product, such as queries, keys and values.
    """

    d_in: int
    d_out: int
    bias: float | None = None
    init: Init = field(default_factory=xavier)
    stacked: tuple[int, ...] = ()

    @property
    def matrices(self) -> Matrices:
        """Its weight."""
        return {"weight": self.stacked}

    @property
    def n_params(self) -> int:
        """d_in * d_out, and d_out with a bias."""
        return self.d_in * self.d_out + (self.d_out if self.bias is not None else 0)

    @property
    def flops(self) -> int:
        """2 * d_in * d_out."""
        return 2 * self.d_in * self.d_out

    def build(self) -> "Linear":
        """An initialised Linear."""
        module = Linear(self.d_in, self.d_out, bias=self.bias is not None)
        fill(module.weight, self.init)
        if self.bias is not None:
            fill(module.bias, constant(self.bias))
        return module


@dataclass(frozen=True)
class Rescaled:
    """Linear map `[d_out, d_in]` whose matrix is always rescaled to spectral norm `radius`."""

    d_in: int
    d_out: int
    radius: float
    init: Init = field(default_factory=xavier)

    @property
    def matrices(self) -> Matrices:
        """Its weight."""
        return {"weight": ()}

    @property
    def n_params(self) -> int:
        """d_in * d_out."""
        return self.d_in * self.d_out

    @property
    def flops(self) -> int:
        """2 * d_in * d_out."""
        return 2 * self.d_in * self.d_out

    def build(self) -> SpectralMatrix:
        """A module whose call gives the effective matrix."""
        return SpectralMatrix(_parameter((self.d_out, self.d_in), self.init), self.radius)


@dataclass(frozen=True)
class Weight:
    """Bare parameter of any shape; `flops` says what one token costs where it enters a matrix product.

    Without `trained` it takes no gradient and no weight decay, yet counts and is saved as a parameter. `stacked` gives
    the heights of several maps in the rows of a matrix; a parameter of three axes is a matrix per entry of the first.
    """

    shape: tuple[int, ...]
    init: Init
    flops: int = 0
    trained: bool = True
    stacked: tuple[int, ...] = ()

    @property
    def matrices(self) -> Matrices:
        """Itself, where it enters a matrix product."""
        return {"": self.stacked} if self.flops and len(self.shape) > 1 else {}

    @property
    def n_params(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    def build(self) -> nn.Parameter:
        """An initialised nn.Parameter."""
        parameter = _parameter(self.shape, self.init)
        parameter.requires_grad = self.trained
        return parameter


class Linear(nn.Linear):
    """nn.Linear that leaves its first values to the part that builds it, and that a token filter may thin out."""

    filtered = True
    """False for a map that a layer keeps whole: Layer.token_filter_exclude."""

    def reset_parameters(self) -> None:
        """Nothing."""

    def forward(self, input: Tensor) -> Tensor:
        """W x + b."""
        return (linear if self.filtered else F.linear)(input, self.weight, self.bias)


def products(x: Tensor, *maps: Linear) -> tuple[Tensor, ...]:
    """`W x` of each map without its bias, for cells that add it themselves."""
    if all(one.filtered for one in maps):
        return linears(x, [one.weight for one in maps])
    return tuple((linear if one.filtered else F.linear)(x, one.weight) for one in maps)


def together(x: Tensor, *maps: nn.Linear) -> Tensor:
    """`[W_1 x; W_2 x; ...]` of maps without biases, in one product: backward, no gradients by x are to be added up.

    With fewer rows than columns in x, as in generation, putting results side by side moves less than weights do.
    """
    if x.shape[:-1].numel() < x.shape[-1]:
        return torch.cat([one(x) for one in maps], -1)
    product = linear if all(getattr(one, "filtered", False) for one in maps) else F.linear
    return product(x, torch.cat([one.weight for one in maps]))


def pieces(x: Tensor, n: int) -> tuple[Tensor, ...]:
    """The last axis in n pieces of one width; one is x itself, whose gradient `chunk` would copy."""
    return (x,) if n == 1 else x.chunk(n, -1)


def vector(size: int, value: float) -> Weight:
    """Vector `[size]` that starts at `value`: biases and diagonal recurrences."""
    return Weight((size,), constant(value))


@dataclass(frozen=True)
class Recurrent:
    """Square recurrent matrix `[size, size]`, free or held to a spectral norm.

    `constraint`: `none`; `spectral` rescales the matrix to norm `radius`; `clip` only where the norm is above it;
    `orthogonal` is sigmoid(w) * Q with a fixed orthogonal Q and one trained scalar w. `products` counts the
    vectors that it meets per token.
    """

    size: int
    init: Init
    constraint: str = "none"
    radius: float = 0.99
    products: int = 1

    @property
    def matrices(self) -> Matrices:
        """Its weight; the orthogonal form trains a scalar."""
        return {} if self.constraint == "orthogonal" else {"weight": ()}

    @property
    def n_params(self) -> int:
        """size^2, or 1 for the scaled orthogonal form."""
        return 1 if self.constraint == "orthogonal" else self.size**2

    @property
    def flops(self) -> int:
        """2 * size^2 per product."""
        return 2 * self.size**2 * self.products

    def build(self) -> nn.Module:
        """A module whose call gives the effective matrix `[size, size]`."""
        if self.constraint == "orthogonal":
            return ScaledOrthogonal(self.size)
        matrix = _parameter((self.size, self.size), self.init)
        if self.constraint == "none":
            return FreeMatrix(matrix)
        return (ClippedMatrix if self.constraint == "clip" else SpectralMatrix)(matrix, self.radius)


@dataclass(frozen=True)
class RecurrentProduct:
    """Recurrent matrix U V of rank r, `[size, r]` and `[r, size]`, rescaled together to spectral norm `radius`."""

    size: int
    rank: int
    init: Init
    radius: float

    @property
    def matrices(self) -> Matrices:
        """Both factors."""
        return {"U": (), "V": ()}

    @property
    def n_params(self) -> int:
        """2 * size * rank."""
        return 2 * self.size * self.rank

    @property
    def flops(self) -> int:
        """4 * size * rank."""
        return 4 * self.size * self.rank

    def build(self) -> SpectralProduct:
        """A module whose call gives the effective U and V."""
        U, V = _parameter((self.size, self.rank), self.init), _parameter((self.rank, self.size), self.init)
        return SpectralProduct(U, V, self.radius)


@dataclass(frozen=True)
class Conv:
    """Depthwise causal convolution over time, `kernel` taps per channel."""

    channels: int
    kernel: int = 4
    bias: bool = True

    @property
    def matrices(self) -> Matrices:
        """None: every channel has taps of its own."""
        return {}

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
        self.backends: dict[str, Choice] = {}
        """What ran the convolution; a layer puts its own record here."""
        self.weight = _parameter((channels, 1, kernel), uniform_fan_in(kernel))
        self.bias = _parameter((channels,), uniform_fan_in(kernel)) if bias else None

    def forward(
        self, x_BTd: Tensor, past_BKd: Tensor, reset_BT: Tensor | None = None, *, silu: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Convolved x and the new past.

        Args:
            x_BTd: input `[B, T, d]`.
            past_BKd: the kernel - 1 inputs before it, zeros at the start `[B, kernel - 1, d]`.
            reset_BT: True where a new document begins; taps never reach across it.
            silu: SiLU of the result, in the same pass.

        Returns:
            y_BTd in the dtype of x, and the new past `[B, kernel - 1, d]` in the dtype of `past_BKd`.

        """
        y_BTd, new_BKd = CAUSAL_CONV(self.backends, x_BTd, self.weight, self.bias, past_BKd, reset_BT, silu)
        return y_BTd, new_BKd


def _parameter(shape: tuple[int, ...], init: Init) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(shape))
    fill(parameter, init)
    return parameter
