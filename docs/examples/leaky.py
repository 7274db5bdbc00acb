"""h_t = a * h_{t-1} + (1 - a) * x~_t

Leaky integrator: one trained decay per channel, the same at every step.

Parent      none: the example of the tutorial.
Parameters  2*D*d + d per layer.
"""

from typing import Any

import torch
from rnn_lab.layers import ProjectedConfig, ProjectedLayer
from rnn_lab.parts import Part, vector
from torch import Tensor


class Config(ProjectedConfig):
    """Fields of `fit --model leaky`: those of every projected layer."""


class Model(ProjectedLayer):
    """See the module docstring."""

    Config = Config

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """One logit per channel, which starts at sigmoid(2) = 0.88."""
        return {"decay": vector(cfg.d_inner, 2.0)}

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """What enters at each step."""
        return (x_BTd,)

    def weights(self) -> tuple[Tensor, ...]:
        """The decay a."""
        return (torch.sigmoid(self.decay),)

    @staticmethod
    def update(h: Tensor, x: Tensor, a: Tensor) -> Tensor:
        """A h + (1 - a) x."""
        return torch.lerp(x, h, a)
