"""S_t = a_t S_{t-1} + (1 - a_t) v_t k_t',  v_t = tanh(W_r tanh(S_{t-1} k_t) + W_x x~_t + b),  o_t = tanh(S_t q_t)

Matrix-state Elman cell: a bank of N slots of width d; what is written is a nonlinear function of what is retrieved.

    x~_BTd = silu(conv?(P_in x_BTD))         D = dim, d = int(dim * expansion), N = n_slots
    k, q   = W_k x~, W_q x~                  [B, T, d], not normalised
    a_BTN  = sigmoid(W_a x~ + b_a)           leak per slot, starts near 0.88 (b_a = 2)
    y_BTD  = P_out o                         no self-gate

Forms: `full` as above; `lite` puts W_out [d, N] between o and P_out; `rnn` feeds the read-out back,
o_t = tanh(S_t q_t + R o_{t-1}). The source keeps o_{t-1} within one call only; here it is a second state `o`,
so that chunks and single steps give what the whole pass gives.

Parent      e63: the state is a matrix that keys address.
Parameters  D*d + 2*d*d + 2*N*d + N*N + 2*N + N*D per layer; rnn adds N*N, lite adds N*d + d*D - N*D.
Aliases     63m, 63m-full, e63m-full: form = full
            63m-lite, e63m-lite: form = lite
            63m-rnn, e63m-rnn: form = rnn
Source      100M/10-minute benchmark, row E63m: D 640, d 1280, N 8, depth 20 = 82,610,880 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.init import orthogonal
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layer import State
from rnn_lab.layers import MatrixStateLayer, ProjectedConfig, gate, retrieve, write
from rnn_lab.parts import Dense, Part, Weight
from torch import Tensor, nn
from torch.nn import functional as F


class Config(ProjectedConfig):
    """Fields of `fit --model e63m`."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")
    n_slots: int = Field(8, ge=1, le=4096, description="slots N: rows of the state")
    form: Literal["full", "lite", "rnn"] = Field("full", description="what happens to the read-out")


class Model(MatrixStateLayer):
    """See the module docstring."""

    Config = Config
    W_x: nn.Linear
    W_alpha: nn.Linear
    W_out: nn.Linear
    W_r: nn.Parameter
    R: nn.Parameter

    @classmethod
    def d_read(cls, cfg: Any) -> int:
        """N, or d behind W_out."""
        return int(cfg.d_inner if cfg.form == "lite" else cfg.n_slots)

    @classmethod
    def hidden_shape(cls, cfg: Any) -> tuple[int, ...]:
        """(N, d)."""
        return (cfg.n_slots, cfg.d_inner)

    @classmethod
    def state_shapes(cls, cfg: Any, seq_len: int = 0) -> dict[str, tuple[int, ...]]:
        """The shell's, and for `rnn` the last read-out `o`."""
        return super().state_shapes(cfg, seq_len) | ({"o": (cfg.n_slots,)} if cfg.form == "rnn" else {})

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """Keys and queries, the candidate's W_r, W_x and b, the leak's W_a and b_a, and what the form adds."""
        d, N = cfg.d_inner, cfg.n_slots
        forms: dict[str, dict[str, Part]] = {
            "full": {},
            "lite": {"W_out": Dense(N, d)},
            "rnn": {"R": Weight((N, N), orthogonal(0.3), flops=2 * N * N)},
        }
        cell: dict[str, Part] = {
            "W_k": Dense(d, d),
            "W_q": Dense(d, d),
            "W_x": Dense(d, N, bias=0.0),
            "W_r": Weight((N, N), orthogonal(0.5), flops=2 * N * N),
            "W_alpha": Dense(d, N, bias=2.0),
        }
        return cell | forms[cfg.form]

    def streams(self, x_BTd: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Key, input side of the candidate, leak; the query, which `rnn` needs in the step itself."""
        inputs = (self.W_k(x_BTd), self.W_x(x_BTd), gate(self.W_alpha(x_BTd)))
        query = (self.W_q(x_BTd),)
        return (inputs + query, ()) if self.cfg.form == "rnn" else (inputs, query)

    def weights(self) -> tuple[Tensor, ...]:
        """W_r, and R for `rnn`."""
        return (self.W_r, self.R) if self.cfg.form == "rnn" else (self.W_r,)

    def cell(self) -> Cell:
        """Step and read-out of the chosen form."""
        return Cell(fed_back, last_column) if self.cfg.form == "rnn" else Cell(update, read)

    def output(self, o_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor | None) -> Tensor:
        """The read-out itself, or W_out of it."""
        return self.W_out(o_BTd) if self.cfg.form == "lite" else o_BTd

    def forward(
        self, x_BTD: Tensor, state: State | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See Layer.forward. For `rnn`, o travels through the recurrence as a last column of S."""
        if self.cfg.form != "rnn":
            return super().forward(x_BTD, state, reset_BT)
        state = self.init_state(x_BTD.shape[0]) if state is None else state
        y_BTD, new = super().forward(x_BTD, {**state, "h": _join(state["h"], state["o"])}, reset_BT)
        return y_BTD, {**new, "h": new["h"][..., :-1], "o": new["h"][..., -1]}


def update(S: Tensor, k: Tensor, p: Tensor, a: Tensor, W_r: Tensor) -> Tensor:
    """A S + (1 - a) v k' with v = tanh(W_r tanh(S k) + p)."""
    v = torch.tanh(F.linear(torch.tanh(retrieve(S, k)), W_r) + p)
    return write(a.unsqueeze(-1) * S, (1 - a) * v, k)


def read(S: Tensor, q: Tensor) -> Tensor:
    """tanh(S q)."""
    return torch.tanh(retrieve(S, q))


def fed_back(So: Tensor, k: Tensor, p: Tensor, a: Tensor, q: Tensor, W_r: Tensor, R: Tensor) -> Tensor:
    """The same update, and o = tanh(S q + R o)."""
    S = update(So[..., :-1], k, p, a, W_r)
    return _join(S, torch.tanh(retrieve(S, q) + F.linear(last_column(So), R)))


def last_column(So: Tensor) -> Tensor:
    """O of S and o joined."""
    return So[..., -1]


def _join(S: Tensor, o: Tensor) -> Tensor:
    return torch.cat([S, o.unsqueeze(-1)], -1)
