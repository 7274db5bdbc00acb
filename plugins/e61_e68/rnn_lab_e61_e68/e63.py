"""h_t = a_t * h_{t-1} + (1 - a_t) * tanh(W_h h_{t-1} + W_x x~_t + b)

Nonlinear delta cell: an Elman step as the candidate of a gated leak. Dense and nonlinear, so strictly
sequential: one d x d product per step.

    x~_BTd = silu(conv?(P_in x_BTD))         D = dim, d = int(dim * expansion)
    a_BTd  = sigmoid(W_a x~ + b_a)           leak, starts near 0.88 (b_a = 2)
    v_Bd   = tanh(W_h h + W_x x~ + b)        candidate; W_h is free
    y_BTD  = P_out (h * silu(h))

Forms: `complementary` as above; `independent` h = a h + b' v with b' = sigmoid(W_b x~ + b_b); `h_dependent` adds
U_a h and U_b h inside both sigmoids (three products per step, taken as one); `residual` h = h + a v with b_a = 0.

Parent      e61: the candidate depends on the state through a dense matrix and tanh.
Parameters  2*D*d + 3*d*d + 2*d per layer; independent d*d + d more, h_dependent 3*d*d + d more.
Aliases     63, 63a, e63a: form = complementary
            63b, e63b: form = independent
            63c, e63c: form = h_dependent
            63d, e63d: form = residual
Source      100M/10-minute benchmark, row E63: D 512, d 1024, depth 20 = 84,068,864 parameters.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.init import orthogonal
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.parts import Dense, Linear, Part, Weight
from torch import Tensor, nn

from rnn_lab_e61_e68._gated import GatedConfig, GatedLayer, mix


class Config(GatedConfig):
    """Fields of `fit --model e63`."""

    form: Literal["complementary", "independent", "h_dependent", "residual"] = Field(
        "complementary", description="how leak and write are gated"
    )


class Model(GatedLayer):
    """See the module docstring."""

    Config = Config
    write: Linear
    W_h: nn.Parameter
    U_a: nn.Parameter
    U_b: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_a with b_a, W_x with b, W_h; W_b with b_b where the write has its own gate; U_a and U_b."""
        d, residual = cfg.d_inner, cfg.form == "residual"
        parts = super().cell_parts(cfg) | {"W_h": _square(d, 0.3 if residual else 0.5)}
        if residual:
            parts["leak"] = Dense(d, d, bias=0.0)
        if cfg.form in ("independent", "h_dependent"):
            parts["write"] = Dense(d, d, bias=0.0)
        if cfg.form == "h_dependent":
            parts |= {"U_a": _square(d, 0.1), "U_b": _square(d, 0.1)}
        return parts

    def projections(self) -> tuple[Linear, ...]:
        """W_a and W_x, and W_b where the write has its own gate."""
        if self.cfg.form == "h_dependent":
            return self.value, self.leak, self.write
        return (*super().projections(), self.write) if self.cfg.form == "independent" else super().projections()

    def weights(self) -> tuple[Tensor, ...]:
        """W_h; for `h_dependent` on top of U_a and U_b."""
        return (torch.cat([self.W_h, self.U_a, self.U_b]) if self.cfg.form == "h_dependent" else self.W_h,)

    def cell(self) -> Cell:
        """The update of the chosen form."""
        return Cell(UPDATES[self.cfg.form], before=BEFORE.get(self.cfg.form, self.before))


def two_gates(a: Tensor, u: Tensor, b: Tensor, b_a: Tensor, b_u: Tensor, b_b: Tensor) -> tuple[Tensor, ...]:
    """Leak, input of the candidate, write gate."""
    return torch.sigmoid(a + b_a), u + b_u, torch.sigmoid(b + b_b)


def side_by_side(*products_and_biases: Tensor) -> tuple[Tensor, ...]:
    """Candidate, leak and write as one stream, before any nonlinearity: their recurrent parts are one product."""
    return (torch.cat([p + b for p, b in zip(products_and_biases[:3], products_and_biases[3:], strict=True)], -1),)


BEFORE: dict[str, Callable[..., tuple[Tensor, ...]]] = {"independent": two_gates, "h_dependent": side_by_side}


def _square(d: int, scale: float) -> Weight:
    return Weight((d, d), orthogonal(scale), flops=2 * d * d)


def candidate(h: Tensor, u: Tensor, W_h: Tensor) -> Tensor:
    """tanh(W_h h + u)."""
    return torch.addmm(u, h, W_h.T).tanh()


def complementary(h: Tensor, a: Tensor, u: Tensor, W_h: Tensor) -> Tensor:
    """a h + (1 - a) v."""
    return mix(h, a, candidate(h, u, W_h))


def independent(h: Tensor, a: Tensor, u: Tensor, b: Tensor, W_h: Tensor) -> Tensor:
    """a h + b v."""
    return a * h + b * candidate(h, u, W_h)


def h_dependent(h: Tensor, u: Tensor, W: Tensor) -> Tensor:
    """a h + b v with all three from one product."""
    v, a, b = torch.addmm(u, h, W.T).chunk(3, -1)
    return torch.sigmoid(a) * h + torch.sigmoid(b) * v.tanh()


def residual(h: Tensor, a: Tensor, u: Tensor, W_h: Tensor) -> Tensor:
    """h + a v."""
    return h + a * candidate(h, u, W_h)


UPDATES: dict[str, Callable[..., Tensor]] = {
    "complementary": complementary,
    "independent": independent,
    "h_dependent": h_dependent,
    "residual": residual,
}
