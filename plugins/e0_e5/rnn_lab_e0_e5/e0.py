"""h_t = tanh(W_x x~_t + W_h h_{t-1} + b),  y_t = h_t * silu(W_g x~_t + b_g)

Stock Elman cell with a learned output gate. Dense and nonlinear, so strictly sequential: one d x d product
per step.

    x~_BTd = P_in x_BTD                      D = dim, d = int(dim * expansion); silu(conv(.)) with a convolution
    h_Bd   = tanh(W_x x~ + W_h h + b)
    y_BTD  = P_out (h * silu(W_g x~ + b_g))

W_h is held to spectral norm 0.99 (`constraint = "spectral"`), free ("none"), or sigmoid(w) Q with a fixed
orthogonal Q ("orthogonal").

Parent      none: the root of the ladder.
Parameters  2*D*d + 3*d*d + 2*d per layer; one instead of d*d for W_h when orthogonal.
Aliases     0:
Source      E4 benchmark, row e0_stock: D 512, d 768, depth 19, LayerNorm = 48,742,912 parameters.
"""

from typing import Any, Literal

from pydantic import Field
from rnn_lab.init import xavier
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import ProjectedConfig, ProjectedLayer
from rnn_lab.parts import Dense, Part, Recurrent
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_lab_e0_e5._elman import dense


class Config(ProjectedConfig):
    """Fields of `fit --model e0`."""

    expansion: float = Field(1.5, gt=0, le=64, description="inner width d = int(dim * expansion)")
    constraint: Literal["spectral", "orthogonal", "none"] = Field("spectral", description="what holds W_h")


class Model(ProjectedLayer):
    """See the module docstring."""

    Config = Config
    W_x: nn.Linear
    W_h: nn.Module
    W_g: nn.Linear

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_x with b, W_h, W_g with b_g."""
        d = cfg.d_inner
        return {
            "W_x": Dense(d, d, bias=0.0),
            "W_h": Recurrent(d, xavier(0.1), cfg.constraint, radius=0.99),
            "W_g": Dense(d, d, bias=0.0),
        }

    @classmethod
    def has_silu(cls, cfg: Any) -> bool:
        """After the convolution only: E0 has none without it."""
        return bool(cfg.use_conv)

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """W_x x~ + b."""
        return (self.W_x(x_BTd),)

    def weights(self) -> tuple[Tensor, ...]:
        """The effective W_h."""
        return (self.W_h(),)

    def cell(self) -> Cell:
        """tanh(u + W_h h)."""
        return Cell(dense)

    def output(self, o_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor | None) -> Tensor:
        """H * silu(W_g x~ + b_g)."""
        return o_BTd * F.silu(self.W_g(x_BTd))
