"""Recurrent matrices that are free, or held to a spectral norm by power iteration.

The vectors of a power iteration are persistent buffers, so a resumed run goes on exactly. They advance in
`prepare`, once per optimizer step, and are constants for autograd.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

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
    """Largest singular value s = u'Mv of a matrix M, a product of factors that is never formed."""

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
    def factors(self) -> tuple[Tensor, ...]:
        """Matrices whose product is M."""

    def unit(self, x: Tensor) -> Tensor:
        """Columns `[..., n, 1]` of length one."""
        length: Tensor = torch.linalg.vector_norm(x, dim=-2, keepdim=True)
        return x / (length + _EPS)

    @staticmethod
    def settle(batch: "Sequence[PowerIteration]", norms: Tensor) -> None:
        """What follows from the new norms s of a batch; nothing here."""

    def norm(self) -> Tensor:
        """|u'Mv|, differentiated through M."""
        # The buffers are cloned so that a later prepare() cannot touch what backward needs.
        Mv = self.v.clone()
        for factor in reversed(self.factors()):
            Mv = torch.mv(factor, Mv)
        return torch.dot(self.u.clone(), Mv).abs()

    def prepare(self) -> None:
        """Three rounds of v <- M'u / |M'u|, u <- M v / |M v|; nothing on the meta device, which holds no values."""
        _advance([self])


def prepare_together(modules: Iterable[nn.Module]) -> None:
    """`prepare` of every module that has it; power iterations of one kind and shape advance in one batch."""
    batches: dict[object, list[PowerIteration]] = {}
    for module in modules:
        if isinstance(module, PowerIteration) and type(module).prepare is PowerIteration.prepare:
            kind = (type(module), module.radius, *((f.shape, f.dtype, f.device) for f in module.factors()))
            batches.setdefault(kind, []).append(module)
        elif callable(prepare := getattr(module, "prepare", None)):
            prepare()
    for batch in batches.values():
        _advance(batch)


@torch.no_grad()
def _advance(batch: Sequence[PowerIteration]) -> None:
    """Power iterations of one kind and shape, each as it would advance alone."""
    if batch[0].u.is_meta:
        return
    kind = batch[0]
    factors = [torch.stack(same) for same in zip(*(module.factors() for module in batch), strict=True)]
    u = v = torch.stack([module.u for module in batch]).unsqueeze(-1)
    Mv = u
    for _ in range(kind.ROUNDS):
        v = u
        for factor in factors:
            v = torch.bmm(factor.mT, v)
        Mv = v = kind.unit(v)
        for factor in reversed(factors):
            Mv = torch.bmm(factor, Mv)
        u = kind.unit(Mv)
    torch._foreach_copy_([module.u for module in batch], list(u.squeeze(-1).unbind()))
    torch._foreach_copy_([module.v for module in batch], list(v.squeeze(-1).unbind()))
    kind.settle(batch, (u * Mv).sum((-2, -1)).abs())


class _DenseIteration(PowerIteration):
    """Power iteration on a trained matrix W."""

    def __init__(self, weight: nn.Parameter, radius: float) -> None:
        rows, columns = weight.shape
        super().__init__(rows, columns, radius, weight.device)
        self.weight = weight

    def factors(self) -> tuple[Tensor, ...]:
        """W."""
        return (self.weight,)


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
        length: Tensor = torch.linalg.vector_norm(x, dim=-2, keepdim=True)
        return x / length.clamp(min=1e-12)

    @staticmethod
    def settle(batch: Sequence[PowerIteration], norms: Tensor) -> None:
        """The factors."""
        scales = (batch[0].radius / norms).clamp(max=1.0)
        torch._foreach_copy_([module.get_buffer("scale") for module in batch], list(scales.unbind()))

    def forward(self) -> Tensor:
        """The clipped matrix."""
        return self.weight * self.scale.clone()


class SpectralProduct(PowerIteration):
    """sqrt(k) U and sqrt(k) V with k = radius / (s + 1e-8), s the norm of U V: always rescaled, also upwards."""

    def __init__(self, U: nn.Parameter, V: nn.Parameter, radius: float) -> None:
        super().__init__(U.shape[0], V.shape[1], radius, U.device)
        self.U, self.V = U, V
        self.prepare()

    def factors(self) -> tuple[Tensor, ...]:
        """U, V."""
        return self.U, self.V

    def forward(self) -> tuple[Tensor, Tensor]:
        """The rescaled factors, differentiated through the norm of their product."""
        with torch.autocast(self.U.device.type, enabled=False):
            root = torch.sqrt(self.radius / (self.norm() + _EPS))
            return root * self.U, root * self.V
