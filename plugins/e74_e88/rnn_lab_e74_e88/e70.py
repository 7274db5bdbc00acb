"""S_t = lambda * S_{t-1} + v_t k_t',  o_t = S_t q_t

Linear associative memory with a constant decay. Linear in S, so it can run in parallel over time.

    x~_BTd   = silu(conv?(P_in x_BTD))       D = dim, d = int(dim * expansion), n = n_state
    k, v, q  = W_k x~, W_v x~, W_q x~        [B, T, n]; W_k and W_v are always rescaled to spectral norm 0.5
    lambda   = clamp(decay, 0, 0.999)        a parameter that the source never gave a gradient: it stays as it is
    y_BTD    = P_out (o * silu(o))

The norms come from a power iteration whose vectors are buffers; they advance once per optimizer step.

Parent      e63m: linear, and a square state.
Parameters  D*d + 3*n*d + n*D + 1 per layer, the decay counted although it is not trained.
Aliases     70:
Source      100M/10-minute benchmark, row E70: D 1408, n 96, depth 20 = 98,612,116 parameters.
"""

from typing import Any

import torch
from pydantic import Field
from rnn_lab.init import constant
from rnn_lab.kernels.linear.linear_state import LINEAR_STATE
from rnn_lab.layers import MatrixStateConfig, MatrixStateLayer, widen, write
from rnn_lab.parts import Part, Rescaled, Weight, linear
from torch import Tensor, nn


class Config(MatrixStateConfig):
    """Fields of `fit --model e70`."""

    n_state: int = Field(96, ge=1, le=4096, description="side n of the square state")
    decay: float = Field(0.9, ge=0, le=0.999, description="what the state keeps per step; not trained")


class Model(MatrixStateLayer):
    """See the module docstring."""

    Config = Config
    decay: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """Rescaled W_k and W_v, free W_q, the decay."""
        rescaled = Rescaled(cfg.d_inner, cfg.n_state, radius=0.5)
        decay = Weight((), constant(cfg.decay), trained=False)
        return super().cell_parts(cfg) | {"W_k": rescaled, "W_v": rescaled, "decay": decay}

    @classmethod
    def products(cls, cfg: Any) -> int:
        """Write and read."""
        return 2

    def project(self, x_BTd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Key and value by the rescaled matrices, query."""
        return linear(x_BTd, self.W_k()), linear(x_BTd, self.W_v()), self.W_q(x_BTd)

    def weights(self) -> tuple[Tensor, ...]:
        """Lambda."""
        return (self.decay.clamp(0, 0.999),)

    @staticmethod
    def update(S: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:  # type: ignore[override]
        """Lambda S + v k'."""
        return write(decay * S, v, k)

    def run_cell(self, x_BTd: Tensor, h: Tensor, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The recurrence as a linear state of one head, which a kernel may run in chunks."""
        k, v, q = (part.unsqueeze(2) for part in self.project(x_BTd))
        (decay,) = self.weights()
        g_BTH = torch.log(widen(decay)).expand(k.shape[:3])
        o_BTHn, S_BHnn = LINEAR_STATE(self.backends, v, k, q, g_BTH, h.unsqueeze(1), reset_BT)
        return widen(o_BTHn.squeeze(2)), S_BHnn.squeeze(1)
