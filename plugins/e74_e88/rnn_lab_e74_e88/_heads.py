"""How the heads of E88 decay, and what becomes of their read-outs."""

from typing import Any

import torch
from rnn_lab.init import Init, constant, inverse_softplus_of_log_uniform, log_uniform, xavier
from rnn_lab.layer import Layer
from rnn_lab.layers import widen
from rnn_lab.parts import Dense, Part, Weight, vector
from torch import Tensor, nn
from torch.nn import functional as F


def head_parts(cfg: Any) -> dict[str, Part]:
    """Parameters of `HeadsLayer`."""
    D, H, V = cfg.dim, cfg.n_heads, cfg.d_value
    decay: dict[str, dict[str, Part]] = {
        "mamba": {
            "a_proj": Dense(D, H),
            "A_log": Weight((H,), log_uniform(0, 16)),
            "dt_bias": Weight((H,), inverse_softplus_of_log_uniform(1e-3, 1e-1, 1e-4)),
        },
        "simple": {"beta_proj": Dense(D, H)},
        "constant": {"theta": vector(H, 4.0)},
        "none": {},
    }
    optional: dict[str, tuple[bool, Part]] = {
        "D_v": (cfg.value_residual, Weight((H, V), constant(1.0))),
        "o_norm_weight": (cfg.output_norm, vector(V, 1.0)),
        "g_proj": (cfg.gate != "none", Dense(D, H * V)),
    }
    mix: dict[str, dict[str, Part]] = {
        "concat": {"o_proj": Dense(H * V, D)},
        "per_head": {"o_proj": Dense(H * V, D, init=_per_head(H))},
        "weighted_sum": {"head_weights": Weight((H,), constant(1 / H)), "o_proj": Dense(V, D)},
        "input_weighted": {"head_attn": Dense(D, H), "o_proj": Dense(V, D)},
        "sum": {"o_proj": Dense(V, D)},
    }
    chosen = {name: part for name, (wanted, part) in optional.items() if wanted}
    return decay[cfg.decay] | chosen | mix[cfg.head_mix]


def _per_head(heads: int) -> Init:
    """Xavier for each head's own output matrix `[D, V]`."""

    def fill(w: Tensor) -> None:
        for block in w.chunk(heads, dim=1):
            fresh = torch.empty(block.shape)
            xavier()(fresh)
            block.copy_(fresh)

    return fill


class HeadsLayer(Layer):
    """Heads whose decay, gate, norm and mix are fields of the Config."""

    a_proj: nn.Linear
    A_log: nn.Parameter
    dt_bias: nn.Parameter
    beta_proj: nn.Linear
    theta: nn.Parameter
    D_v: nn.Parameter
    o_norm_weight: nn.Parameter
    g_proj: nn.Linear
    head_weights: nn.Parameter
    head_attn: nn.Linear
    o_proj: nn.Linear

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """log a_BTH <= 0, computed in fp32 or wider."""
        mode, shape = self.cfg.decay, (*x_BTD.shape[:2], self.cfg.n_heads)
        if mode == "mamba":
            return -torch.exp(widen(self.A_log)) * F.softplus(widen(self.a_proj(x_BTD)) + self.dt_bias)
        if mode == "simple":
            return F.logsigmoid(widen(self.beta_proj(x_BTD)))
        if mode == "constant":
            return F.logsigmoid(widen(self.theta)).expand(shape)
        return widen(x_BTD.new_zeros(shape))

    def gated(self, o_BTHV: Tensor, *gates: Tensor) -> Tensor:
        """The read-out times sigmoid or silu of its gate, if it has one."""
        act = F.silu if self.cfg.gate == "silu" else torch.sigmoid
        for g_BTHV in gates:
            o_BTHV = o_BTHV * act(g_BTHV)
        return o_BTHV

    def output(self, o_BTHV: Tensor, v_BTHV: Tensor, gates: tuple[Tensor, ...], x_BTD: Tensor) -> Tensor:
        """y_BTD: value residual, norm, gate unless the cell has applied it, and the heads together."""
        cfg = self.cfg
        together = cfg.head_mix in ("concat", "per_head")
        if cfg.value_residual or cfg.output_norm or gates or not together:  # else nothing is computed before W_o
            o_BTHV = widen(o_BTHV)
        if cfg.value_residual:
            o_BTHV = o_BTHV + v_BTHV * self.D_v
        if cfg.output_norm:
            o_BTHV = F.rms_norm(o_BTHV, (cfg.d_value,), widen(self.o_norm_weight), 1e-5)
        o_BTHV = self.gated(o_BTHV, *gates)
        if cfg.head_mix == "weighted_sum":
            o_BTHV = o_BTHV * self.head_weights.softmax(-1)[:, None]
        elif cfg.head_mix == "input_weighted":
            o_BTHV = o_BTHV * self.head_attn(x_BTD).softmax(-1)[..., None]
        o_BT = o_BTHV.flatten(-2) if together else o_BTHV.sum(-2)
        y_BTD: Tensor = self.o_proj(o_BT.to(x_BTD.dtype))
        return y_BTD
