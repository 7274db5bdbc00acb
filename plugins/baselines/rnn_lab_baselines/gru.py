"""h_t = (1 - z_t) * n_t + z_t * h_{t-1}

Gated recurrent unit between bias-free projections, in a LayerNorm shell.

    x~_BTd = P_in x_BTD                              D = dim, d = int(dim * expansion)
    r, z   = sigmoid(W x~ + b + U h + c)             reset and update gate
    n      = tanh(W_n x~ + b_n + r * (U_n h + c_n))  candidate
    y_BTD  = P_out h                                 P_out starts at zero

Forms: `cudnn` as above, two bias vectors, equal to torch.nn.GRU; `one_bias` resets before the product,
h = (1 - z) h + z tanh(W_h x~ + U_h (r * h) + b_h), one bias vector.

Parent      none: Cho et al., arXiv 1406.1078.
Parameters  2*D*d + 6*d*d + 6*d per layer; 3*d fewer with one bias.
Aliases     cudagru: form = one_bias
Source      elman baseline GRU: D 384, d 768, depth 20, LayerNorm = 82,781,952 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.init import normal, orthogonal
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import PlainLayer, ProjectedConfig
from rnn_lab.parts import Dense, Part, Weight, vector
from torch import Tensor, nn


class Config(ProjectedConfig):
    """Fields of `fit --model gru`."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")
    form: Literal["cudnn", "one_bias"] = Field("cudnn", description="torch.nn.GRU's equations or the source's own")


class Model(PlainLayer):
    """See the module docstring."""

    Config = Config
    W_ih: nn.Linear
    W_hh: nn.Parameter
    b_hh: nn.Parameter
    W_zr: nn.Linear
    U_zr: nn.Parameter
    W_h: nn.Linear
    U_h: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """Gates packed [r; z; n] as torch does, or [z; r] and the candidate apart."""
        d = cfg.d_inner
        if cfg.form == "cudnn":
            return {
                "W_ih": Dense(d, 3 * d, bias=0.0, init=orthogonal(), stacked=3 * (d,)),
                "W_hh": Weight((3 * d, d), orthogonal(), flops=6 * d * d, stacked=3 * (d,)),
                "b_hh": vector(3 * d, 0.0),
            }
        return {
            "W_zr": Dense(d, 2 * d, bias=0.0, init=normal(0.02), stacked=2 * (d,)),
            "U_zr": Weight((2, d, d), orthogonal(), flops=4 * d * d),
            "W_h": Dense(d, d, bias=0.0, init=normal(0.02)),
            "U_h": Weight((d, d), orthogonal(), flops=2 * d * d),
        }

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """Input side of all gates."""
        return (self.W_ih(x_BTd),) if self.cfg.form == "cudnn" else (self.W_zr(x_BTd), self.W_h(x_BTd))

    def weights(self) -> tuple[Tensor, ...]:
        """Recurrent side of all gates."""
        return (self.W_hh, self.b_hh) if self.cfg.form == "cudnn" else (self.U_zr.flatten(0, 1), self.U_h)

    def cell(self) -> Cell:
        """The update of the chosen form."""
        return Cell(cudnn if self.cfg.form == "cudnn" else one_bias)


def cudnn(h: Tensor, u: Tensor, W_hh: Tensor, b_hh: Tensor) -> Tensor:
    """torch.nn.GRU: the reset gate acts on the product."""
    u_r, u_z, u_n = u.chunk(3, -1)
    g_r, g_z, g_n = torch.addmm(b_hh, h, W_hh.T).chunk(3, -1)
    z, n = torch.sigmoid(u_z + g_z), torch.tanh(u_n + torch.sigmoid(u_r + g_r) * g_n)
    return torch.lerp(n, h, z)


def one_bias(h: Tensor, u_zr: Tensor, u_h: Tensor, U_zr: Tensor, U_h: Tensor) -> Tensor:
    """The reset gate acts on the state before the product."""
    z, r = torch.sigmoid(torch.addmm(u_zr, h, U_zr.T)).chunk(2, -1)
    return torch.lerp(h, torch.tanh(torch.addmm(u_h, r * h, U_h.T)), z)
