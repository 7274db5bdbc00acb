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

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.init import xavier
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.parts import Dense, Linear, Part
from torch import Tensor

from rnn_lab_e61_e68._gated import GatedConfig, GatedLayer, linear


class Config(GatedConfig):
    """Fields of `fit --model e61`."""

    form: Literal["convex", "additive", "tied"] = Field("convex", description="how v enters the state")
    tanh: bool = Field(False, description="bound the candidate by tanh (the tied form always does)")


class Model(GatedLayer):
    """See the module docstring."""

    Config = Config

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_a with b_a, W_v with b_v; one projection when tied."""
        d, parts = cfg.d_inner, super().cell_parts(cfg)
        if cfg.form == "additive":
            parts["value"] = Dense(d, d, bias=0.0, init=xavier(0.1))
        return {"value": parts["value"]} if cfg.form == "tied" else parts

    def projections(self) -> tuple[Linear, ...]:
        """W_a and W_v, or the one of the tied form."""
        return (self.value,) if self.cfg.form == "tied" else super().projections()

    def cell(self) -> Cell:
        """a h + u."""
        return Cell(linear, before=partial(gates, self.cfg.form, self.cfg.tanh or self.cfg.form == "tied"))


def gates(form: str, bounded: bool, *products_and_biases: Tensor) -> tuple[Tensor, Tensor]:
    """Leak a and what is written per step."""
    n = len(products_and_biases) // 2
    a, *rest = (p + b for p, b in zip(products_and_biases[:n], products_and_biases[n:], strict=True))
    v = rest[0] if rest else a
    a = torch.sigmoid(a)
    v = v.tanh() if bounded else v
    return a, v if form == "additive" else (1 - a) * v
