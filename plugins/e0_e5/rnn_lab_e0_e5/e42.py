"""h_t = W x~_t + W h_{t-1} + b,  y_t = h_t * silu(h_t)

Linear Elman cell with one matrix for input and state, gated by itself. Time-invariant and linear, but dense: a loop
takes one d x d product per step, a scan a few products over all steps with powers of W.

    x~_BTd = silu(conv?(P_in x_BTD))         D = dim, d = int(dim * expansion)
    h_Bd   = W x~ + W h + b
    y_BTD  = P_out (h * silu(h))

W is held to spectral norm 0.999 (`constraint = "spectral"`) or free ("none").

Parent      e1: no tanh, W_x = W_h, and the state gates itself.
Parameters  2*D*d + d*d + d per layer.
Aliases     42:
Source      100M/10-minute benchmark, row E42: D 768, d 1536, depth 20 = 94,615,296 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.init import xavier
from rnn_lab.layers import ProjectedConfig, ProjectedLayer
from rnn_lab.parts import Part, Recurrent, linear, vector
from torch import Tensor, nn


class Config(ProjectedConfig):
    """Fields of `fit --model e42`."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")
    constraint: Literal["spectral", "none"] = Field("spectral", description="what holds W")
    spectral_radius: float = Field(0.999, gt=0, le=2, description="spectral norm that W is held to")


class Model(ProjectedLayer):
    """See the module docstring."""

    Config = Config
    W: nn.Module
    b: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W, which meets the input and the state, and b."""
        d = cfg.d_inner
        return {
            "W": Recurrent(d, xavier(0.1), cfg.constraint, cfg.spectral_radius, products=2),
            "b": vector(d, 0.0),
        }

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """W x~ + b."""
        return (linear(x_BTd, self.W(), self.b),)

    def weights(self) -> tuple[Tensor, ...]:
        """The effective W."""
        return (self.W(),)

    @staticmethod
    def update(h: Tensor, u: Tensor, W: Tensor) -> Tensor:  # type: ignore[override]
        """U + W h."""
        return torch.addmm(u, h, W.T)
