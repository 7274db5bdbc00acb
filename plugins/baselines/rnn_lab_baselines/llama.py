"""r <- r + a,  r <- r + f;  a = W_o softmax(q k' / sqrt(P) + causal) v,  f = W_2 (silu(W_1 x) * W_3 x)

Llama's transformer block: attention with rotary positions, then SwiGLU, each behind an RMSNorm of eps 1e-6. H heads
of P = head_dim, H = max(1, D // P); SwiGLU width F = hidden_dim, or 8 D / 3 rounded up to a multiple of
`multiple_of`.

    q, k, v = W_q n, W_k n, W_v n            n = RMSNorm(r); `[B, T, H, P]`; q and k rotated in neighbouring pairs
    f_BTD   = SwiGLU(RMSNorm(r + a))

Under autocast the residual r stays in fp32. What takes the same input is one product (parts.together).

State: `k` (rotated) and `v`, a row per step ever taken, and `start`, the first row of the current document. A row's
position is its number, and only differences of positions count. After a reset older rows are kept but never seen.

Forms: `standard`, where the block sees the residual r itself and the language model leaves out its own norm and
addition; `doubly_residual`, the source's, where it sees the normalised residual x. Both give back their input + a + f.

Parent      none: Touvron et al., arXiv 2302.13971.
Parameters  4*D*HP + 3*D*F + 2*D per layer; doubly_residual has the language model's norm besides.
Source      elman 100M log, Llama in the E-models' shell: D 640, depth 20, doubly_residual = 101,783,680 parameters.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.kernels.fused.attention import ATTENTION
from rnn_lab.kernels.fused.residual_norm import RESIDUAL_NORM, compute_dtype
from rnn_lab.kernels.fused.rotary import ROTARY
from rnn_lab.kernels.fused.swiglu import SWIGLU
from rnn_lab.layer import Layer, LayerConfig, SearchSpace, State
from rnn_lab.parts import Dense, Part, together, vector
from torch import Tensor, nn

EPS = 1e-6


class Config(LayerConfig):
    """Fields of `fit --model llama`."""

    n_heads: int | None = Field(None, ge=1, le=2**16, description="heads H; left open: D // head_dim, at least 1")
    head_dim: int = Field(64, ge=2, le=4096, multiple_of=2, description="size P of a head")
    hidden_dim: int | None = Field(None, ge=1, le=2**20, description="SwiGLU width F; left open: from multiple_of")
    multiple_of: int = Field(256, ge=1, le=2**16, description="F is 8 D / 3 rounded up to a multiple of this")
    rope_theta: float = Field(1e4, gt=0, le=1e12, description="base of the rotary angles")
    form: Literal["standard", "doubly_residual"] = Field("standard", description="what the block sees and gives back")

    @property
    def heads(self) -> int:
        """Heads H."""
        return max(1, self.dim // self.head_dim) if self.n_heads is None else self.n_heads

    @property
    def d_hidden(self) -> int:
        """SwiGLU width F."""
        if self.hidden_dim is not None:
            return self.hidden_dim
        return -(-(8 * self.dim // 3) // self.multiple_of) * self.multiple_of


class Model(Layer):
    """See the module docstring."""

    Config = Config
    attention_norm: nn.Parameter
    wq: nn.Linear
    wk: nn.Linear
    wv: nn.Linear
    wo: nn.Linear
    ffn_norm: nn.Parameter
    w1: nn.Linear
    w2: nn.Linear
    w3: nn.Linear

    @classmethod
    def parts(cls, cfg: Any) -> dict[str, Part]:
        """Attention and SwiGLU, each with its norm."""
        D, d, wide = cfg.dim, cfg.heads * cfg.head_dim, cfg.d_hidden
        norms: dict[str, Part] = {"attention_norm": vector(D, 1.0), "ffn_norm": vector(D, 1.0)}
        attention = {name: Dense(D, d) for name in ("wq", "wk", "wv")} | {"wo": Dense(d, D)}
        return norms | attention | {"w1": Dense(D, wide), "w2": Dense(wide, D), "w3": Dense(D, wide)}

    @classmethod
    def normalises_input(cls, cfg: Any) -> bool:
        """The standard block sees the residual."""
        return bool(cfg.form == "standard")

    @classmethod
    def state_shapes(cls, cfg: Any, seq_len: int = 0) -> dict[str, tuple[int, ...]]:
        """Keys and values of every row so far, and the first row of the document."""
        rows = (seq_len, cfg.heads, cfg.head_dim)
        return {"k": rows, "v": rows, "start": ()}

    @classmethod
    def recurrence_flops(cls, cfg: Any, seq_len: int) -> int:
        """Scores and mixture over `seq_len` rows: 2 H P each per row, the masked half included."""
        return 4 * int(seq_len * cfg.heads * cfg.head_dim)

    @classmethod
    def search_space(cls, cfg: Any) -> SearchSpace:
        """Rounding of the SwiGLU width; widths that whole heads fill."""
        multiple = math.lcm(16, cfg.head_dim) if cfg.n_heads is None else 16
        return SearchSpace(dim_multiple=multiple, choices={"multiple_of": (256, 128, 64, 96, 32, 48, 16)})

    def forward(
        self, x_BTD: Tensor, state: State | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See Layer.forward."""
        state = self.init_state(x_BTD.shape[0]) if state is None else state
        x_BTD, n_BTD = self._add_and_norm(x_BTD, None, self.attention_norm)
        a_BTD, new = self._attention(n_BTD, state, reset_BT)
        x_BTD, n_BTD = self._add_and_norm(x_BTD, a_BTD, self.ffn_norm)
        f_BTD = self.w2(SWIGLU(self.backends, together(n_BTD, self.w1, self.w3)))
        return x_BTD + f_BTD, new

    def _add_and_norm(self, x_BTD: Tensor, y_BTD: Tensor | None, weight_D: Tensor) -> tuple[Tensor, Tensor]:
        x_BTD, n_BTD = RESIDUAL_NORM(
            self.backends, x_BTD, y_BTD, weight_D, None, EPS, False, compute_dtype(x_BTD)
        )  # fmt: skip
        return x_BTD, n_BTD

    def _attention(self, n_BTD: Tensor, state: State, reset_BT: Tensor | None) -> tuple[Tensor, State]:
        rows = state["k"].shape[1]
        qkv_BTF = together(n_BTD, self.wq, self.wk, self.wv)
        q, k, v = ROTARY(self.backends, qkv_BTF, state["k"], self.cfg.rope_theta)
        new = {"k": _append(state["k"], k), "v": _append(state["v"], v)}
        visible, new["start"] = _visible(state["start"], rows, n_BTD.shape[1], reset_BT)
        if rows:
            k, v = new["k"].to(q.dtype), new["v"].to(q.dtype)
        o = ATTENTION(self.backends, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible)
        return self.wo(o.transpose(1, 2).flatten(-2)), new


def _append(past_BJHP: Tensor, x_BTHP: Tensor) -> Tensor:
    """Rows before and new ones, in the dtype of the state."""
    x_BTHP = x_BTHP.to(past_BJHP.dtype)
    return torch.cat([past_BJHP, x_BTHP], 1) if past_BJHP.shape[1] else x_BTHP


def _visible(start_B: Tensor, rows: int, T: int, reset_BT: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """What each step may see, `[B, 1, T, rows + T]` or None for all rows up to its own; the new start."""
    if reset_BT is None and rows == 0:
        return None, start_B
    row_J = torch.arange(rows + T, dtype=start_B.dtype, device=start_B.device)
    start_BT = start_B[:, None].expand(-1, T)
    if reset_BT is not None:
        start_BT = torch.where(reset_BT, row_J[rows:], start_BT).cummax(1).values
    visible = (row_J <= row_J[rows:, None]) & (row_J >= start_BT[..., None])
    return visible[:, None], start_BT[:, -1]
