"""What the cells of this family share: a leak that starts near 0.88, a candidate, and how the two are mixed."""

from typing import Any

import torch
from pydantic import Field
from rnn_lab.layers import ProjectedConfig, ProjectedLayer
from rnn_lab.parts import Dense, Linear, Part, products
from torch import Tensor


class GatedConfig(ProjectedConfig):
    """Fields of every cell of the family."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")


class GatedLayer(ProjectedLayer):
    """Projected shell around a cell with the leak a = sigmoid(W_a x~ + b_a) and the input W_v x~ + b_v."""

    Config = GatedConfig
    leak: Linear
    value: Linear

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_a with b_a = 2, W_v with b_v = 0."""
        d = cfg.d_inner
        return {"leak": Dense(d, d, bias=2.0), "value": Dense(d, d, bias=0.0)}

    def projections(self) -> tuple[Linear, ...]:
        """What `before` takes: first the product of each, then the bias of each."""
        return self.leak, self.value

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """Products without their biases."""
        return products(x_BTd, *self.projections())

    def biases(self) -> tuple[Tensor, ...]:
        """The biases."""
        return tuple(linear.bias for linear in self.projections())

    @staticmethod
    def before(a: Tensor, u: Tensor, b_a: Tensor, b_u: Tensor) -> tuple[Tensor, ...]:
        """Leak, and the candidate before its nonlinearity."""
        return torch.sigmoid(a + b_a), u + b_u


def linear(h: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """a h + u."""
    return a * h + u


def mix(h: Tensor, a: Tensor, v: Tensor) -> Tensor:
    """a h + (1 - a) v."""
    return a * h + (1 - a) * v
