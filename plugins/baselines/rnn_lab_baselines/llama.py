"""r <- r + a,  r <- r + f;  a = W_o softmax(q k' / sqrt(P) + causal) v,  f = W_2 (silu(W_1 x) * W_3 x)

Llama's transformer block: attention with rotary positions, then SwiGLU, each behind an RMSNorm of eps 1e-6. H heads
of P = head_dim, H = max(1, D // P); SwiGLU width F = hidden_dim, or 8 D / 3 rounded up to a multiple of
`multiple_of`.

    q, k, v = W_q n, W_k n, W_v n            n = RMSNorm(r); `[B, T, H, P]`; q and k rotated in neighbouring pairs
    f_BTD   = SwiGLU(RMSNorm(r + a))

State: `k` (rotated) and `v`, a row per step ever taken, and `start`, the first row of the current document. A row's
position is its number, and only differences of positions count. After a reset older rows are kept but never seen.

Forms: `standard`, where the block sees the residual r itself and the language model leaves out its own norm;
`doubly_residual`, the source's, where it sees the normalised residual x and gives back x + a + f.

Parent      none: Touvron et al., arXiv 2302.13971.
Parameters  4*D*HP + 3*D*F + 2*D per layer; doubly_residual has the language model's norm besides.
Source      elman 100M log, Llama in the E-models' shell: D 640, depth 20, doubly_residual = 101,783,680 parameters.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.kernels.attention import ATTENTION
from rnn_lab.layer import Layer, LayerConfig, SearchSpace, State
from rnn_lab.parts import Dense, Part, vector
from torch import Tensor, nn
from torch.nn import functional as F

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
        a_BTD, new = self._attention(self._norm(x_BTD, self.attention_norm), state, reset_BT)
        n_BTD = self._norm(x_BTD + a_BTD, self.ffn_norm)
        f_BTD = self.w2(F.silu(self.w1(n_BTD)) * self.w3(n_BTD))
        return (a_BTD + f_BTD if self.cfg.form == "standard" else x_BTD + a_BTD + f_BTD), new

    def _norm(self, x_BTD: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(x_BTD, (self.cfg.dim,), weight_D, EPS)

    def _attention(self, n_BTD: Tensor, state: State, reset_BT: Tensor | None) -> tuple[Tensor, State]:
        cfg, rows = self.cfg, state["k"].shape[1]
        q, k, v = (w(n_BTD).unflatten(-1, (cfg.heads, cfg.head_dim)) for w in (self.wq, self.wk, self.wv))
        new = {
            "k": torch.cat([state["k"], rotate(k, rows, cfg.rope_theta).to(state["k"].dtype)], 1),
            "v": torch.cat([state["v"], v.to(state["v"].dtype)], 1),
        }
        visible, new["start"] = _visible(state["start"], rows, n_BTD.shape[1], reset_BT)
        q, k, v = (s.to(v.dtype).transpose(1, 2) for s in (rotate(q, rows, cfg.rope_theta), new["k"], new["v"]))
        o = ATTENTION(self.backends, q, k, v, visible)
        return self.wo(o.transpose(1, 2).flatten(-2)), new


def rotate(x_BTHP: Tensor, first: int, theta: float) -> Tensor:
    """Channels 2i and 2i + 1 turned by angle (first + t) theta^(-2i / P); in fp32 or wider."""
    T, P = x_BTHP.shape[1], x_BTHP.shape[-1]
    # Angles in fp64: at position 10,000 fp32 is off by a thousandth of a radian.
    positions_T = torch.arange(first, first + T, dtype=torch.float64, device=x_BTHP.device)
    rates_p = theta ** (-torch.arange(0, P, 2, dtype=torch.float64, device=x_BTHP.device) / P)
    angle = torch.outer(positions_T, rates_p)[:, None]
    wide = torch.promote_types(x_BTHP.dtype, torch.float32)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    even, odd = x_BTHP.to(wide).reshape(*x_BTHP.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


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
