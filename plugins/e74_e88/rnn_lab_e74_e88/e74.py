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

z acts in the delta update only; elsewhere `full` keeps W_z and b_z, unused, so that counts agree with the source.

Parent      e73: the error v - S k is written instead of v.
Parameters  D*d + p*n*d + n*D per layer, p = 3 (no_z), 4 (full), 2 (tied_kq), 1 (tied_kvq), and n per bias.
Aliases     74:
Source      100M/10-minute benchmark, rows E74 n = 16, 32, 48, 64: D 1536, depth 20, no_z.
"""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from rnn_lab.init import constant, xavier
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import MatrixStateConfig, MatrixStateLayer, normalise, retrieve, self_gate, write
from rnn_lab.parts import Dense, Part, Weight, vector
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6
PROJECTIONS = {
    "full": ("W_k", "W_v", "W_q"),
    "no_z": ("W_k", "W_v", "W_q"),
    "tied_kq": ("W_k", "W_v"),
    "tied_kvq": ("W_k",),
}


class Config(MatrixStateConfig):
    """Fields of `fit --model e74`."""

    projection: Literal["no_z", "full", "tied_kq", "tied_kvq"] = Field("no_z", description="which matrices are shared")
    nonlinearity: Literal["tanh", "linear", "rmsnorm", "frobnorm"] = Field("tanh", description="f on the new state")
    update: Literal["delta", "simple", "ema", "residual", "ntm", "retrieved_gate"] = Field(
        "delta", description="what is written"
    )
    gate: Literal["output", "input", "state", "retain"] = Field("output", description="output or write gate")
    activation: Literal["silu", "none"] = Field("silu", description="between projection and cell; the seeds' had none")
    block_size: int | None = Field(None, ge=1, description="side of the blocks of a block-diagonal state")

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.block_size is not None:
            if self.n_state % self.block_size:
                raise ValueError(f"block_size {self.block_size} does not divide n_state {self.n_state}")
            plain = self.update == "delta" and self.gate == "output" and self.projection != "full"
            if not plain or self.nonlinearity not in ("tanh", "linear"):
                raise ValueError("block_size goes with update delta, gate output, no z, and tanh or linear")
        if self.gate in ("state", "retain") and self.update != "delta":
            raise ValueError(f"gate {self.gate} is the write gate of update delta")
        return self


class Model(MatrixStateLayer):
    """See the module docstring."""

    Config = Config
    W_k: nn.Linear
    W_v: nn.Linear
    W_q: nn.Linear
    W_z: nn.Linear
    W_gz: nn.Linear
    W_a: nn.Linear
    W_e: nn.Linear
    W_w: nn.Linear

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """Projections of the chosen sharing and what update and gate add."""
        d, n = cfg.d_inner, cfg.n_state
        parts: dict[str, Part] = {name: Dense(d, n) for name in PROJECTIONS[cfg.projection]}
        if cfg.projection == "full" and cfg.update == "delta":
            parts["W_z"] = Dense(d, n, bias=1.0)
        elif cfg.projection == "full":
            parts |= {"unused_W_z": Weight((n, d), xavier()), "unused_b_z": vector(n, 1.0)}
        if cfg.gate == "input":
            parts["W_gz"] = Dense(d, n, bias=0.0)
        elif cfg.gate in ("state", "retain"):
            parts |= {"d_g": vector(n, 0.5), "b_g": vector(n, 0.0)}
        extra: dict[str, dict[str, Part]] = {
            "delta": {},
            "simple": {"theta": Weight((), constant(0.0))},
            "ema": {"W_a": Dense(d, n, bias=2.0)},
            "residual": {"residual_scale": vector(n, 0.1)},
            "ntm": {"W_e": Dense(d, n, bias=0.0), "W_w": Dense(d, n, bias=0.0)},
            "retrieved_gate": {"W_a": Dense(d, n, bias=0.0)},
        }
        return parts | extra[cfg.update]

    @classmethod
    def hidden_shape(cls, cfg: Any) -> tuple[int, ...]:
        """(n, n), or (n / b, b, b) in blocks of b."""
        b = cfg.block_size
        return (cfg.n_state, cfg.n_state) if b is None else (cfg.n_state // b, b, b)

    @classmethod
    def recurrence_flops(cls, cfg: Any, seq_len: int) -> int:
        """2 n^2 for each of: read-out, write, and the retrieval that only some updates do."""
        square: int = cfg.n_state * (cfg.block_size or cfg.n_state)
        products = {"simple": 2, "ema": 2, "ntm": 2, "residual": 2}.get(cfg.update, 3)
        return 2 * square * products

    def activate(self, x_BTd: Tensor) -> Tensor:
        """SiLU unless switched off."""
        return F.silu(x_BTd) if self.cfg.activation == "silu" else x_BTd

    def _blocks(self, x_BTn: Tensor) -> Tensor:
        b = self.cfg.block_size
        return x_BTn if b is None else x_BTn.view(*x_BTn.shape[:-1], -1, b)

    def streams(self, x_BTd: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Normalised key, value and the update's own projections; the query is the raw key when tied."""
        cfg, k_BTn = self.cfg, self.W_k(x_BTd)
        v_BTn = k_BTn if cfg.projection == "tied_kvq" else self.W_v(x_BTd)
        q_BTn = k_BTn if cfg.projection.startswith("tied") else self.W_q(x_BTd)
        # Normalised in the dtype of the state: a bf16 key would no longer have length one.
        wide = torch.promote_types(k_BTn.dtype, torch.float32)
        inputs = [normalise(self._blocks(k_BTn).to(wide), EPS), self._blocks(v_BTn)]
        if hasattr(self, "W_z"):
            inputs.append(self.W_z(x_BTd))
        if cfg.update == "retrieved_gate":
            inputs.append(self.W_a(x_BTd))
        elif cfg.update == "ema":
            inputs.append(torch.sigmoid(self.W_a(x_BTd)))
        elif cfg.update == "ntm":
            inputs += [torch.sigmoid(self.W_e(x_BTd)), torch.sigmoid(self.W_w(x_BTd))]
        return tuple(inputs), (self._blocks(q_BTn),)

    def weights(self) -> tuple[Tensor, ...]:
        """Constants of the update: the decay, the residual scale, or the write gate's d_g and b_g."""
        names = ("theta", "residual_scale", "d_g", "b_g")
        return tuple(getattr(self, name) for name in names if hasattr(self, name))

    def cell(self) -> Cell:
        """f of the chosen update; read S q."""
        return Cell(partial(step, UPDATES[self.cfg.update], NONLINEARITIES[self.cfg.nonlinearity], self.cfg), retrieve)

    def output(self, o_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor | None) -> Tensor:
        """o * silu(o), or gated by the input."""
        o_BTn = o_BTd if self.cfg.block_size is None else o_BTd.flatten(-2)
        return o_BTn * F.silu(self.W_gz(x_BTd)) if self.cfg.gate == "input" else self_gate(o_BTn)


def step(change: Any, f: Any, cfg: Config, S: Tensor, *args: Tensor) -> Tensor:
    """f(change(S))."""
    new: Tensor = f(change(cfg, S, *args))
    return new


def delta(cfg: Config, S: Tensor, k: Tensor, v: Tensor, *extra: Tensor) -> Tensor:
    """S + w (v - (S z) k) k'; z for `full`, w for the write gates."""
    z, gate = (extra[0], extra[1:]) if cfg.projection == "full" else (None, extra)
    error = v - retrieve(S, k if z is None else z * k)
    if gate:
        w = torch.sigmoid(gate[0] * S.square().mean(-1) + gate[1])
        error = (1 - w if cfg.gate == "retain" else w) * error
    return write(S, error, k)


def simple(cfg: Config, S: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
    """sigmoid(theta) S + v k'."""
    return write(torch.sigmoid(theta) * S, v, k)


def ema(cfg: Config, S: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """A S + (1 - a) v k', a per row."""
    return write(a.unsqueeze(-1) * S, (1 - a) * v, k)


def residual(cfg: Config, S: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """S + r tanh((v - S k) k'), r per row."""
    change = torch.tanh((v - retrieve(S, k)).unsqueeze(-1) * k.unsqueeze(-2))
    return S + scale.unsqueeze(-1) * change


def ntm(cfg: Config, S: Tensor, k: Tensor, v: Tensor, e: Tensor, w: Tensor) -> Tensor:
    """S (1 - e k') + (w v) k'."""
    return write(S * (1 - e.unsqueeze(-1) * k.unsqueeze(-2)), w * v, k)


def retrieved_gate(cfg: Config, S: Tensor, k: Tensor, v: Tensor, s: Tensor) -> Tensor:
    """S + g (v - S k) k' with g = sigmoid(s + mean of the squared error)."""
    error = v - retrieve(S, k)
    return write(S, torch.sigmoid(s + error.square().mean(-1, keepdim=True)) * error, k)


UPDATES = {
    "delta": delta,
    "simple": simple,
    "ema": ema,
    "residual": residual,
    "ntm": ntm,
    "retrieved_gate": retrieved_gate,
}


def _rmsnorm(A: Tensor) -> Tensor:
    return A / (A.square().mean((-2, -1), keepdim=True).sqrt() + EPS)


def _frobnorm(A: Tensor) -> Tensor:
    return A / (A.square().sum((-2, -1), keepdim=True).sqrt() + EPS)


def _linear(A: Tensor) -> Tensor:
    return A


NONLINEARITIES = {"tanh": torch.tanh, "linear": _linear, "rmsnorm": _rmsnorm, "frobnorm": _frobnorm}
