"""Stand-ins of the matrix-state models E74 and E88 with all their options; see standins.py."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .standins import D, Params, Run, draw

Config = dict[str, Any]
EPS = 1e-6


def e74_params(c: Config, prefix: str = "cell.cell.") -> Params:
    """Source parameters of a configuration."""
    n, d = c["n_state"], int(c["dim"] * c.get("expansion", 0)) or c["d_inner"]
    kind = c.get("state_type", "full")
    shared = {"tied_kq": ["W_k", "W_v"], "tied_kvq": ["W"]}
    names = list(shared.get(c["proj_type"], ["W_k", "W_v", "W_q"]))
    vectors: list[str] = []
    update, gate = c.get("update_type", c.get("update")), c.get("gate_type", c.get("gate"))
    if c["proj_type"] == "full" and kind == "full":
        names, vectors = [*names, "W_z"], ["b_z"]
    extra = {"ema": ["alpha"], "ntm": ["erase", "write"], "retrieved_gate": ["gate"]}.get(str(update), [])
    extra += ["z_gate"] if gate == "input" else []
    names += [f"W_{e}" for e in extra]
    vectors += [f"b_{e}" for e in extra] + (["d_g", "b_g"] if gate in ("state", "retain") else [])
    vectors += ["residual_scale"] if update == "residual" else []
    params = {"in_proj.weight": draw(d, D), "out_proj.weight": draw(D, n)}
    params |= {prefix + name: draw(n, d) for name in names} | {prefix + name: draw(n) for name in vectors}
    if update == "simple":
        params[f"{prefix}log_alpha"] = draw(1)[0].clone()
    return params


def e74(c: Config, prefix: str = "cell.cell.", silu: bool = True) -> Run:
    """The layer of a configuration."""
    update, gate = c.get("update_type", c.get("update")), c.get("gate_type", c.get("gate"))
    b = int(c["block_size"] if "block_size" in c else c["n_state"])

    def run(params: Params, x: Tensor, S: Tensor | None) -> dict[str, Tensor]:
        p = {name.removeprefix(prefix): value for name, value in params.items()}
        xi = x @ p["in_proj.weight"].T
        xi = F.silu(xi) if silu else xi
        k, v, q = (xi @ W.T for W in _kvq(p))
        blocks = [c["n_state"] // b] if c.get("state_type") == "blockdiag" else []
        S = torch.zeros([len(x), *blocks, b, b], dtype=x.dtype) if S is None else S
        reads, states = [], []
        for t in range(x.shape[1]):
            k_t, v_t, q_t = (s[:, t].reshape(*S.shape[:-1]) for s in (k, v, q))
            kn = k_t / (k_t.norm(dim=-1, keepdim=True) + EPS)
            S = _nonlinear(str(c.get("nonlin_type", c.get("nonlin"))), _e74_step(p, update, gate, S, kn, v_t, xi[:, t]))
            states.append(S)
            reads.append(torch.einsum("...ij,...j->...i", S, q_t).flatten(1))
        u = torch.stack(reads, 1)
        out = u * F.silu(xi @ p["W_z_gate"].T + p["b_z_gate"] if gate == "input" else u)
        return {"y": out @ p["out_proj.weight"].T, "S": S, "traj": torch.stack(states), "pre_out": out}

    return run


def _kvq(p: Params) -> list[Tensor]:
    k = p["W"] if "W" in p else p["W_k"]
    return [k, p.get("W_v", k), p.get("W_q", k)]


def _e74_step(p: Params, update: Any, gate: Any, S: Tensor, k: Tensor, v: Tensor, xi: Tensor) -> Tensor:
    def gated(name: str) -> Tensor:
        return xi @ p[f"W_{name}"].T + p[f"b_{name}"]

    outer = torch.einsum("...i,...j->...ij", v, k)
    if update == "simple":
        return torch.sigmoid(p["log_alpha"]) * S + outer
    if update == "ema":
        a = torch.sigmoid(gated("alpha"))[..., None]
        return a * S + (1 - a) * outer
    if update == "ntm":
        e, w = torch.sigmoid(gated("erase")), torch.sigmoid(gated("write"))
        return S * (1 - torch.einsum("bi,bj->bij", e, k)) + w[..., None] * outer
    seen = S * (xi @ p["W_z"].T + p["b_z"])[:, None] if update == "delta" and "W_z" in p else S
    delta = v - torch.einsum("...ij,...j->...i", seen, k)
    change = torch.einsum("...i,...j->...ij", delta, k)
    if update == "residual":
        return S + p["residual_scale"][:, None] * torch.tanh(change)
    if update == "retrieved_gate":
        return S + torch.sigmoid(gated("gate") + delta.square().mean(-1, keepdim=True))[..., None] * change
    if gate in ("state", "retain"):
        w = torch.sigmoid(p["d_g"] * S.square().mean(-1) + p["b_g"])[..., None]
        return w * S + (1 - w) * (S + change) if gate == "retain" else S + w * change
    return S + change


def _nonlinear(kind: str, A: Tensor) -> Tensor:
    square = A.square().flatten(1)
    if kind == "rmsnorm":
        return A / (square.mean(1).sqrt()[:, None, None] + EPS)
    if kind == "frobnorm":
        return A / (square.sum(1).sqrt()[:, None, None] + EPS)
    return A.tanh() if kind == "tanh" else A


def e88_params(c: Config) -> Params:
    """Source parameters of a configuration."""
    H, N = c["n_heads"], c["n_state"]
    V = int(H * N * c["expansion"]) // H
    p: Params = {"o_norm_weight": draw(V)} if c.get("use_output_norm") is not None else {}
    widths = {"q": H * N, "k": H * N} | ({} if c.get("tie_kv") else {"v": H * V})
    if c.get("tie_kv"):
        p |= {f"{s}_proj.weight": draw(w, D) for s, w in widths.items()}
    else:
        p["qkv_proj.weight"] = draw(sum(widths.values()), D)
    if c.get("use_conv"):
        p |= {f"{s}_conv.weight": draw(w, 1, 4) for s, w in widths.items()}
    mode = "simple" if c.get("simple_decay") else c.get("decay_mode", "mamba")
    if mode == "mamba":
        p |= {"a_proj.weight": draw(H, D), "A_log": draw(H), "dt_bias": draw(H)}
    p |= {"beta_proj.weight": draw(H, D)} if mode == "simple" else {}
    p |= {"decay_logit": draw(H)} if mode == "constant" else {}
    p |= {"g_proj.weight": draw(H * V, D)} if c.get("use_gate") else {}
    p |= {"write_gate_proj.weight": draw(H, D)} if c.get("use_write_gate") else {}
    p |= {"value_residual": draw(H, V)} if c.get("use_value_residual") else {}
    mix = c.get("head_mix", "concat")
    p |= {"head_weights": draw(H)} if mix == "weighted_sum" else {}
    p |= {"head_attn.weight": draw(H, D)} if mix == "input_weighted" else {}
    if mix == "per_head":
        return p | {f"head_projs.{h}.weight": draw(D, V) for h in range(H)}
    return p | {"o_proj.weight": draw(D, H * V if mix == "concat" else V)}


def e88(c: Config) -> Run:
    """The layer of a configuration."""
    H, N = c["n_heads"], c["n_state"]
    V = int(H * N * c["expansion"]) // H

    def run(p: Params, x: Tensor, S: Tensor | None) -> dict[str, Tensor]:
        q, k, v = _e88_streams(c, p, x, H, N, V)
        a, w = _e88_decay(c, p, x), torch.ones(*x.shape[:2], H, dtype=x.dtype)
        w = torch.sigmoid(x @ p["write_gate_proj.weight"].T) if c.get("use_write_gate") else w
        S = torch.zeros(len(x), H, N, V, dtype=x.dtype) if S is None else S
        states, reads = [], []
        for t in range(x.shape[1]):
            delta = v[:, t] - torch.einsum("bhnv,bhn->bhv", S, k[:, t])
            A = a[:, t, :, None, None] * S
            A = A + w[:, t, :, None, None] * torch.einsum("bhn,bhv->bhnv", k[:, t], delta)
            S = A if c.get("linear_state") else A.tanh()
            states.append(S)
            reads.append(torch.einsum("bhnv,bhn->bhv", S, q[:, t]))
        o = torch.stack(reads, 1)
        o = o + v * p["value_residual"] if c.get("use_value_residual") else o
        if c.get("use_output_norm"):
            o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p["o_norm_weight"]
        if c.get("use_gate"):
            g = (x @ p["g_proj.weight"].T).view_as(o)
            o = o * (torch.sigmoid(g) if c.get("gate_activation") == "sigmoid" else F.silu(g))
        return _e88_mix(c, p, x, o) | {"S": S, "traj": torch.stack(states)}

    return run


def _e88_streams(c: Config, p: Params, x: Tensor, H: int, N: int, V: int) -> list[Tensor]:
    if c.get("tie_kv"):
        streams = {s: x @ p[f"{s}_proj.weight"].T for s in "qk"}
    else:
        parts = torch.split(x @ p["qkv_proj.weight"].T, [H * N, H * N, H * V], -1)
        streams = dict(zip("qkv", parts, strict=True))
    for s, value in streams.items():
        if c.get("use_conv"):
            past = F.pad(value, (0, 0, 3, 0))
            taps = p[f"{s}_conv.weight"][:, 0]
            value = torch.stack([past[:, j : j + x.shape[1]] * taps[:, j] for j in range(4)]).sum(0)
        streams[s] = F.silu(value) if c.get("use_silu", True) else value
    q, k = (streams[s].reshape(*x.shape[:2], H, N) for s in "qk")
    v = streams.get("v", streams["k"]).reshape(*x.shape[:2], H, V)
    if c.get("use_l2_norm", True):
        q, k = (s / (s.norm(dim=-1, keepdim=True) + EPS) for s in (q, k))
    return [q, k, v]


def _e88_decay(c: Config, p: Params, x: Tensor) -> Tensor:
    if "A_log" in p:
        return torch.exp(-torch.exp(p["A_log"]) * F.softplus(x @ p["a_proj.weight"].T + p["dt_bias"]))
    if "beta_proj.weight" in p:
        return torch.sigmoid(x @ p["beta_proj.weight"].T)
    shape = (*x.shape[:2], c["n_heads"])
    return torch.sigmoid(p["decay_logit"]).expand(shape) if "decay_logit" in p else x.new_ones(shape)


def _e88_mix(c: Config, p: Params, x: Tensor, o: Tensor) -> dict[str, Tensor]:
    mix = c.get("head_mix", "concat")
    if mix == "per_head":
        heads = [o[:, :, h] @ p[f"head_projs.{h}.weight"].T for h in range(o.shape[2])]
        return {"y": torch.stack(heads).sum(0)}
    weights = {
        "weighted_sum": lambda: p["head_weights"].softmax(-1)[:, None],
        "input_weighted": lambda: (x @ p["head_attn.weight"].T).softmax(-1)[..., None],
    }.get(mix, lambda: torch.ones((), dtype=x.dtype))()
    out = o.flatten(-2) if mix == "concat" else (o * weights).sum(-2)
    return {"y": out @ p["o_proj.weight"].T, "pre_out": out}
