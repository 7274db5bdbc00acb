"""h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t',  y_t = h_t C_t + D * x_t   per head

Mamba-2: a linear state-space layer whose decay is one number per head, in a LayerNorm shell. S = n_state, heads
of P = head_dim channels, d = int(dim * expansion), H = d / P; h is `[H, P, S]`, zero at first.

    [z; xBC; dt]_BT = P_in x_BTD             [d; d + 2S; H]
    [x; B; C]_BT    = silu(conv(xBC))        4 taps with bias; B and C are shared by all heads
    dt_BTH          = softplus(dt + dt_bias),  A_H = -exp(A_log)
    y_BTD           = P_out (w * RMSNorm(y * silu(z)))         eps 1e-5, over all heads

Parent      none: Dao and Gu, arXiv 2405.21060, with one group.
Parameters  D*(2d + 2S + H) + 5*(d + 2S) + 3*H + d + d*D per layer.
Source      E4 benchmark, row mamba2: D 672, S 64, depth 18, LayerNorm = 50,928,750 parameters.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from rnn_lab.init import inverse_softplus_of_log_uniform, log_uniform, uniform_fan_in
from rnn_lab.kernels.fused.gated_norm import GATED_NORM
from rnn_lab.kernels.linear.ssd import SSD
from rnn_lab.layer import Layer, SearchSpace, State
from rnn_lab.layers import ExpandedConfig
from rnn_lab.parts import CausalConv, Conv, Dense, Part, Weight, vector
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_lab_baselines._adapters import MAMBA_SSM
from rnn_lab_baselines._peers import mamba2_block

SSD.backends.append(MAMBA_SSM)


class Config(ExpandedConfig):
    """Fields of `fit --model mamba2`."""

    n_state: int = Field(128, ge=1, le=4096, description="state size S per channel")
    head_dim: int = Field(64, ge=1, le=4096, description="channels P per head")
    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.d_inner % self.head_dim:
            raise ValueError(f"head_dim {self.head_dim} does not divide the inner width {self.d_inner}")
        return self

    @property
    def n_heads(self) -> int:
        """Heads H."""
        return self.d_inner // self.head_dim


class Model(Layer):
    """See the module docstring."""

    Config = Config
    lm_defaults: ClassVar[Mapping[str, Any]] = {"norm": "layer"}
    peers: ClassVar[Mapping[str, Callable[[Any, int], nn.Module]]] = {"mamba-ssm Mamba2": mamba2_block}
    in_proj: nn.Linear
    conv: CausalConv
    A_log: nn.Parameter
    dt_bias: nn.Parameter
    D: nn.Parameter
    norm_weight: nn.Parameter
    out_proj: nn.Linear

    @classmethod
    def parts(cls, cfg: Any) -> dict[str, Part]:
        """Projections and convolution as torch initialises them, step sizes log-uniform in [1e-3, 1e-1]."""
        d, S, H = cfg.d_inner, cfg.n_state, cfg.n_heads
        streams = (d, d, S, S, H)
        return {
            "in_proj": Dense(cfg.dim, sum(streams), init=uniform_fan_in(cfg.dim), stacked=streams),
            "conv": Conv(d + 2 * S),
            "A_log": Weight((H,), log_uniform(1, 16)),
            "dt_bias": Weight((H,), inverse_softplus_of_log_uniform(1e-3, 1e-1, 1e-4)),
            "D": vector(H, 1.0),
            "norm_weight": vector(d, 1.0),
            "out_proj": Dense(d, cfg.dim, init=uniform_fan_in(d)),
        }

    @classmethod
    def state_shapes(cls, cfg: Any, seq_len: int = 0) -> dict[str, tuple[int, ...]]:
        """State h per head and the convolution's past inputs."""
        return {"h": (cfg.n_heads, cfg.head_dim, cfg.n_state), "conv": (3, cfg.d_inner + 2 * cfg.n_state)}

    @classmethod
    def recurrence_flops(cls, cfg: Any, seq_len: int) -> int:
        """Write and read: 2 d S each."""
        return 4 * int(cfg.d_inner * cfg.n_state)

    @classmethod
    def search_space(cls, cfg: Any) -> SearchSpace:
        """State sizes of the published models and between; widths that whole heads fill."""
        multiple = next(m for m in range(16, 16 * cfg.head_dim + 1, 16) if m * cfg.expansion % cfg.head_dim == 0)
        return SearchSpace(dim_multiple=multiple, choices={"n_state": (128, 64, 96, 112, 80, 48, 32)})

    def forward(
        self, x_BTD: Tensor, state: State | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See Layer.forward."""
        cfg = self.cfg
        new: State = {}
        state = self.init_state(x_BTD.shape[0]) if state is None else state
        d, S = cfg.d_inner, cfg.n_state
        z_BTd, xBC, dt_BTH = self.in_proj(x_BTD).split((d, d + 2 * S, cfg.n_heads), -1)
        xBC, new["conv"] = self.conv(xBC, state["conv"], reset_BT, silu=True)
        x_BTd, B_BTS, C_BTS = torch.split(xBC, [d, S, S], -1)
        x_BTHP = x_BTd.reshape(*x_BTd.shape[:2], cfg.n_heads, cfg.head_dim)
        wide = torch.promote_types(x_BTd.dtype, torch.float32)
        dt_BTH = F.softplus(dt_BTH.to(wide) + self.dt_bias)
        A_H = -torch.exp(self.A_log.to(wide))
        y_BTHP, new["h"] = SSD(self.backends, x_BTHP, dt_BTH, A_H, B_BTS, C_BTS, state["h"], reset_BT)
        y_BTd = GATED_NORM(self.backends, y_BTHP.flatten(-2), x_BTd, z_BTd, self.D, self.norm_weight, 1e-5)
        return self.out_proj(y_BTd), new
