"""Recurrent matrices that are free, or held to a spectral norm by power iteration.

The vectors of a power iteration are persistent buffers, so a resumed run goes on exactly. They advance in
`prepare`, once per optimizer step, and are constants for autograd.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from rnn_lab.init import fill, orthogonal

_EPS = 1e-8


class FreeMatrix(nn.Module):
    """A matrix without constraint."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> Tensor:
        """The matrix itself."""
        return self.weight


class ScaledOrthogonal(nn.Module):
    """sigmoid(w) * Q with Q a fixed orthogonal matrix and w a trained scalar that starts at -0.01."""

    Q: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-0.01))
        self.register_buffer("Q", torch.empty(size, size))
        fill(self.Q, orthogonal())

    def forward(self) -> Tensor:
        """The scaled matrix."""
        return torch.sigmoid(self.log_scale) * self.Q


class PowerIteration(nn.Module, ABC):
    """Largest singular value s = u'Mv of a matrix M known by its products with a vector."""

    u: Tensor
    v: Tensor
    ROUNDS = 3

    def __init__(self, rows: int, columns: int, radius: float, device: torch.device) -> None:
        super().__init__()
        self.radius = radius
        self.register_buffer("u", torch.empty(rows, device=device))
        fill(self.u, lambda u: u.normal_().div_(u.norm() + _EPS))
        self.register_buffer("v", torch.zeros(columns, device=device))

    @abstractmethod
    def times(self, v: Tensor) -> Tensor:
        """M v."""

    @abstractmethod
    def transposed(self, u: Tensor) -> Tensor:
        """M'u."""

    def unit(self, x: Tensor) -> Tensor:
        """x of length one."""
        length: Tensor = x.norm()
        return x / (length + _EPS)

    def norm(self) -> Tensor:
        """|u'Mv|, differentiated through M."""
        # The buffers are cloned so that a later prepare() cannot touch what backward needs.
        return torch.dot(self.u.clone(), self.times(self.v.clone())).abs()

    @torch.no_grad()
    def prepare(self) -> None:
        """Three rounds of v <- M'u / |M'u|, u <- M v / |M v|; nothing on the meta device."""
        # It holds no values, and arithmetic on it imports torch's compiler, for seconds.
        if self.u.is_meta:
            return
        for _ in range(self.ROUNDS):
            self.v.copy_(self.unit(self.transposed(self.u)))
            self.u.copy_(self.unit(self.times(self.v)))


class _DenseIteration(PowerIteration):
    """Power iteration on a trained matrix W."""

    def __init__(self, weight: nn.Parameter, radius: float) -> None:
        rows, columns = weight.shape
        super().__init__(rows, columns, radius, weight.device)
        self.weight = weight

    def times(self, v: Tensor) -> Tensor:
        """W v."""
        return torch.mv(self.weight, v)

    def transposed(self, u: Tensor) -> Tensor:
        """W'u."""
        return torch.mv(self.weight.T, u)


class SpectralMatrix(_DenseIteration):
    """W * radius / (s + 1e-8): always rescaled, also upwards, and differentiated through its own norm."""

    def __init__(self, weight: nn.Parameter, radius: float) -> None:
        super().__init__(weight, radius)
        self.prepare()

    def forward(self) -> Tensor:
        """The rescaled matrix."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.weight * (self.radius / (self.norm() + _EPS))


class ClippedMatrix(_DenseIteration):
    """W * min(1, radius / s): only a norm above `radius` is scaled down.

    The factor is a constant for autograd. It is a buffer that `prepare` sets, so that a pass is a plain function
    of W whose derivative autograd gives.
    """

    scale: Tensor

    def __init__(self, weight: nn.Parameter, radius: float) -> None:
        super().__init__(weight, radius)
        self.register_buffer("scale", torch.ones((), device=weight.device))
        self.prepare()

    def unit(self, x: Tensor) -> Tensor:
        """x / max(|x|, 1e-12)."""
        length: Tensor = x.norm()
        return x / length.clamp(min=1e-12)

    @torch.no_grad()
    def prepare(self) -> None:
        """Three rounds, then the factor."""
        super().prepare()
        if not self.u.is_meta:
            self.scale.copy_((self.radius / self.norm()).clamp(max=1.0))

    def forward(self) -> Tensor:
        """The clipped matrix."""
        return self.weight * self.scale.clone()


class SpectralProduct(PowerIteration):
    """sqrt(k) U and sqrt(k) V with k = radius / (s + 1e-8), s the norm of U V: always rescaled, also upwards."""

    def __init__(self, U: nn.Parameter, V: nn.Parameter, radius: float) -> None:
        super().__init__(U.shape[0], V.shape[1], radius, U.device)
        self.U, self.V = U, V
        self.prepare()

    def times(self, v: Tensor) -> Tensor:
        """U V v, without the full matrix."""
        return torch.mv(self.U, torch.mv(self.V, v))

    def transposed(self, u: Tensor) -> Tensor:
        """V'U'u."""
        return torch.mv(self.V.T, torch.mv(self.U.T, u))

    def forward(self) -> tuple[Tensor, Tensor]:
        """The rescaled factors, differentiated through the norm of their product."""
        with torch.autocast(self.U.device.type, enabled=False):
            root = torch.sqrt(self.radius / (self.norm() + _EPS))
            return root * self.U, root * self.V
