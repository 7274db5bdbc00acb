"""h_t = a_t * h_{t-1} + (1 - a_t) * v_t,  a_t = sigmoid(W_a x~_t + d_a * h_{t-1} + b_a)

State-gated leak: the state takes part in deciding how much of itself stays. Nonlinear through the gate alone; the
default form is diagonal, so it is sequential without any matrix product in the loop.

    x~_BTd = silu(conv?(P_in x_BTD))         D = dim, d = int(dim * expansion)
    a_Bd   = sigmoid(W_a x~ + d_a * h + b_a) leak, starts near 0.88 (b_a = 2); d_a starts at 0.1
    v_BTd  = tanh(W_x x~ + b_v)              candidate
    y_BTD  = P_out (h * silu(h))

Forms: `diagonal` as above; `low_rank` has U_a (V_a h) of rank r in place of d_a * h, two thin products per step;
r is `rank`, or an eighth of d but at least 8.

Parent      e61: the leak sees the state, and the candidate is bounded.
Parameters  2*D*d + 2*d*d + 3*d per layer; 2*D*d + 2*d*d + 2*d*r + 2*d in low rank.
Aliases     67, 67d, e67d: form = diagonal
            67lr, e67lr: form = low_rank
Source      100M/10-minute benchmark, row E67: D 640, d 1280, depth 20 = 98,558,080 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from rnn_lab.init import orthogonal
from rnn_lab.kernels.captured.low_rank import plus_product
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.parts import Part, Weight, vector
from torch import Tensor, nn

from rnn_lab_e61_e68._gated import GatedConfig, GatedLayer, mix


class Config(GatedConfig):
    """Fields of `fit --model e67`."""

    form: Literal["diagonal", "low_rank"] = Field("diagonal", description="how the leak sees the state")
    rank: int | None = Field(None, ge=1, le=2**17, description="rank r of U_a V_a; default d // 8, at least 8")

    @property
    def d_rank(self) -> int:
        """The rank r in use."""
        return max(self.d_inner // 8, 8) if self.rank is None else self.rank

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.rank is not None and self.form != "low_rank":
            raise ValueError("rank goes with form low_rank")
        return self


class Model(GatedLayer):
    """See the module docstring."""

    Config = Config
    d_a: nn.Parameter
    U_a: nn.Parameter
    V_a: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_a with b_a, W_x with b_v; d_a, or U_a and V_a."""
        d, r, parts = cfg.d_inner, cfg.d_rank, super().cell_parts(cfg)
        if cfg.form == "diagonal":
            return parts | {"d_a": vector(d, 0.1)}
        return parts | {
            "U_a": Weight((d, r), orthogonal(0.1), flops=2 * d * r),
            "V_a": Weight((r, d), orthogonal(0.1), flops=2 * d * r),
        }

    @staticmethod
    def before(a: Tensor, v: Tensor, b_a: Tensor, b_v: Tensor) -> tuple[Tensor, ...]:
        """The leak's input before the sigmoid, and the candidate."""
        return a + b_a, (v + b_v).tanh()

    def weights(self) -> tuple[Tensor, ...]:
        """d_a, or U_a and V_a."""
        return (self.d_a,) if self.cfg.form == "diagonal" else (self.U_a, self.V_a)

    def cell(self) -> Cell:
        """The update of the chosen form."""
        whole = self.cfg.form == "diagonal"
        return Cell(diagonal, before=self.before) if whole else Cell(low_rank, before=self.before, low_rank=0)


def diagonal(h: Tensor, u: Tensor, v: Tensor, d_a: Tensor) -> Tensor:
    """a h + (1 - a) v with a = sigmoid(d_a h + u)."""
    return mix(h, torch.sigmoid(d_a * h + u), v)


def low_rank(h: Tensor, u: Tensor, v: Tensor, U_a: Tensor, *V_a: Tensor) -> Tensor:
    """a h + (1 - a) v with a = sigmoid(U_a (V_a h) + u); `U_a` may be the product of both."""
    return mix(h, torch.sigmoid(plus_product(u, h, U_a, *V_a)), v)
