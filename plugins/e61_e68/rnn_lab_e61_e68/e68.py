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
from rnn_lab.parts import Part, vector
from torch import Tensor, nn

from rnn_lab_e61_e68._gated import GatedConfig, GatedLayer, mix


class Config(GatedConfig):
    """Fields of `fit --model e68`."""

    form: Literal["standard", "inverse"] = Field("standard", description="what a large state does to the write")


class Model(GatedLayer):
    """See the module docstring."""

    Config = Config
    d_g: nn.Parameter
    b_g: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_a with b_a, W_x with b_v, d_g, b_g."""
        d = cfg.d_inner
        b_g = 0.5 if cfg.form == "inverse" else 0.0
        return super().cell_parts(cfg) | {"d_g": vector(d, 0.5), "b_g": vector(d, b_g)}

    @staticmethod
    def before(a: Tensor, w: Tensor, b_a: Tensor, b_w: Tensor) -> tuple[Tensor, ...]:
        """Leak a and candidate w."""
        return torch.sigmoid(a + b_a), (w + b_w).tanh()

    def weights(self) -> tuple[Tensor, ...]:
        """d_g and b_g."""
        return self.d_g, self.b_g

    def cell(self) -> Cell:
        """The update of the chosen form."""
        return Cell(inverse if self.cfg.form == "inverse" else standard, before=self.before)


def standard(h: Tensor, a: Tensor, w: Tensor, d_g: Tensor, b_g: Tensor) -> Tensor:
    """a h + (1 - a) w sigmoid(d_g h + b_g)."""
    return mix(h, a, w * torch.sigmoid(d_g * h + b_g))


def inverse(h: Tensor, a: Tensor, w: Tensor, d_g: Tensor, b_g: Tensor) -> Tensor:
    """a h + (1 - a) w sigmoid(b_g - d_g |h|)."""
    return mix(h, a, w * torch.sigmoid(b_g - d_g * h.abs()))
