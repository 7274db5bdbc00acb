"""What the family shares: updates of a dense and of a low-rank recurrence, and the layers of E1-E4."""

from typing import Any

import torch
from pydantic import Field
from rnn_lab.kernels.captured.low_rank import plus_product
from rnn_lab.layers import ProjectedConfig, TwoBranchLayer
from rnn_lab.parts import Dense, Part, vector
from torch import Tensor, nn


def dense(h: Tensor, u: Tensor, W_h: Tensor) -> Tensor:
    """tanh(u + W_h h)."""
    return torch.addmm(u, h, W_h.T).tanh()


def low_rank(h: Tensor, u: Tensor, U: Tensor, *V: Tensor) -> Tensor:
    """tanh(u + U V h); `U` may be the product of both."""
    return plus_product(u, h, U, *V).tanh()


class ElmanLayer(TwoBranchLayer):
    """Two branches around a cell whose input side is W_x x~ + b."""

    W_x: nn.Linear

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_x with b; a cell adds its recurrent part."""
        return {"W_x": Dense(cfg.d_inner, cfg.d_inner, bias=0.0)}

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """W_x x~ + b."""
        return (self.W_x(x_BTd),)


class SlotConfig(ProjectedConfig):
    """Fields of a layer with several copies of the state."""

    expansion: float = Field(1.5, gt=0, le=64, description="inner width d = int(dim * expansion)")
    n_slots: int = Field(8, ge=1, le=4096, description="copies S of the state")
    spectral_radius: float = Field(0.99, gt=0, le=2, description="bound of the recurrence")


class SlotLayer(ElmanLayer):
    """S states per sequence that see the same input; sum over s of C_s h[s] is what the gate takes."""

    Config = SlotConfig
    C: nn.Parameter

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_x with b, and C."""
        return super().cell_parts(cfg) | {"C": vector(cfg.n_slots, 1 / cfg.n_slots)}

    @classmethod
    def hidden_shape(cls, cfg: Any) -> tuple[int, ...]:
        """(S, d)."""
        return (cfg.n_slots, cfg.d_inner)

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """The same input for every slot: `[B, T, 1, d]`."""
        return tuple(u_BTd.unsqueeze(-2) for u_BTd in super().inputs(x_BTd))

    def output(self, o_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor | None) -> Tensor:
        """Slots combined, then gated."""
        return super().output((o_BTd * self.C[:, None]).sum(-2), x_BTd, z_BTd)
