"""h_t[s] = tanh(W_x x~_t + W_h h_{t-1}[s] + b),  y_t = (sum_s C_s h_t[s]) * silu(z_t)

Elman cell with S copies of the state, which share every weight. Dense and nonlinear, so strictly sequential: one
product of S vectors with W_h per step.

    [a; z]_BTd = P_in x_BTD                  D = dim, d = int(dim * expansion), S = n_slots
    x~_BTd     = silu(conv?(a))
    h_BSd      = tanh(W_x x~ + W_h h + b)    the same input for every slot
    y_BTD      = P_out ((sum_s C_s h[s]) * silu(z))

Forms: `full` as above, W_h clipped to spectral norm 0.99; `diagonal` has A * h with A = 0.99 sigmoid(A_raw)
instead of the product.

Degenerate: the slots start at zero, see the same input and share W_x, W_h and b, so they stay equal for ever. From
a zero state E2 is E1 with its output scaled by sum(C), at S times E1's recurrent cost; only an initial state whose
slots differ tells them apart.

Parent      e1: S states instead of one, and a clip instead of a rescaled norm.
Parameters  3*D*d + 2*d*d + d + S per layer; 3*D*d + d*d + 2*d + S when diagonal.
Aliases     2:
Source      in no seed table; 50M shape D 512, d 768, S 8, depth 21, LayerNorm = 49,715,112 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.init import orthogonal
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.parts import Part, Recurrent, vector
from torch import Tensor, nn

from rnn_lab_e0_e5._elman import SlotConfig, SlotLayer


class Config(SlotConfig):
    """Fields of `fit --model e2`."""

    form: Literal["full", "diagonal"] = Field("full", description="recurrence within a slot")


class Model(SlotLayer):
    """See the module docstring."""

    Config = Config
    W_h: nn.Module
    A: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_x with b, C, and W_h or A_raw."""
        d, radius = cfg.d_inner, cfg.spectral_radius
        W_h = Recurrent(d, orthogonal(0.5 * radius), "clip", radius, products=cfg.n_slots)
        return super().cell_parts(cfg) | ({"W_h": W_h} if cfg.form == "full" else {"A": vector(d, 0.0)})

    def weights(self) -> tuple[Tensor, ...]:
        """The effective W_h or A."""
        if self.cfg.form == "full":
            return (self.W_h(),)
        return (self.cfg.spectral_radius * torch.sigmoid(self.A),)

    def cell(self) -> Cell:
        """The update of the chosen form."""
        return Cell(full if self.cfg.form == "full" else diagonal)


def full(h_BSd: Tensor, u: Tensor, W_h: Tensor) -> Tensor:
    """tanh(u + W_h h) for every slot."""
    return torch.tanh(u + h_BSd @ W_h.T)


def diagonal(h_BSd: Tensor, u: Tensor, A: Tensor) -> Tensor:
    """tanh(u + A h) for every slot."""
    return torch.tanh(u + A * h_BSd)
