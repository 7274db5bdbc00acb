"""S_t = tanh(b_t S_{t-1} + (v_t - S_{t-1} k_t) k_t'),  o_t = S_t q_t   per head

Gated delta rule: E74 with a forget gate per row, in H independent heads of side n = n_state.

    x~_BTd   = silu(conv?(P_in x_BTD))       D = dim, d = int(dim * expansion)
    k, v, q  = W_k x~, W_v x~, W_q x~        [B, T, H n]; k is normalised per head where S is retrieved and written
    b_BTHn   = sigmoid(W_beta x~ + b_beta)   forget gate, starts near 0.88 (b_beta = 2)
    y_BTD    = P_out (o * silu(o))           o of all heads side by side

The error is taken from the state before it is gated. `nonlinearity = linear` leaves the tanh out: the source's
vector-gate ablation.

Parent      e74: a forget gate.
Parameters  D*d + 4*H*n*d + H*n + H*n*D per layer.
Aliases     75:
            e75h4n32: n_heads = 4, n_state = 32
            e75h4n24: n_heads = 4, n_state = 24
Source      author's notes, 100M in 10 minutes: n = 48 reached 1.483, H = 4 with n = 32 reached 1.42; shapes not given.
"""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import MatrixStateConfig, MatrixStateLayer, normalise, retrieve, write
from rnn_lab.parts import Dense, Part
from torch import Tensor, nn

from rnn_lab_e74_e88._updates import NONLINEARITIES


class Config(MatrixStateConfig):
    """Fields of `fit --model e75`."""

    n_state: int = Field(32, ge=1, le=4096, description="side n of the square state of a head")
    n_heads: int = Field(1, ge=1, le=2**16, description="heads H")
    nonlinearity: Literal["tanh", "linear"] = Field("tanh", description="on the new state")


class Model(MatrixStateLayer):
    """See the module docstring."""

    Config = Config
    W_beta: nn.Linear

    @classmethod
    def d_read(cls, cfg: Any) -> int:
        """H n."""
        return int(cfg.n_heads * cfg.n_state)

    @classmethod
    def hidden_shape(cls, cfg: Any) -> tuple[int, ...]:
        """(H, n, n)."""
        return (cfg.n_heads, cfg.n_state, cfg.n_state)

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """k, v, q, and the forget gate's W_beta with b_beta."""
        return super().cell_parts(cfg) | {"W_beta": Dense(cfg.d_inner, cls.d_read(cfg), bias=2.0)}

    def gates(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """What the forget gate is the sigmoid of."""
        return (self.W_beta(x_BTd),)

    def cell(self) -> Cell:
        """f of the gated delta rule; read S q."""
        return Cell(partial(gated_delta, NONLINEARITIES[self.cfg.nonlinearity]), retrieve, before)


def before(k: Tensor, v: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """The key to length one, the forget gate."""
    return normalise(k), v, torch.sigmoid(b)


def gated_delta(f: Any, S: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """f(b S + (v - S k) k')."""
    new: Tensor = f(write(beta.unsqueeze(-1) * S, v - retrieve(S, k), k))
    return new
