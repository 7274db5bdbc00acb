"""Stand-ins of the baselines: Mamba2, Gated DeltaNet, Llama's block, minGRU and minLSTM; see standins.py."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .standins import Params, Run, draw

Config = dict[str, Any]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Four causal taps per channel, then SiLU."""
    past = F.pad(x, (0, 0, 3, 0))
    return F.silu(sum(past[:, j : j + x.shape[1]] * weight[:, 0, j] for j in range(4)) + bias)


def _rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def mamba2_params(c: Config) -> Params:
    """Source parameters of a configuration."""
    D, S = c["d_model"], c["d_state"]
    d = D * c["expand"]
    H, wide = d // c["headdim"], d + 2 * S
    params = {name: draw(H) for name in ("dt_bias", "A_log", "D")}
    params |= {"norm_weight": draw(d), "in_proj.weight": draw(d + wide + H, D), "out_proj.weight": draw(D, d)}
    return params | {"conv1d.weight": draw(wide, 1, 4), "conv1d.bias": draw(wide)}


def mamba2(c: Config) -> Run:
    """The layer of a configuration."""
    d, S, P = c["d_model"] * c["expand"], c["d_state"], c["headdim"]

    def run(p: Params, u: Tensor, h: Tensor | None) -> dict[str, Tensor]:
        z, xBC, dt = torch.split(u @ p["in_proj.weight"].T, [d, d + 2 * S, d // P], -1)
        x, B, C = torch.split(_conv(xBC, p["conv1d.weight"], p["conv1d.bias"]), [d, S, S], -1)
        x, dt = x.unflatten(-1, (-1, P)), F.softplus(dt + p["dt_bias"])
        h = torch.zeros(len(u), d // P, P, S, dtype=u.dtype) if h is None else h
        states, ys = [], []
        for t in range(u.shape[1]):
            decay = torch.exp(-dt[:, t] * p["A_log"].exp())[..., None, None]
            h = decay * h + torch.einsum("bh,bhp,bs->bhps", dt[:, t], x[:, t], B[:, t])
            states.append(h)
            ys.append(torch.einsum("bhps,bs->bhp", h, C[:, t]) + p["D"][:, None] * x[:, t])
        out = _rms(torch.stack(ys, 1).flatten(-2) * F.silu(z), 1e-5) * p["norm_weight"]
        return {"y": out @ p["out_proj.weight"].T, "S": h, "traj": torch.stack(states), "pre_out": out}

    return run


def gdn_params(c: Config) -> Params:
    """Source parameters of a configuration."""
    D, H, K = c["hidden_size"], c["num_heads"], c["head_dim"]
    V = int(K * c["expand_v"])
    widths = {"q": H * K, "k": H * K, "v": H * V, "a": H, "b": H, "g": H * V}
    params = {f"{name}_proj.weight": draw(width, D) for name, width in widths.items()}
    params |= {f"{name}_conv1d.weight": draw(widths[name], 1, 4) for name in "qkv"}
    return params | {"A_log": draw(H), "dt_bias": draw(H), "o_norm_weight": draw(V), "o_proj.weight": draw(D, H * V)}


def gdn(c: Config) -> Run:
    """The layer of a configuration."""
    H, K = c["num_heads"], c["head_dim"]

    def run(p: Params, x: Tensor, S: Tensor | None) -> dict[str, Tensor]:
        q, k, v = (_conv(x @ p[f"{s}_proj.weight"].T, p[f"{s}_conv1d.weight"]).unflatten(-1, (H, -1)) for s in "qkv")
        q, k = (s / (s.square().sum(-1, keepdim=True) + 1e-6).sqrt() for s in (q, k))
        decay = torch.exp(-p["A_log"].exp() * F.softplus(x @ p["a_proj.weight"].T + p["dt_bias"]))
        beta, gate = torch.sigmoid(x @ p["b_proj.weight"].T), F.silu(x @ p["g_proj.weight"].T)
        S = torch.zeros(len(x), H, K, v.shape[-1], dtype=x.dtype) if S is None else S
        states, reads = [], []
        for t in range(x.shape[1]):
            S = decay[:, t, :, None, None] * S
            error = v[:, t] - torch.einsum("bhkv,bhk->bhv", S, k[:, t])
            S = S + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error)
            states.append(S)
            reads.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]) / K**0.5)
        out = (_rms(torch.stack(reads, 1), 1e-5) * p["o_norm_weight"]).flatten(-2) * gate
        return {"y": out @ p["o_proj.weight"].T, "S": S, "traj": torch.stack(states), "pre_out": out}

    return run


def llama_params(c: Config) -> Params:
    """Source parameters of a configuration."""
    D, d, wide = c["dim"], c["n_heads"] * c["head_dim"], c["hidden_dim"]
    params = {f"block.attention.{w}.weight": draw(d, D) for w in ("wq", "wk", "wv")}
    params |= {f"block.ffn.{w}.weight": draw(wide, D) for w in ("w1", "w3")}
    params |= {"block.attention.wo.weight": draw(D, d), "block.ffn.w2.weight": draw(D, wide)}
    return params | {f"block.{norm}.weight": draw(D) for norm in ("attention_norm", "ffn_norm")}


def llama(c: Config) -> Run:
    """The block of a configuration, with complex numbers for the rotations."""
    H, P = c["n_heads"], c["head_dim"]

    def run(params: Params, x: Tensor, state: Tensor | None) -> dict[str, Tensor]:
        p = {name.removeprefix("block.").removesuffix(".weight"): value for name, value in params.items()}
        rates = c["rope_theta"] ** (-torch.arange(0, P, 2, dtype=x.dtype) / P)
        angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * rates
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        n = _rms(x, 1e-6) * p["attention_norm"]
        q, k, v = ((n @ p[f"attention.w{s}"].T).unflatten(-1, (H, P)) for s in "qkv")
        q, k = (
            torch.view_as_real(torch.view_as_complex(s.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
            for s in (q, k)
        )
        scores = torch.einsum("bthp,bjhp->bhtj", q, k) / P**0.5
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        x = x + torch.einsum("bhtj,bjhp->bthp", weights, v).flatten(-2) @ p["attention.wo"].T
        n = _rms(x, 1e-6) * p["ffn_norm"]
        return {"y": x + (F.silu(n @ p["ffn.w1"].T) * (n @ p["ffn.w3"].T)) @ p["ffn.w2"].T}

    return run


def min_params(c: Config, lstm: bool) -> Params:
    """Source parameters of minGRU or minLSTM."""
    D, d = c["dim"], int(c["dim"] * c["expansion"])
    name = "to_hidden_and_gates.weight" if lstm else "to_hidden_and_gate.weight"
    params = {name: draw((3 if lstm else 2) * d, D)}
    return params | ({} if c["expansion"] == 1 else {"to_out.weight": draw(D, d)})


def min_rnn(p: Params, x: Tensor, state: Tensor | None) -> dict[str, Tensor]:
    """minGRU or minLSTM, as the parameters say, by weighted averages."""
    streams = x @ next(value for name, value in p.items() if name.startswith("to_hidden")).T
    if "to_hidden_and_gates.weight" in p:
        c, f, i = streams.chunk(3, -1)
        f, i = torch.sigmoid(f), torch.sigmoid(i)
        write = i / (f + i)
    else:
        c, z = streams.chunk(2, -1)
        write = torch.sigmoid(z)
    candidate = torch.where(c >= 0, c + 0.5, torch.sigmoid(c))
    h, out = torch.zeros_like(candidate[:, 0]), []
    for t in range(x.shape[1]):
        h = (1 - write[:, t]) * h + write[:, t] * candidate[:, t]
        out.append(h)
    h_all = torch.stack(out, 1)
    return {"y": h_all @ p["to_out.weight"].T if "to_out.weight" in p else h_all}
