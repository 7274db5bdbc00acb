"""h_t = a_t * h_{t-1} + (1 - a_t) * tanh(U (V h_{t-1}) + W_x x~_t + b)

Low-rank-state cell: the candidate sees the state through a matrix of rank r. Dense and nonlinear, so strictly
sequential: two thin products per step.

    x~_BTd = silu(conv?(P_in x_BTD))         D = dim, d = int(dim * expansion)
    a_BTd  = sigmoid(W_a x~ + b_a)           leak, starts near 0.88 (b_a = 2)
    v_Bd   = tanh(U (V h) + W_x x~ + b)      candidate; U [d, r] and V [r, d] start semi-orthogonal times 0.5
    y_BTD  = P_out (h * silu(h))

r is `rank`, or a quarter of d but at least 16.

Parent      e65: a matrix of rank r instead of the diagonal d_h.
Parameters  2*D*d + 2*d*d + 2*d*r + 2*d per layer.
Aliases     66:
            66r16, e66r16: rank = 16
            66r64, e66r64: rank = 64
            66r128, e66r128: rank = 128
Source      100M/10-minute benchmark, row E66: D 640, d 1280, r 320, depth 20 = 114,916,480 parameters.
"""

from dataclasses import replace
from typing import Any

from pydantic import Field
from rnn_lab.init import orthogonal
from rnn_lab.kernels.captured.low_rank import plus_product
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.parts import Part, Weight
from torch import Tensor, nn

from rnn_lab_e61_e68._gated import GatedConfig, GatedLayer, mix


class Config(GatedConfig):
    """Fields of `fit --model e66`."""

    rank: int | None = Field(None, ge=1, le=2**17, description="rank r of U V; default d // 4, at least 16")

    @property
    def d_rank(self) -> int:
        """The rank r in use."""
        return max(self.d_inner // 4, 16) if self.rank is None else self.rank


class Model(GatedLayer):
    """See the module docstring."""

    Config = Config
    U: nn.Parameter
    V: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_a with b_a, W_x with b, U, V."""
        d, r = cfg.d_inner, cfg.d_rank
        return super().cell_parts(cfg) | {
            "U": Weight((d, r), orthogonal(0.5), flops=2 * d * r),
            "V": Weight((r, d), orthogonal(0.5), flops=2 * d * r),
        }

    def weights(self) -> tuple[Tensor, ...]:
        """U and V."""
        return self.U, self.V

    @staticmethod
    def update(h: Tensor, a: Tensor, u: Tensor, U: Tensor, *V: Tensor) -> Tensor:  # type: ignore[override]
        """a h + (1 - a) tanh(U (V h) + u); `U` may be the product of both."""
        return mix(h, a, plus_product(u, h, U, *V).tanh())

    def cell(self) -> Cell:
        """The step, whose factors may be folded."""
        return replace(super().cell(), low_rank=0)
