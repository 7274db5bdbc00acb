"""h_t = a_t * h_{t-1} + (1 - a_t) * tanh(d_h * h_{t-1} + W_x x~_t + b)

Diagonal-state cell: the candidate sees every channel of the state through a factor of its own. Nonlinear but
diagonal, so it is sequential without any matrix product in the loop.

    x~_BTd = silu(conv?(P_in x_BTD))         D = dim, d = int(dim * expansion)
    a_BTd  = sigmoid(W_a x~ + b_a)           leak, starts near 0.88 (b_a = 2)
    v_Bd   = tanh(d_h * h + W_x x~ + b)      candidate; d_h starts at 0.5
    y_BTD  = P_out (h * silu(h))

Parent      e64: a learned diagonal d_h instead of the identity.
Parameters  2*D*d + 2*d*d + 3*d per layer.
Aliases     65:
Source      100M/10-minute benchmark, row E65: D 640, d 1280, depth 20 = 98,558,080 parameters.
"""

from typing import Any

from rnn_lab.parts import Part, vector
from torch import Tensor, nn

from rnn_lab_e61_e68._gated import GatedLayer, mix


class Model(GatedLayer):
    """See the module docstring."""

    d_h: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_a with b_a, W_x with b, d_h."""
        return super().cell_parts(cfg) | {"d_h": vector(cfg.d_inner, 0.5)}

    def weights(self) -> tuple[Tensor, ...]:
        """d_h."""
        return (self.d_h,)

    @staticmethod
    def update(h: Tensor, a: Tensor, u: Tensor, d_h: Tensor) -> Tensor:  # type: ignore[override]
        """a h + (1 - a) tanh(d_h h + u)."""
        return mix(h, a, (d_h * h + u).tanh())
