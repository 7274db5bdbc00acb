"""h_t = a_t * h_{t-1} + (1 - a_t) * v_t

Decay-gated Elman cell: an input-dependent leak per channel. Linear in h, so it can run in parallel over time.

    x~_BTd = silu(conv?(P_in x_BTD))         D = dim, d = int(dim * expansion)
    a_BTd  = sigmoid(W_a x~ + b_a)           leak in (0, 1), starts near 0.88 (b_a = 2)
    v_BTd  = W_v x~ + b_v                    candidate; tanh of it with `tanh = true`
    y_BTD  = P_out (h * silu(h))             self-gate of the family

Forms: `convex` as above; `additive` writes v without the factor 1 - a; `tied` makes the leak and tanh's
argument from one projection.

Parent      e42: a gated diagonal instead of a dense recurrent matrix.
Parameters  2*D*d + 2*d*d + 2*d per layer; 2*D*d + d*d + d when tied.
Aliases     61:
            61b, e61b: form = additive
            61c, e61c: form = tied
Source      100M/10-minute benchmark, row E61: D 640, d 1280, depth 20 = 98,532,480 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.init import xavier
from rnn_lab.layers import ProjectedConfig, ProjectedLayer
from rnn_lab.parts import Dense, Part
from torch import Tensor, nn


class Config(ProjectedConfig):
    """Fields of `fit --model e61`."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")
    form: Literal["convex", "additive", "tied"] = Field("convex", description="how v enters the state")
    tanh: bool = Field(False, description="bound the candidate by tanh (the tied form always does)")


class Model(ProjectedLayer):
    """See the module docstring."""

    Config = Config
    leak: nn.Linear
    value: nn.Linear

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_a with b_a, W_v with b_v; one projection when tied."""
        d = cfg.d_inner
        if cfg.form == "tied":
            return {"value": Dense(d, d, bias=0.0)}
        gain = 0.1 if cfg.form == "additive" else 1.0
        return {"leak": Dense(d, d, bias=2.0), "value": Dense(d, d, bias=0.0, init=xavier(gain))}

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """Leak a and what is written per step."""
        v_BTd = self.value(x_BTd)
        a_BTd = torch.sigmoid(v_BTd if self.cfg.form == "tied" else self.leak(x_BTd))
        if self.cfg.tanh or self.cfg.form == "tied":
            v_BTd = v_BTd.tanh()
        return a_BTd, v_BTd if self.cfg.form == "additive" else (1 - a_BTd) * v_BTd

    @staticmethod
    def update(h: Tensor, a: Tensor, u: Tensor) -> Tensor:  # type: ignore[override]
        """A h + u."""
        return a * h + u
