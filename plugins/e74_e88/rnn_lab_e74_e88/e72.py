"""S_t = a_t S_{t-1} + (1 - a_t) (v_t g_t) k_t',  g_t = sigmoid(d_g * (S_{t-1} k_t) + b_g),  o_t = S_t q_t

Self-gated associative memory: what the key retrieves from a row decides how much is written to it.

    x~_BTd   = silu(conv?(P_in x_BTD))       D = dim, d = int(dim * expansion), n = n_state
    k, v, q  = W_k x~, W_v x~, W_q x~        [B, T, n], not normalised
    a_BTn    = sigmoid(W_a x~ + b_a)         leak per row of S, starts near 0.88 (b_a = 2)
    y_BTD    = P_out (o * silu(o))

Forms: `standard` as above; `inverse` uses g = sigmoid(-d_g |S k| + b_g), so what is known protects itself.

Parent      e71: the state gates the write instead of the leak.
Parameters  D*d + 4*n*d + 3*n + n*D per layer.
Aliases     72: form = standard
Source      100M/10-minute benchmark, row E72: D 1408, n 96, depth 20 = 104,024,576 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import MatrixStateConfig, MatrixStateLayer, retrieve, write
from rnn_lab.parts import Dense, Part, vector
from torch import Tensor, nn


class Config(MatrixStateConfig):
    """Fields of `fit --model e72`."""

    n_state: int = Field(96, ge=1, le=4096, description="side n of the square state")
    form: Literal["standard", "inverse"] = Field("standard", description="what a large retrieval does to the write")


class Model(MatrixStateLayer):
    """See the module docstring."""

    Config = Config
    W_alpha: nn.Linear
    d_g: nn.Parameter
    b_g: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """k, v, q, the leak's W_a with b_a, d_g, b_g."""
        n = cfg.n_state
        leak: dict[str, Part] = {"W_alpha": Dense(cfg.d_inner, n, bias=2.0)}
        return super().cell_parts(cfg) | leak | {"d_g": vector(n, 0.5), "b_g": vector(n, 0.0)}

    def gates(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """What the leak is the sigmoid of."""
        return (self.W_alpha(x_BTd),)

    def weights(self) -> tuple[Tensor, ...]:
        """d_g and b_g."""
        return self.d_g, self.b_g

    def cell(self) -> Cell:
        """The update of the chosen form; read S q."""
        return Cell(inverse if self.cfg.form == "inverse" else standard, retrieve, before)


def before(k: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """The leak for its logits."""
    return k, v, torch.sigmoid(s)


def standard(S: Tensor, k: Tensor, v: Tensor, a: Tensor, d_g: Tensor, b_g: Tensor) -> Tensor:
    """A S + (1 - a) (v g) k' with g = sigmoid(d_g S k + b_g)."""
    g = torch.sigmoid(d_g * retrieve(S, k) + b_g)
    return write(a.unsqueeze(-1) * S, (1 - a) * g * v, k)


def inverse(S: Tensor, k: Tensor, v: Tensor, a: Tensor, d_g: Tensor, b_g: Tensor) -> Tensor:
    """The same with g = sigmoid(b_g - d_g |S k|)."""
    g = torch.sigmoid(b_g - d_g * retrieve(S, k).abs())
    return write(a.unsqueeze(-1) * S, (1 - a) * g * v, k)
