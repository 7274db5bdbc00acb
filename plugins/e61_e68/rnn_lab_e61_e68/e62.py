"""h_t = (1 - k_t) * h_{t-1} + k_t * v_t

Selective-write Elman cell: an input-dependent write gate per channel and a bounded candidate. Linear in h, so it
can run in parallel over time.

    x~_BTd = silu(conv?(P_in x_BTD))         D = dim, d = int(dim * expansion)
    k_BTd  = sigmoid(W_k x~ + b_k)           write gate, starts near 0.12 (b_k = -2)
    v_BTd  = tanh(W_v x~ + b_v)              candidate
    y_BTD  = P_out (h * silu(h))

Forms: `select` as above; `decay` forgets by a leak of its own too, h = a (1 - k) h + k v with
a = sigmoid(W_a x~ + b_a), b_a = 2; `tied` makes the gate and the candidate from one projection q,
1 - k = sigmoid(q) and v = tanh(q): the same cell as e61's tied form.

Parent      e61: the gate is on the write, a = 1 - k, and the candidate is bounded.
Parameters  2*D*d + 2*d*d + 2*d per layer; d*d + d more with decay, as many fewer when tied.
Aliases     62:
            62b, e62b: form = decay
            62c, e62c: form = tied
Source      100M/10-minute benchmark, row E62: D 640, d 1280, depth 20 = 98,532,480 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.parts import Dense, Linear, Part
from torch import Tensor

from rnn_lab_e61_e68._gated import GatedConfig, GatedLayer, linear


class Config(GatedConfig):
    """Fields of `fit --model e62`."""

    form: Literal["select", "decay", "tied"] = Field("select", description="what besides the write forgets")


class Model(GatedLayer):
    """See the module docstring."""

    Config = Config
    write: Linear

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_k with b_k, W_v with b_v, and W_a with b_a for the decay; one projection when tied."""
        d, parts = cfg.d_inner, super().cell_parts(cfg)
        if cfg.form != "decay":
            del parts["leak"]
        if cfg.form != "tied":
            parts["write"] = Dense(d, d, bias=-2.0)
        return parts

    def projections(self) -> tuple[Linear, ...]:
        """W_v, and the form's W_k and W_a."""
        own = {"select": ("value", "write"), "decay": ("value", "write", "leak"), "tied": ("value",)}
        return tuple(getattr(self, name) for name in own[self.cfg.form])

    def cell(self) -> Cell:
        """a h + u."""
        return Cell(linear, before=gates)


def gates(*products_and_biases: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the state that is kept, and what is written per step."""
    n = len(products_and_biases) // 2
    q, *rest = (p + b for p, b in zip(products_and_biases[:n], products_and_biases[n:], strict=True))
    k = torch.sigmoid(rest[0] if rest else -q)
    kept = 1 - k
    if len(rest) == 2:
        kept = torch.sigmoid(rest[1]) * kept
    return kept, k * q.tanh()
