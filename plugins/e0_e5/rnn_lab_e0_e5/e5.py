"""h_t = tanh(U_h V_h h_{t-1} + U_x V_x x_t + b),  y_t = h_t * silu(U_z V_z x_t)

Elman cell of low-rank matrices only, without projections around it: the state is as wide as the model. Dense and
nonlinear, so strictly sequential: two thin products per step.

    m_BTD = U_x V_x x_BTD + b                D = dim, r = rank; U [D, r], V [r, D]
    q_BTD = U_z V_z x_BTD
    h_BD  = tanh(U_h V_h h + m)
    y_BTD = h * silu(q)

No matrix is held to a norm.

Parent      e4: every matrix of low rank, no expansion, no input activation, no constraint.
Parameters  6*D*r + D per layer; r = max(16, D // 8) unless set.
Aliases     5:
Source      testing protocol, LayerNorm, depth 20: e5_d1536_r270 = 50,254,848 parameters, e5_d2048_r200 = 49,803,264,
            e5_d1024_r404 = 49,969,152, e5_d768_r539 = 49,918,464.
"""

from typing import Any

from pydantic import Field
from rnn_lab.init import orthogonal
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams
from rnn_lab.layer import Layer, LayerConfig, SearchSpace, State
from rnn_lab.parts import Dense, Part, Weight
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_lab_e0_e5._elman import low_rank


class Config(LayerConfig):
    """Fields of `fit --model e5`."""

    rank: int | None = Field(None, ge=1, le=2**17, description="rank r of all matrices; default: dim / 8, at least 16")

    @property
    def r(self) -> int:
        """The rank in use."""
        return max(16, self.dim // 8) if self.rank is None else self.rank


class Model(Layer):
    """See the module docstring."""

    Config = Config
    V_x: nn.Linear
    U_x: nn.Linear
    V_z: nn.Linear
    U_z: nn.Linear
    V_h: nn.Parameter
    U_h: nn.Parameter

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._cell = Cell(low_rank, after=gated, low_rank=0)

    @classmethod
    def parts(cls, cfg: Any) -> dict[str, Part]:
        """Three pairs of thin matrices; U_x carries b."""
        D, r, init = cfg.dim, cfg.r, orthogonal(0.5)
        return {
            "V_x": Dense(D, r, init=init),
            "U_x": Dense(r, D, bias=0.0, init=init),
            "V_z": Dense(D, r, init=init),
            "U_z": Dense(r, D, init=init),
            "V_h": Weight((r, D), init, flops=2 * D * r),
            "U_h": Weight((D, r), init, flops=2 * D * r),
        }

    @classmethod
    def state_shapes(cls, cfg: Any, seq_len: int = 0) -> dict[str, tuple[int, ...]]:
        """h of width D."""
        return {"h": (cfg.dim,)}

    @classmethod
    def search_space(cls, cfg: Any) -> SearchSpace:
        """Ranks near dim / 8, 6, 4, 3 and 2; multiples of 8 where that still leaves a choice."""
        multiple = 8 if cfg.dim >= 512 else 1
        ranks = [max(16, multiple * round(cfg.dim / share / multiple)) for share in (8, 6, 4, 3, 2)]
        return SearchSpace(choices={"rank": tuple(dict.fromkeys(ranks))})

    def forward(
        self, x_BTD: Tensor, state: State | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See Layer.forward."""
        state = self.init_state(x_BTD.shape[0]) if state is None else state
        m_BTD, q_BTD = self.U_x(self.V_x(x_BTD)), self.U_z(self.V_z(x_BTD))
        streams = Streams((m_BTD,), (self.U_h, self.V_h), gates=(q_BTD,))
        y_BTD, last = RECURRENCE(self.backends, self._cell, state["h"], streams, reset_BT)
        return y_BTD, {"h": last}


def gated(h: Tensor, q: Tensor) -> Tensor:
    """h * silu(q)."""
    return h * F.silu(q)
