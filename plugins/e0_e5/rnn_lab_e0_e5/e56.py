"""h_t = tanh(W [x~_t; h_{t-1}] + b),  y_t = h_t * silu(z_t)

Elman cell with one matrix over input and state side by side. The half that meets the input runs for all steps at
once, so the loop holds one d x d product, as E1's does.

    [a; z]_BTd = P_in x_BTD                  D = dim, d = int(dim * expansion)
    x~_BTd     = silu(conv?(a))
    h_Bd       = tanh(W_x x~ + W_h h + b)    W = [W_x | W_h] of shape [d, 2d]
    y_BTD      = P_out (h * silu(z))

W is never held to a norm.

Parent      e1: the same functions; W_x and W_h are drawn as one matrix, and W_h starts near norm 1.6.
Parameters  3*D*d + 2*d*d + d per layer.
Aliases     56:
Source      100M/10-minute benchmark, row E56: D 640, d 1280, depth 20 = 114,890,880 parameters.
"""

from typing import Any

from pydantic import Field
from rnn_lab.init import xavier
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import ProjectedConfig, TwoBranchLayer
from rnn_lab.parts import Part, Weight, linear, vector
from torch import Tensor, nn

from rnn_lab_e0_e5._elman import dense


class Config(ProjectedConfig):
    """Fields of `fit --model e56`."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")


class Model(TwoBranchLayer):
    """See the module docstring."""

    Config = Config
    W: nn.Parameter
    b: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W and b."""
        d = cfg.d_inner
        return {"W": Weight((d, 2 * d), xavier(), flops=4 * d * d), "b": vector(d, 0.0)}

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """W_x x~ + b."""
        return (linear(x_BTd, self.W[:, : self.cfg.d_inner], self.b),)

    def weights(self) -> tuple[Tensor, ...]:
        """W_h."""
        return (self.W[:, self.cfg.d_inner :],)

    def cell(self) -> Cell:
        """tanh(u + W_h h)."""
        return Cell(dense)
