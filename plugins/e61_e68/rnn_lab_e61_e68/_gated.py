"""What the cells of this family share: a leak that starts near 0.88, a candidate, and how the two are mixed."""

from typing import Any

from pydantic import Field
from rnn_lab.layers import ProjectedConfig, ProjectedLayer, gate
from rnn_lab.parts import Dense, Part
from torch import Tensor, nn


class GatedConfig(ProjectedConfig):
    """Fields of every cell of the family."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")


class GatedLayer(ProjectedLayer):
    """Projected shell around a cell with the leak a = sigmoid(W_a x~ + b_a) and the input W_v x~ + b_v."""

    Config = GatedConfig
    leak: nn.Linear
    value: nn.Linear

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_a with b_a = 2, W_v with b_v = 0."""
        d = cfg.d_inner
        return {"leak": Dense(d, d, bias=2.0), "value": Dense(d, d, bias=0.0)}

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """Leak, and the candidate before its nonlinearity."""
        return gate(self.leak(x_BTd)), self.value(x_BTd)


def linear(h: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """a h + u."""
    return a * h + u


def mix(h: Tensor, a: Tensor, v: Tensor) -> Tensor:
    """a h + (1 - a) v."""
    return a * h + (1 - a) * v
