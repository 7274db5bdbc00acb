"""S_t = tanh(S_{t-1} (1 - k_t^2) + v_t k_t),  o_t = S_t q_t   element by element

The diagonal of E74's memory: one value per key channel, so that no product is left in the recurrence.

    x~_BTd   = silu(conv?(P_in x_BTD))       D = dim, d = int(dim * expansion), n = n_state
    k, v, q  = W_k x~, W_v x~, W_q x~        [B, T, n]; k is normalised over its n channels
    y_BTD    = P_out (o * silu(o))

    definition    cell as above; fused: k is not normalised, q is not used (o = S), the constant decay is 0.9
    projection    no_z; full keeps W_z and b_z, unused; tied_kq, tied_kvq share matrices
    nonlinearity  f in S = f(A): tanh, linear, rmsnorm or frobnorm of the whole vector
    update        delta A = S + w (v - S k) k; simple A = sigmoid(theta) S + v k; ema A = a S + (1 - a) v k
    gate          output; state, retain: w from S

`fused` is what the source's kernel computes, without b_z, theta, W_q's gradient and other updates than delta and
simple. Linear, its delta update multiplies S by 1 - k^2, which no bound holds: it diverges in training.

Parent      e74: the state is its diagonal.
Parameters  D*d + p*n*d + n*D per layer, p = 3 (no_z), 4 (full), 2 (tied_kq), 1 (tied_kvq); and n per bias and theta.
Aliases     e74-d-tiedkvq-t: definition = fused, activation = none, projection = tied_kvq
            e74-d-tiedkvq-l: definition = fused, activation = none, projection = tied_kvq, nonlinearity = linear
            e74-d-noz-t: definition = fused, activation = none
            e74-d-full-t: definition = fused, activation = none, projection = full
            e74-s-tiedkvq-t: definition = fused, activation = none, projection = tied_kvq, update = simple
Source      100M/10-minute benchmark, row E74-d-tiedkvq-t: D 1536, n 96, depth 20 = 103,644,672 parameters.
"""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from rnn_lab.init import xavier
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import TiedConfig, TiedLayer, gate, normalise
from rnn_lab.parts import Dense, Part, Weight, vector
from torch import Tensor, nn

from rnn_lab_e74_e88._updates import OF_A_VECTOR, step, write_gate

DECAY = 0.9


class Config(TiedConfig):
    """Fields of `fit --model e74d`."""

    n_state: int = Field(96, ge=1, le=4096, description="length n of the state")
    definition: Literal["cell", "fused"] = Field("cell", description="the source's cell, or what its kernel computes")
    nonlinearity: Literal["tanh", "linear", "rmsnorm", "frobnorm"] = Field("tanh", description="f on the new state")
    update: Literal["delta", "simple", "ema"] = Field("delta", description="what is written")
    gate: Literal["output", "state", "retain"] = Field("output", description="output gate only, or a write gate too")

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.gate != "output" and self.update != "delta":
            raise ValueError(f"gate {self.gate} is the write gate of update delta")
        known = self.nonlinearity in ("tanh", "linear") and self.update != "ema" and self.gate == "output"
        if self.definition == "fused" and not known:
            raise ValueError("definition fused goes with tanh or linear, update delta or simple, gate output")
        return self


class Model(TiedLayer):
    """See the module docstring."""

    Config = Config
    W_a: nn.Linear

    @classmethod
    def hidden_shape(cls, cfg: Any) -> tuple[int, ...]:
        """(n,)."""
        return (cfg.n_state,)

    @classmethod
    def products(cls, cfg: Any) -> int:
        """None: every step is element-wise."""
        return 0

    @classmethod
    def diverges(cls, cfg: Any) -> str | None:
        """The linear delta update of raw keys."""
        unbounded = cfg.definition == "fused" and cfg.nonlinearity == "linear" and cfg.update == "delta"
        return "S is multiplied by 1 - k^2 of keys without bound" if unbounded else None

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """Projections of the chosen sharing, those that only count, and what update and gate add."""
        n, parts, fused = cfg.n_state, super().cell_parts(cfg), cfg.definition == "fused"
        unused: Part = Weight((n, cfg.d_inner), xavier())
        if fused and parts.pop("W_q", None) is not None:
            parts["unused_W_q"] = unused
        if cfg.projection == "full":
            parts |= {"unused_W_z": unused} | ({} if fused else {"unused_b_z": vector(n, 1.0)})
        if cfg.gate != "output":
            parts |= {"d_g": vector(n, 0.5), "b_g": vector(n, 0.0)}
        if cfg.update == "ema":
            parts["W_a"] = Dense(cfg.d_inner, n, bias=2.0)
        elif cfg.update == "simple" and not fused:
            parts["theta"] = vector(n, -0.1)
        return parts

    def streams(self, x_BTd: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Key, value, gates; query. `fused` takes the key as it is and no query."""
        k_BTn, v_BTn, q_BTn = self.project(x_BTd)
        if self.cfg.definition == "fused":
            return (k_BTn, v_BTn), ()
        return (normalise(k_BTn), v_BTn, *self.gates(x_BTd)), (q_BTn,)

    def gates(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """The moving average's leak."""
        return (gate(self.W_a(x_BTd)),) if self.cfg.update == "ema" else ()

    def weights(self) -> tuple[Tensor, ...]:
        """The learned decay, or the write gate's d_g and b_g."""
        return tuple(getattr(self, name) for name in ("theta", "d_g", "b_g") if hasattr(self, name))

    def cell(self) -> Cell:
        """f of the chosen update; read S q, or S."""
        cfg = self.cfg
        change = partial(step, UPDATES[cfg.update], OF_A_VECTOR[cfg.nonlinearity], cfg)
        return Cell(change, None if cfg.definition == "fused" else torch.mul)


def delta(cfg: Any, S: Tensor, k: Tensor, v: Tensor, *weights: Tensor) -> Tensor:
    """S + w (v - S k) k."""
    change = (v - S * k) * k
    return S + (write_gate(cfg, S, *weights) * change if weights else change)


def simple(cfg: Any, S: Tensor, k: Tensor, v: Tensor, *theta: Tensor) -> Tensor:
    """sigmoid(theta) S + v k; without theta the constant decay."""
    return (torch.sigmoid(theta[0]) if theta else DECAY) * S + v * k


def ema(cfg: Any, S: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """A S + (1 - a) v k."""
    return a * S + (1 - a) * v * k


UPDATES = {"delta": delta, "simple": simple, "ema": ema}
