"""S_t = tanh(S_{t-1} + (v_t - S_{t-1} k_t) k_t'),  o_t = S_t q_t

Delta-rule associative memory with a saturating n x n state, one per sequence.

    x~_BTd   = silu(conv?(P_in x_BTD))       D = dim, d = int(dim * expansion), n = n_state
    k, v, q  = W_k x~, W_v x~, W_q x~        [B, T, n]; k is normalised where S is retrieved and written
    y_BTD    = P_out (o * silu(o))

Rows of S never meet: a kernel may give every row to another warp.

    projection    no_z; full adds z = W_z x~ + b_z on the retrieved columns; tied_kq, tied_kvq share matrices
    nonlinearity  f in S = f(A): tanh, linear, rmsnorm or frobnorm of the whole matrix
    update        delta A = S + w (v - S k) k'       simple    A = sigmoid(theta) S + v k'
                  ema   A = a S + (1 - a) v k'       residual  A = S + r tanh((v - S k) k')
                  ntm   A = S (1 - e k') + (w v) k'  retrieved_gate  delta with g = sigmoid(W x~ + b + |v - S k|^2 / n)
    gate          output: silu(o); input: silu(W_gz x~ + b_gz); state, retain: w from the row energy of S
    block_size    a block-diagonal state of n / b blocks; keys are normalised per block
    state         full; low_rank: S = U V' of `rank` r, A = U + (v - S k) (W_kr k)', and U = f(A) is carried

z acts in the delta update only; elsewhere `full` keeps W_z and b_z, unused, so that counts agree with the source.
The source draws V, 0.01 N(0, 1), whenever a sequence starts; here it is drawn once, a buffer from construction on.

Parent      e73: the error v - S k is written instead of v.
Parameters  D*d + p*n*d + n*D per layer, p = 3 (no_z), 4 (full), 2 (tied_kq), 1 (tied_kvq), and n per bias.
Aliases     74:
            73cp, e73cp: projection = full
Source      100M/10-minute benchmark, rows E74 n = 16, 32, 48, 64: D 1536, depth 20, no_z.
"""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from rnn_lab.init import constant, xavier
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import TiedConfig, TiedLayer, gate, normalise, retrieve, self_gate, unit_key
from rnn_lab.parts import Dense, Part, Weight, linear, vector
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_lab_e74_e88._updates import NONLINEARITIES, UPDATES, low_rank, step

GATES = {"ema": ("W_a",), "ntm": ("W_e", "W_w"), "retrieved_gate": ("W_a",)}
"""Projections of an update besides key, value and z."""


class Config(TiedConfig):
    """Fields of `fit --model e74`."""

    nonlinearity: Literal["tanh", "linear", "rmsnorm", "frobnorm"] = Field("tanh", description="f on the new state")
    update: Literal["delta", "simple", "ema", "residual", "ntm", "retrieved_gate"] = Field(
        "delta", description="what is written"
    )
    gate: Literal["output", "input", "state", "retain"] = Field("output", description="output or write gate")
    block_size: int | None = Field(None, ge=1, description="side of the blocks of a block-diagonal state")
    state: Literal["full", "low_rank"] = Field("full", description="the whole matrix, or its factor U")
    rank: int = Field(8, ge=1, le=4096, description="rank r of the low-rank state")

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        blocks, low_rank = self.block_size is not None, self.state == "low_rank"
        if self.block_size is not None and self.n_state % self.block_size:
            raise ValueError(f"block_size {self.block_size} does not divide n_state {self.n_state}")
        plain = self.update == "delta" and self.gate == "output" and self.projection != "full"
        if (blocks or low_rank) and not (blocks != low_rank and plain and self.nonlinearity in ("tanh", "linear")):
            raise ValueError("block_size or state low_rank goes with update delta, gate output, no z, tanh or linear")
        if self.gate in ("state", "retain") and self.update != "delta":
            raise ValueError(f"gate {self.gate} is the write gate of update delta")
        return self


class Model(TiedLayer):
    """See the module docstring."""

    Config = Config
    W_z: nn.Linear
    W_gz: nn.Linear
    W_kr: nn.Linear
    V: Tensor

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        if cfg.state == "low_rank":
            self.register_buffer("V", 0.01 * torch.randn(cfg.n_state, cfg.rank))

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """Projections of the chosen sharing and what update, gate and state add."""
        d, n, parts = cfg.d_inner, cfg.n_state, super().cell_parts(cfg)
        if cfg.projection == "full" and cfg.update == "delta":
            parts["W_z"] = Dense(d, n, bias=1.0)
        elif cfg.projection == "full":
            parts |= {"unused_W_z": Weight((n, d), xavier()), "unused_b_z": vector(n, 1.0)}
        if cfg.gate == "input":
            parts["W_gz"] = Dense(d, n, bias=0.0)
        elif cfg.gate in ("state", "retain"):
            parts |= {"d_g": vector(n, 0.5), "b_g": vector(n, 0.0)}
        if cfg.state == "low_rank":
            parts["W_kr"] = Dense(n, cfg.rank)
        if cfg.update == "simple":
            parts["theta"] = Weight((), constant(0.0))
        elif cfg.update == "residual":
            parts["residual_scale"] = vector(n, 0.1)
        start = 2.0 if cfg.update == "ema" else 0.0
        return parts | {name: Dense(d, n, bias=start) for name in GATES.get(cfg.update, ())}

    @classmethod
    def hidden_shape(cls, cfg: Any) -> tuple[int, ...]:
        """(n, n); (n / b, b, b) in blocks of b; (n, r) of rank r."""
        n, b = cfg.n_state, cfg.block_size
        whole = (n, cfg.rank if cfg.state == "low_rank" else n)
        return whole if b is None else (n // b, b, b)

    @classmethod
    def products(cls, cfg: Any) -> int:
        """Read, write and the retrieval that only some updates do; in low rank also V'k and V'q."""
        retrieving = 3 if cfg.update in ("delta", "retrieved_gate") else 2
        return 5 if cfg.state == "low_rank" else retrieving

    def streams(self, x_BTd: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Key, value, gates; query. V does not change, so that in low rank its products with them are taken here."""
        if self.cfg.state == "full":
            return super().streams(x_BTd)
        k_BTn, v_BTn, q_BTn = self.project(x_BTd)
        k_BTn = normalise(k_BTn)
        return (linear(k_BTn, self.V.T), v_BTn, self.W_kr(k_BTn)), (linear(q_BTn, self.V.T),)

    def gates(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """The update's own projections."""
        found = [getattr(self, name)(x_BTd) for name in GATES.get(self.cfg.update, ())]
        if self.cfg.update != "retrieved_gate":
            found = [gate(logits) for logits in found]
        return (self.W_z(x_BTd), *found) if hasattr(self, "W_z") else tuple(found)

    def weights(self) -> tuple[Tensor, ...]:
        """Constants of the update: the decay, the residual scale, or the write gate's d_g and b_g."""
        names = ("theta", "residual_scale", "d_g", "b_g")
        return tuple(getattr(self, name) for name in names if hasattr(self, name))

    def cell(self) -> Cell:
        """f of the chosen update; read S q."""
        change = low_rank if self.cfg.state == "low_rank" else UPDATES[self.cfg.update]
        before = None if self.cfg.state == "low_rank" else unit_key
        return Cell(partial(step, change, NONLINEARITIES[self.cfg.nonlinearity], self.cfg), retrieve, before)

    def output(self, o_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor | None) -> Tensor:
        """o * silu(o), or gated by the input."""
        return o_BTd * F.silu(self.W_gz(x_BTd)) if self.cfg.gate == "input" else self_gate(o_BTd)
