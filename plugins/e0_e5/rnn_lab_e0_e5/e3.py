"""h_t[s] = tanh(W_x x~_t + A_s * h_{t-1}[s] + b),  y_t = (sum_s C_s h_t[s]) * silu(z_t)

Elman cell with S copies of the state, each with a recurrence of its own.

    [a; z]_BTd = P_in x_BTD                  D = dim, d = int(dim * expansion), S = n_slots, r = rank
    x~_BTd     = silu(conv?(a))
    h_BSd      = tanh(W_x x~ + A * h + b)    A_Sd = 0.99 sigmoid(A_raw), starts at 0.495
    y_BTD      = P_out ((sum_s C_s h[s]) * silu(z))

Forms: `diagonal` as above, sequential without a matrix product in the loop; `low_rank` has U_s V_s h[s] instead of
A_s h[s], free of any constraint after its initial values.

Degenerate as it starts: in the diagonal form A_raw, C and the state begin equal in all slots, so the slots get equal
gradients and never separate. The low-rank form draws every U_s and V_s on its own and is sound.

Parent      e2: the recurrence differs from slot to slot.
Parameters  3*D*d + d*d + d + S*d + S per layer; 3*D*d + d*d + d + 2*S*d*r + S when low_rank.
Aliases     3:
Source      in no seed table; 50M shape D 512, d 768, S 8, depth 28, LayerNorm = 49,899,744 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.init import constant, orthogonal
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.parts import Part, Weight
from torch import Tensor, nn

from rnn_lab_e0_e5._elman import SlotConfig, SlotLayer


class Config(SlotConfig):
    """Fields of `fit --model e3`."""

    form: Literal["diagonal", "low_rank"] = Field("diagonal", description="recurrence within a slot")
    rank: int = Field(64, ge=1, le=2**17, description="rank r of the low-rank recurrence")


class Model(SlotLayer):
    """See the module docstring."""

    Config = Config
    A_raw: nn.Parameter
    U: nn.Parameter
    V: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_x with b, C, and A_raw or U and V."""
        S, d, r = cfg.n_slots, cfg.d_inner, cfg.rank
        if cfg.form == "diagonal":
            return super().cell_parts(cfg) | {"A_raw": Weight((S, d), constant(0.0))}
        return super().cell_parts(cfg) | {
            "U": Weight((S, d, r), orthogonal(0.3 * cfg.spectral_radius), flops=2 * S * d * r),
            "V": Weight((S, r, d), orthogonal(0.5), flops=2 * S * d * r),
        }

    def weights(self) -> tuple[Tensor, ...]:
        """A, or U and V."""
        if self.cfg.form == "diagonal":
            return (self.cfg.spectral_radius * torch.sigmoid(self.A_raw),)
        return self.U, self.V

    def cell(self) -> Cell:
        """The update of the chosen form."""
        return Cell(diagonal) if self.cfg.form == "diagonal" else Cell(low_rank, low_rank=0)


def diagonal(h_BSd: Tensor, u: Tensor, A: Tensor) -> Tensor:
    """tanh(u + A_s h[s])."""
    return torch.tanh(u + A * h_BSd)


def low_rank(h_BSd: Tensor, u: Tensor, U: Tensor, *V: Tensor) -> Tensor:
    """tanh(u + U_s V_s h[s]), the slots as one batch of products; `U` may be the product of both."""
    h_SBd = h_BSd.transpose(0, 1)
    h_SBd = torch.bmm(torch.bmm(h_SBd, V[0].mT) if V else h_SBd, U.mT)
    return torch.tanh(u + h_SBd.transpose(0, 1))
