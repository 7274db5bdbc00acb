"""S_t = a_t S_{t-1} + k_t (beta_t (v_t - a_t S_{t-1}' k_t))',  o_t = S_t' q_t   per head

Gated DeltaNet: a linear delta-rule memory that decays before it is read and rewritten. H heads, keys of size
K = head_dim, values of size V = int(K * expansion); S is `[K, V]`, row = key, zero at first.

    [q; k; v]_BT = silu(conv(W_qkv x_BTD))   [HK; HK; HV], 4 taps without bias
    q, k         = q / sqrt(|q|^2 + 1e-6) / sqrt(K), k / sqrt(|k|^2 + 1e-6)      per head
    a_BTH        = exp(-exp(A_log) softplus(W_a x + dt_bias)),  beta_BTH = sigmoid(W_b x)
    y_BTD        = W_o (w * RMSNorm(o) * silu(W_g x))          eps 1e-5, per head

Left open, H is max(1, D // 128) lowered until it divides D, and K = D // H. The source's layer starts every pass from
zero; here the state is carried.

Parent      none: Yang, Kautz and Hatamizadeh, arXiv 2412.06464.
Parameters  2*D*HK + 3*D*HV + 2*D*H + 4*(2*HK + HV) + 2*H + V per layer.
Aliases     fla-gdn, gated_deltanet:
Source      elman 100M runs, FLA-GDN: D 768, depth 20, expansion 2, RMSNorm = 95,020,016 parameters.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from rnn_lab.init import inverse_softplus_of_log_uniform, log_uniform, uniform_fan_in
from rnn_lab.kernels.linear.gated_delta_rule import GATED_DELTA_RULE
from rnn_lab.layer import Layer, LayerConfig, SearchSpace, State
from rnn_lab.parts import CausalConv, Conv, Dense, Part, Weight, vector
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_lab_baselines._adapters import FLA
from rnn_lab_baselines._peers import gated_deltanet_block

GATED_DELTA_RULE.backends.append(FLA)


class Config(LayerConfig):
    """Fields of `fit --model gdn`."""

    n_heads: int | None = Field(None, ge=1, le=2**16, description="heads H; left open: about D / 128, dividing D")
    head_dim: int | None = Field(None, ge=1, le=2**16, description="key size K per head; left open: D // H")
    expansion: float = Field(2.0, gt=0, le=64, description="value size V = int(K * expansion)")

    @property
    def heads(self) -> int:
        """Heads H."""
        if self.n_heads is not None:
            return self.n_heads
        return next(h for h in range(max(1, self.dim // 128), 0, -1) if self.dim % h == 0)

    @property
    def d_key(self) -> int:
        """Key size K per head."""
        return max(1, self.dim // self.heads) if self.head_dim is None else self.head_dim

    @property
    def d_value(self) -> int:
        """Value size V per head."""
        return max(1, int(self.d_key * self.expansion))

    @property
    def widths(self) -> tuple[int, int, int]:
        """Widths of q, k and v, all heads."""
        return self.heads * self.d_key, self.heads * self.d_key, self.heads * self.d_value


class Model(Layer):
    """See the module docstring."""

    Config = Config
    peers: ClassVar[Mapping[str, Callable[[Any, int], nn.Module]]] = {"fla GatedDeltaNet": gated_deltanet_block}
    qkv_proj: nn.Linear
    conv: CausalConv
    a_proj: nn.Linear
    b_proj: nn.Linear
    g_proj: nn.Linear
    A_log: nn.Parameter
    dt_bias: nn.Parameter
    o_norm_weight: nn.Parameter
    o_proj: nn.Linear

    @classmethod
    def parts(cls, cfg: Any) -> dict[str, Part]:
        """q, k, v together; decay, write strength and gate; output. Linear maps as torch initialises them."""
        D, H, dv = cfg.dim, cfg.heads, cfg.widths[2]
        like_torch = uniform_fan_in(D)
        return {
            "qkv_proj": Dense(D, sum(cfg.widths), init=like_torch, stacked=cfg.widths),
            "conv": Conv(sum(cfg.widths), bias=False),
            "a_proj": Dense(D, H, init=like_torch),
            "b_proj": Dense(D, H, init=like_torch),
            "g_proj": Dense(D, dv, init=like_torch),
            "A_log": Weight((H,), log_uniform(0, 16)),
            "dt_bias": Weight((H,), inverse_softplus_of_log_uniform(1e-3, 1e-1, 1e-4)),
            "o_norm_weight": vector(cfg.d_value, 1.0),
            "o_proj": Dense(dv, D, init=uniform_fan_in(dv)),
        }

    @classmethod
    def state_shapes(cls, cfg: Any, seq_len: int = 0) -> dict[str, tuple[int, ...]]:
        """S per head and the convolution's past inputs."""
        return {"S": (cfg.heads, cfg.d_key, cfg.d_value), "conv": (3, sum(cfg.widths))}

    @classmethod
    def recurrence_flops(cls, cfg: Any, seq_len: int) -> int:
        """Retrieve, write and read: 2 K V each, per head."""
        return 6 * int(cfg.heads * cfg.d_key * cfg.d_value)

    @classmethod
    def search_space(cls, cfg: Any) -> SearchSpace:
        """Values twice, once or one and a half times as wide as keys."""
        return SearchSpace(choices={"expansion": (2.0, 1.0, 1.5)})

    def forward(
        self, x_BTD: Tensor, state: State | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See Layer.forward."""
        cfg = self.cfg
        new: State = {}
        state = self.init_state(x_BTD.shape[0]) if state is None else state
        qkv, new["conv"] = self.conv(self.qkv_proj(x_BTD), state["conv"], reset_BT, silu=True)
        q_BTHK, k_BTHK, v_BTHV = (
            s.reshape(*s.shape[:2], cfg.heads, -1) for s in torch.split(qkv, list(cfg.widths), -1)
        )
        wide = torch.promote_types(qkv.dtype, torch.float32)
        # Rounded to the dtype of the values here, so that no pass over memory moves them in fp32.
        q_BTHK, k_BTHK = _unit(q_BTHK, cfg.d_key**-0.5), _unit(k_BTHK)
        g_BTH = -torch.exp(self.A_log.to(wide)) * F.softplus(self.a_proj(x_BTD).to(wide) + self.dt_bias)
        beta_BTH = torch.sigmoid(self.b_proj(x_BTD).to(wide))
        o_BTHV, new["S"] = GATED_DELTA_RULE(
            self.backends, q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, state["S"], reset_BT
        )
        o_BTHV = F.rms_norm(o_BTHV.to(wide), (cfg.d_value,), self.o_norm_weight.to(wide), 1e-5)
        y_BT = o_BTHV.flatten(-2) * F.silu(self.g_proj(x_BTD).to(wide))
        return self.o_proj(y_BT.to(qkv.dtype)), new


def _unit(k: Tensor, scale: float = 1.0) -> Tensor:
    """Scale * k / sqrt(|k|^2 + 1e-6) over the last axis, its length in fp32 or wider."""
    square = torch.linalg.vector_norm(
        k, dim=-1, keepdim=True, dtype=torch.promote_types(k.dtype, torch.float32)
    ).square()
    return (k * (scale * torch.rsqrt(square + 1e-6))).to(k.dtype)
