"""S_t = tanh(S_{t-1} Z_t + v_t k_t'),  o_t = S_t q_t

Saturating associative memory whose old content is scaled, entry by entry, by a squashed input gate.

    x~_BTd   = silu(conv?(P_in x_BTD))       D = dim, d = int(dim * expansion), n = n_state
    k, v, q  = W_k x~, W_v x~, W_q x~        [B, T, n], not normalised
    z_BTn    = tanh(W_z x~ + b_z)            starts near 0.76 (b_z = 1)
    y_BTD    = P_out (o * silu(o))

Forms: `column` Z_ij = z_j, `row` Z_ij = z_i, `full` Z_ij = z_i z_j, all element-wise on S.

The source's checkpointed variant E73cp is another model: e74 with `projection = full`.

Parent      e70: tanh on the state, and a gate instead of the decay.
Parameters  D*d + 4*n*d + n + n*D per layer.
Aliases     73: form = column
Source      100M/10-minute benchmark, row E73: D 1408, n 96, depth 20 = 104,020,736 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import MatrixStateConfig, MatrixStateLayer, retrieve, write
from rnn_lab.parts import Dense, Part
from torch import Tensor, nn


class Config(MatrixStateConfig):
    """Fields of `fit --model e73`."""

    n_state: int = Field(96, ge=1, le=4096, description="side n of the square state")
    form: Literal["column", "row", "full"] = Field("column", description="what z scales: columns, rows, or both")


class Model(MatrixStateLayer):
    """See the module docstring."""

    Config = Config
    W_z: nn.Linear

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """k, v, q, and W_z with b_z."""
        return super().cell_parts(cfg) | {"W_z": Dense(cfg.d_inner, cfg.n_state, bias=1.0)}

    @classmethod
    def products(cls, cfg: Any) -> int:
        """Write and read."""
        return 2

    def gates(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """What z is the tanh of."""
        return (self.W_z(x_BTd),)

    def cell(self) -> Cell:
        """The update of the chosen form; read S q."""
        return Cell({"column": column, "row": row, "full": full}[self.cfg.form], retrieve, before)


def before(k: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """z within its bounds."""
    return k, v, torch.tanh(z)


def column(S: Tensor, k: Tensor, v: Tensor, z: Tensor) -> Tensor:
    """tanh(S_ij z_j + v_i k_j)."""
    return torch.tanh(write(S * z.unsqueeze(-2), v, k))


def row(S: Tensor, k: Tensor, v: Tensor, z: Tensor) -> Tensor:
    """tanh(S_ij z_i + v_i k_j)."""
    return torch.tanh(write(S * z.unsqueeze(-1), v, k))


def full(S: Tensor, k: Tensor, v: Tensor, z: Tensor) -> Tensor:
    """tanh(S_ij z_i z_j + v_i k_j)."""
    return torch.tanh(write(S * z.unsqueeze(-1) * z.unsqueeze(-2), v, k))
