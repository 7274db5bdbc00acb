"""S_t = a_t S_{t-1} + (1 - a_t) v_t k_t',  a_t = sigmoid(W_a x~_t + d_a * (S_{t-1} k_t) + b_a),  o_t = S_t q_t

Gated associative memory: every row leaks by a gate that has seen what the key retrieves from it.

    x~_BTd   = silu(conv?(P_in x_BTD))       D = dim, d = int(dim * expansion), n = n_state
    k, v, q  = W_k x~, W_v x~, W_q x~        [B, T, n], not normalised
    a_BTn    per row of S; starts near 0.88 (b_a = 2)
    y_BTD    = P_out (o * silu(o))

Parent      e70: the decay depends on input and state.
Parameters  D*d + 4*n*d + 2*n + n*D per layer.
Aliases     71:
Source      100M/10-minute benchmark, row E71: D 1408, n 96, depth 20 = 104,022,656 parameters.
"""

from typing import Any

import torch
from pydantic import Field
from rnn_lab.layers import MatrixStateConfig, MatrixStateLayer, retrieve, write
from rnn_lab.parts import Dense, Part, vector
from torch import Tensor, nn


class Config(MatrixStateConfig):
    """Fields of `fit --model e71`."""

    n_state: int = Field(96, ge=1, le=4096, description="side n of the square state")


class Model(MatrixStateLayer):
    """See the module docstring."""

    Config = Config
    W_alpha: nn.Linear
    d_alpha: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """k, v, q, the gate's W_a with b_a, and d_a."""
        n = cfg.n_state
        gate: dict[str, Part] = {"W_alpha": Dense(cfg.d_inner, n, bias=2.0), "d_alpha": vector(n, 0.1)}
        return super().cell_parts(cfg) | gate

    def gates(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """The gate's input side."""
        return (self.W_alpha(x_BTd),)

    def weights(self) -> tuple[Tensor, ...]:
        """d_a."""
        return (self.d_alpha,)

    @staticmethod
    def update(S: Tensor, k: Tensor, v: Tensor, s: Tensor, d_alpha: Tensor) -> Tensor:  # type: ignore[override]
        """A S + (1 - a) v k' with a = sigmoid(s + d_a S k)."""
        a = torch.sigmoid(s + d_alpha * retrieve(S, k))
        return write(a.unsqueeze(-1) * S, (1 - a) * v, k)
