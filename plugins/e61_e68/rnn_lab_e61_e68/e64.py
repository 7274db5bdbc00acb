"""h_t = a_t * h_{t-1} + (1 - a_t) * tanh(h_{t-1} + W_x x~_t + b)

Additive-state cell: the candidate sees the state itself, without any matrix. Nonlinear but diagonal, so it is
sequential without any matrix product in the loop.

    x~_BTd = silu(conv?(P_in x_BTD))         D = dim, d = int(dim * expansion)
    a_BTd  = sigmoid(W_a x~ + b_a)           leak, starts near 0.88 (b_a = 2)
    v_Bd   = tanh(h + W_x x~ + b)            candidate
    y_BTD  = P_out (h * silu(h))

Parent      e63: the identity instead of the recurrent matrix W_h.
Parameters  2*D*d + 2*d*d + 2*d per layer.
Aliases     64:
Source      100M/10-minute benchmark, row E64: D 640, d 1280, depth 20 = 98,532,480 parameters.
"""

from torch import Tensor

from rnn_lab_e61_e68._gated import GatedLayer, mix


class Model(GatedLayer):
    """See the module docstring."""

    @staticmethod
    def update(h: Tensor, a: Tensor, u: Tensor) -> Tensor:  # type: ignore[override]
        """a h + (1 - a) tanh(h + u)."""
        return mix(h, a, (h + u).tanh())
