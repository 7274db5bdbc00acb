"""h_t = a_t * h_{t-1} + (1 - a_t) * w_t * s_t,  s_t = sigmoid(d_g * h_{t-1} + b_g)

Self-gating cell: the state decides, channel by channel, how much of the candidate is written. Nonlinear but
diagonal, so it is sequential without any matrix product in the loop.

    x~_BTd = silu(conv?(P_in x_BTD))         D = dim, d = int(dim * expansion)
    a_BTd  = sigmoid(W_a x~ + b_a)           leak, starts near 0.88 (b_a = 2)
    w_BTd  = tanh(W_x x~ + b_v)              candidate
    y_BTD  = P_out (h * silu(h))

Forms: `standard` as above; `inverse` uses s = sigmoid(-d_g |h| + b_g), so a large state protects itself.

Parent      e61: the write is gated by the state.
Parameters  2*D*d + 2*d*d + 4*d per layer.
Aliases     68, 68s, e68s: form = standard
            68i, e68i: form = inverse
Source      100M/10-minute benchmark, row E68: D 640, d 1280, depth 20 = 98,583,680 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import ProjectedConfig, ProjectedLayer
from rnn_lab.parts import Dense, Part, vector
from torch import Tensor, nn


class Config(ProjectedConfig):
    """Fields of `fit --model e68`."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")
    form: Literal["standard", "inverse"] = Field("standard", description="what a large state does to the write")


class Model(ProjectedLayer):
    """See the module docstring."""

    Config = Config
    leak: nn.Linear
    value: nn.Linear
    d_g: nn.Parameter
    b_g: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_a with b_a, W_x with b_v, d_g, b_g."""
        d = cfg.d_inner
        return {
            "leak": Dense(d, d, bias=2.0),
            "value": Dense(d, d, bias=0.0),
            "d_g": vector(d, 0.5),
            "b_g": vector(d, 0.5 if cfg.form == "inverse" else 0.0),
        }

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """Leak a and candidate w."""
        return torch.sigmoid(self.leak(x_BTd)), self.value(x_BTd).tanh()

    def weights(self) -> tuple[Tensor, ...]:
        """d_g and b_g."""
        return self.d_g, self.b_g

    def cell(self) -> Cell:
        """The update of the chosen form."""
        return Cell(inverse if self.cfg.form == "inverse" else standard)


def standard(h: Tensor, a: Tensor, w: Tensor, d_g: Tensor, b_g: Tensor) -> Tensor:
    """A h + (1 - a) w sigmoid(d_g h + b_g)."""
    return a * h + (1 - a) * w * torch.sigmoid(d_g * h + b_g)


def inverse(h: Tensor, a: Tensor, w: Tensor, d_g: Tensor, b_g: Tensor) -> Tensor:
    """A h + (1 - a) w sigmoid(b_g - d_g |h|)."""
    return a * h + (1 - a) * w * torch.sigmoid(b_g - d_g * h.abs())
