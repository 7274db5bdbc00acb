"""S_t = tanh(a_t S_{t-1} + k_t (v_t - S_{t-1}' k_t)'),  o_t = S_t' q_t   per head

Many small delta-rule memories with a saturating state and Mamba's decay. H heads, keys of size N = n_state, values
of size V = int(H N expansion) / H; S is `[N, V]`, row = key. H N / D is the balance ratio.

    [q; k; v]_BT = W_qkv x_BTD               [HN; HN; HV], then conv?, SiLU; k and q to length one per head
    a_BTH        = exp(-exp(A_log) softplus(W_a x + dt_bias))      the state decays after it is retrieved
    o_BTHV       = S' q, then RMS norm per head?, gate?, + v * D_v?
    y_BTD        = W_o of all heads, concatenated or mixed

    decay      mamba as above; simple a = sigmoid(W_b x); constant a = sigmoid(theta) per head; none a = 1
    gate       none, sigmoid or silu of W_g x on every value
    head_mix   concat; per_head starts one matrix per head; weighted_sum, input_weighted, sum add heads first

Parent      e75: the decay and the heads of Gated DeltaNet.
Parameters  D*(2HN + HV) + D*H + 2H + D*HV per layer; a gate adds D*HV, the norm V, conv 4 per channel.
Aliases     88:
Source      E88 500M study: D 3328, depth 24, H 32, N 48, no gate, norm on = 494,227,328 parameters.
"""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from rnn_lab.kernels.linear.gated_delta_rule import GATED_DELTA_RULE
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams
from rnn_lab.layer import LayerConfig, SearchSpace, State
from rnn_lab.layers import gate, normalise, retrieve, write
from rnn_lab.parts import CausalConv, Conv, Dense, Part
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_lab_e74_e88._heads import HeadsLayer, head_parts


class Config(LayerConfig):
    """Fields of `fit --model e88`."""

    n_state: int = Field(32, ge=4, le=1024, multiple_of=4, description="key size N per head")
    n_heads: int = Field(8, ge=1, le=2**16, description="heads H")
    expansion: float = Field(1.0, gt=0, le=64, description="value size V over key size N")
    nonlinearity: Literal["tanh", "linear"] = Field("tanh", description="on the new state")
    decay: Literal["mamba", "simple", "constant", "none"] = Field("mamba", description="what the state decays by")
    gate: Literal["none", "sigmoid", "silu"] = Field("none", description="output gate")
    output_norm: bool = Field(False, description="RMS norm per head before the gate (on in the 500M study)")
    use_conv: bool = Field(False, description="causal convolution of 4 taps on q, k and v")
    use_silu: bool = Field(True, description="SiLU on q, k and v")
    l2_norm: bool = Field(True, description="keys and queries to length one")
    tie_kv: bool = Field(False, description="values are the keys before normalisation (expansion 1 only)")
    write_gate: bool = Field(False, description="scale the write by sigmoid(W_wg x)")
    value_residual: bool = Field(False, description="add D_v * v to the read-out")
    head_mix: Literal["concat", "per_head", "weighted_sum", "input_weighted", "sum"] = Field(
        "concat", description="how heads meet"
    )

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.tie_kv and self.expansion != 1:
            raise ValueError("tie_kv needs expansion 1: a key has no room for more values")
        if self.d_value < 1:
            raise ValueError(f"expansion {self.expansion} leaves no value channel")
        return self

    @property
    def d_value(self) -> int:
        """Value size V per head."""
        return int(self.n_heads * self.n_state * self.expansion) // self.n_heads

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of q, k and, unless tied, v."""
        key = self.n_heads * self.n_state
        return (key, key) if self.tie_kv else (key, key, self.n_heads * self.d_value)

    @property
    def balance_ratio(self) -> float:
        """H N / D: width of all keys over the model's."""
        return self.n_heads * self.n_state / self.dim


class Model(HeadsLayer):
    """See the module docstring."""

    Config = Config
    qkv_proj: nn.Linear
    conv: CausalConv
    write_gate_proj: nn.Linear

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        flags = (self._activated, cfg.l2_norm)
        seen = None if cfg.output_norm or cfg.value_residual else self.gated
        self._cell = Cell(tanh_update, partial(read, *flags), partial(before, *flags), seen)

    @classmethod
    def parts(cls, cfg: Any) -> dict[str, Part]:
        """q, k, v together; convolution, write gate; what heads have."""
        parts: dict[str, Part] = {"qkv_proj": Dense(cfg.dim, sum(cfg.widths), stacked=cfg.widths)}
        if cfg.use_conv:
            parts["conv"] = Conv(sum(cfg.widths), bias=False)
        if cfg.write_gate:
            parts["write_gate_proj"] = Dense(cfg.dim, cfg.n_heads)
        return parts | head_parts(cfg)

    @classmethod
    def state_shapes(cls, cfg: Any, seq_len: int = 0) -> dict[str, tuple[int, ...]]:
        """S per head and, with a convolution, its past inputs."""
        shapes: dict[str, tuple[int, ...]] = {"S": (cfg.n_heads, cfg.n_state, cfg.d_value)}
        return shapes | ({"conv": (3, sum(cfg.widths))} if cfg.use_conv else {})

    @classmethod
    def recurrence_flops(cls, cfg: Any, seq_len: int) -> int:
        """Retrieve, write and read: 2 N V each, per head."""
        return 6 * int(cfg.n_heads * cfg.n_state * cfg.d_value)

    @classmethod
    def search_space(cls, cfg: Any) -> SearchSpace:
        """As many heads as give a balance ratio H N / D near 1."""
        heads = [max(1, round(ratio * cfg.dim / cfg.n_state)) for ratio in (1.0, 0.75, 1.25, 0.5, 1.5)]
        return SearchSpace(choices={"n_heads": tuple(dict.fromkeys(heads))})

    def forward(
        self, x_BTD: Tensor, state: State | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See Layer.forward."""
        cfg = self.cfg
        new: State = {}
        state = self.init_state(x_BTD.shape[0]) if state is None else state
        qkv = self.qkv_proj(x_BTD)
        if cfg.use_conv:
            qkv, new["conv"] = self.conv(qkv, state["conv"], reset_BT, silu=cfg.use_silu)
        q_BTHN, k_BTHN, *rest = (part.unflatten(-1, (cfg.n_heads, -1)) for part in qkv.split(cfg.widths, -1))
        v_BTHV = rest[0] if rest else k_BTHN
        g_BTH = self.log_decay(x_BTD)
        w_BTH = (self.write_gate_proj(x_BTD),) if cfg.write_gate else ()
        gates = (self.g_proj(x_BTD).view_as(v_BTHV),) if cfg.gate != "none" else ()
        if cfg.nonlinearity == "linear":
            q_BTHN, k_BTHN = (key(self._activated, cfg.l2_norm, part) for part in (q_BTHN, k_BTHN))
            v_BTHV = F.silu(v_BTHV) if self._activated else v_BTHV
            strength = gate(*w_BTH) if w_BTH else torch.ones_like(g_BTH)
            o_BTHV, new["S"] = GATED_DELTA_RULE(
                self.backends, q_BTHN, k_BTHN, v_BTHV, g_BTH, strength, state["S"], reset_BT, False
            )
            return self.output(o_BTHV, v_BTHV, gates, x_BTD).to(qkv.dtype), new
        inside = gates if self._cell.after is not None else ()
        streams = Streams((k_BTHN, v_BTHV, g_BTH, *w_BTH), queries=(q_BTHN,), gates=inside)
        o_BTHV, new["S"] = RECURRENCE(self.backends, self._cell, state["S"], streams, reset_BT)
        if self._activated and cfg.value_residual:
            v_BTHV = F.silu(v_BTHV)
        return self.output(o_BTHV, v_BTHV, () if inside else gates, x_BTD).to(qkv.dtype), new

    @property
    def _activated(self) -> bool:
        """Whether SiLU stands before the cell; a convolution has its own."""
        return bool(self.cfg.use_silu and not self.cfg.use_conv)


def key(silu: bool, unit: bool, k: Tensor) -> Tensor:
    """A key or query, activated and of length one."""
    k = F.silu(k) if silu else k
    return normalise(k) if unit else k


def before(silu: bool, unit: bool, k: Tensor, v: Tensor, g: Tensor, *w: Tensor) -> tuple[Tensor, ...]:
    """Key, value, decay exp(g) and write gate sigmoid(w)."""
    return key(silu, unit, k), F.silu(v) if silu else v, torch.exp(g), *map(torch.sigmoid, w)


def tanh_update(S: Tensor, k: Tensor, v: Tensor, a: Tensor, w: Tensor | None = None) -> Tensor:
    """tanh(a S + w k (v - S' k)'); retrieval is from the state before its decay."""
    error = v - retrieve(S.mT, k)
    return write(a[..., None, None] * S, k, error if w is None else w[..., None] * error).tanh()


def read(silu: bool, unit: bool, S: Tensor, q: Tensor) -> Tensor:
    """S' q."""
    return retrieve(S.mT, key(silu, unit, q))
