"""h_t = tanh(W_x x~_t + W_h h_{t-1} + b),  y_t = h_t * silu(z_t)

Elman cell inside Mamba's two-branch projection: one half feeds the cell, the other gates its output. Dense and
nonlinear, so strictly sequential.

    [a; z]_BTd = P_in x_BTD                  D = dim, d = int(dim * expansion)
    x~_BTd     = silu(conv?(a))
    h_Bd       = tanh(W_x x~ + W_h h + b)
    y_BTD      = P_out (h * silu(z))

W_h is held to spectral norm 0.99 (`constraint = "spectral"`) or free ("none").

Parent      e0: the gate comes from the input projection instead of a matrix of its own.
Parameters  3*D*d + 2*d*d + d per layer.
Aliases     1:
Source      E4 benchmark, row e1_baseline: D 512, d 768, depth 21, LayerNorm = 49,714,944 parameters.
"""

from typing import Any, Literal

from pydantic import Field
from rnn_lab.init import xavier
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import ProjectedConfig
from rnn_lab.parts import Part, Recurrent
from torch import Tensor, nn

from rnn_lab_e0_e5._elman import ElmanLayer, dense


class Config(ProjectedConfig):
    """Fields of `fit --model e1`."""

    expansion: float = Field(1.5, gt=0, le=64, description="inner width d = int(dim * expansion)")
    constraint: Literal["spectral", "none"] = Field("spectral", description="what holds W_h")


class Model(ElmanLayer):
    """See the module docstring."""

    Config = Config
    W_h: nn.Module

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_x with b, W_h."""
        return super().cell_parts(cfg) | {"W_h": Recurrent(cfg.d_inner, xavier(0.1), cfg.constraint, radius=0.99)}

    def weights(self) -> tuple[Tensor, ...]:
        """The effective W_h."""
        return (self.W_h(),)

    def cell(self) -> Cell:
        """tanh(u + W_h h)."""
        return Cell(dense)
