"""h_t = tanh(W_x x~_t + U V h_{t-1} + b),  y_t = h_t * silu(z_t)

E1 with a recurrent matrix of rank r: wider states for the same parameters. Dense and nonlinear, so strictly
sequential: two thin products per step.

    [a; z]_BTd = P_in x_BTD                  D = dim, d = int(dim * expansion), r = rank
    x~_BTd     = silu(conv?(a))
    h_Bd       = tanh(W_x x~ + U V h + b)    U [d, r], V [r, d]
    y_BTD      = P_out (h * silu(z))

U and V are always rescaled together so that |U V| = 0.95, up or down.

Parent      e1: a low-rank W_h, and a norm that is never free.
Parameters  3*D*d + d*d + 2*d*r + d per layer; r = max(16, int(D / (2 * expansion))) unless set.
Aliases     4:
Source      E4 benchmark, LayerNorm, D 512: e4_1.5x depth 25 = 50,941,696 parameters, e4_2x depth 17 = 49,187,840,
            e4_3x depth 10 = 49,954,816, e4_4x depth 7 = 53,368,832.
"""

from typing import Any

from pydantic import Field
from rnn_lab.init import orthogonal
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import ProjectedConfig
from rnn_lab.parts import Part, RecurrentProduct
from torch import Tensor, nn

from rnn_lab_e0_e5._elman import ElmanLayer, low_rank


class Config(ProjectedConfig):
    """Fields of `fit --model e4`."""

    expansion: float = Field(1.5, gt=0, le=64, description="inner width d = int(dim * expansion)")
    rank: int | None = Field(None, ge=1, le=2**17, description="rank r; default: dim / (2 expansion), at least 16")
    spectral_radius: float = Field(0.95, gt=0, le=2, description="spectral norm of U V")

    @property
    def r(self) -> int:
        """The rank in use."""
        return max(16, int(self.dim / (2 * self.expansion))) if self.rank is None else self.rank


class Model(ElmanLayer):
    """See the module docstring."""

    Config = Config
    W_h: nn.Module

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_x with b, U and V."""
        return super().cell_parts(cfg) | {
            "W_h": RecurrentProduct(cfg.d_inner, cfg.r, orthogonal(0.3), cfg.spectral_radius)
        }

    def weights(self) -> tuple[Tensor, ...]:
        """The effective U and V."""
        U, V = self.W_h()
        return U, V

    def cell(self) -> Cell:
        """tanh(u + U V h)."""
        return Cell(low_rank, low_rank=0)
