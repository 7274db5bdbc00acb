"""Stand-ins of the matrix-state models E63m and E74 diagonal with all their options; see standins.py."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .standins import D, Params, Run, draw

Config = dict[str, Any]
SHARED = {"tied_kq": ["W_kq", "W_v"], "tied_kvq": ["W_kvq"]}


def e63m_params(form: str, d: int, N: int) -> Params:
    """Source parameters of a variant."""
    shapes: dict[str, tuple[int, ...]] = {"W_k": (d, d), "W_q": (d, d), "W_x": (N, d), "W_r": (N, N), "b": (N,)}
    shapes |= {"W_alpha": (N, d), "b_alpha": (N,)}
    shapes |= {"rnn": {"R": (N, N)}, "lite": {"W_out": (d, N)}}.get(form, {})  # type: ignore[arg-type]
    params = {"in_proj.weight": draw(d, D), "out_proj.weight": draw(D, d if form == "lite" else N)}
    return params | {f"cell.{name}": draw(*shape) for name, shape in shapes.items()}


def e63m(form: str) -> Run:
    """The layer of a variant; o starts at zero."""

    def run(params: Params, x: Tensor, S: Tensor | None) -> dict[str, Tensor]:
        p = {name.removeprefix("cell."): value for name, value in params.items()}
        xi = F.silu(x @ p["in_proj.weight"].T)
        N = len(p["b"])
        S = xi.new_zeros(len(x), N, xi.shape[-1]) if S is None else S
        o, reads, states = xi.new_zeros(len(x), N), [], []
        for t in range(x.shape[1]):
            k, q = xi[:, t] @ p["W_k"].T, xi[:, t] @ p["W_q"].T
            r = torch.tanh(torch.einsum("bij,bj->bi", S, k))
            v = torch.tanh(r @ p["W_r"].T + xi[:, t] @ p["W_x"].T + p["b"])
            a = torch.sigmoid(xi[:, t] @ p["W_alpha"].T + p["b_alpha"])[..., None]
            S = a * S + (1 - a) * torch.einsum("bi,bj->bij", v, k)
            o = torch.tanh(torch.einsum("bij,bj->bi", S, q) + (o @ p["R"].T if form == "rnn" else 0))
            states.append(S)
            reads.append(o)
        out = torch.stack(reads, 1)
        out = out @ p["W_out"].T if form == "lite" else out
        return {"y": out @ p["out_proj.weight"].T, "S": S, "traj": torch.stack(states), "pre_out": out}

    return run


def e74d_params(c: Config, prefix: str, fused: bool) -> Params:
    """Source parameters of a configuration of either definition."""
    n, d, kind = c["n_state"], c["d_inner"], c["proj_type"]
    names = list(SHARED.get(kind, ["W_k", "W_v", "W_q"])) + (["W_z"] if kind == "full" else [])
    if not fused:
        names = ["W" if name == "W_kvq" else name.replace("W_kq", "W_k") for name in names]
    vectors = ["b_z"] if kind == "full" and not fused else []
    if not fused:
        vectors += {"simple": ["log_alpha"], "ema": ["b_alpha"]}.get(c["update_type"], [])
        vectors += ["d_g", "b_g"] if c["gate_type"] != "output" else []
        names += ["W_alpha"] if c["update_type"] == "ema" else []
    params = {"in_proj.weight": draw(d, D), "out_proj.weight": draw(D, n)}
    return params | {prefix + name: draw(n, d) for name in names} | {prefix + name: draw(n) for name in vectors}


def e74d_cell(c: Config) -> Run:
    """Definition A: the Python cell behind SiLU."""

    def run(params: Params, x: Tensor, S: Tensor | None) -> dict[str, Tensor]:
        p = {name.removeprefix("cell.cell."): value for name, value in params.items()}
        xi = F.silu(x @ p["in_proj.weight"].T)
        raw = p["W"] if "W" in p else p["W_k"]
        k, v, q = xi @ raw.T, xi @ p.get("W_v", raw).T, xi @ p.get("W_q", raw).T
        kn = k / (k.norm(dim=-1, keepdim=True) + 1e-6)
        S, reads, states = torch.zeros_like(k[:, 0]) if S is None else S, [], []
        for t in range(x.shape[1]):
            S = _bounded(c["nonlin_type"], _changed(c, p, S, kn[:, t], v[:, t], xi[:, t]))
            states.append(S)
            reads.append(S * q[:, t])
        u = torch.stack(reads, 1)
        out = u * F.silu(u)
        return {"y": out @ p["out_proj.weight"].T, "S": S, "traj": torch.stack(states), "pre_out": out}

    return run


def _changed(c: Config, p: Params, S: Tensor, k: Tensor, v: Tensor, xi: Tensor) -> Tensor:
    kept = S * (1 - k**2) + v * k
    if c["update_type"] == "simple":
        return torch.sigmoid(p["log_alpha"]) * S + v * k
    if c["update_type"] == "ema":
        a = torch.sigmoid(xi @ p["W_alpha"].T + p["b_alpha"])
        return a * S + (1 - a) * v * k
    if c["gate_type"] == "output":
        return kept
    g = torch.sigmoid(p["d_g"] * S + p["b_g"])
    return g * S + (1 - g) * kept if c["gate_type"] == "retain" else S + g * (v - S * k) * k


def _bounded(kind: str, A: Tensor) -> Tensor:
    if kind == "rmsnorm":
        return A / (A.square().mean(1, keepdim=True).sqrt() + 1e-6)
    if kind == "frobnorm":
        return A / (A.norm(dim=1, keepdim=True) + 1e-6)
    return torch.tanh(A) if kind == "tanh" else A


def e74d_fused(c: Config) -> Run:
    """Definition B: the kernel, without SiLU."""

    def run(p: Params, x: Tensor, s: Tensor | None) -> dict[str, Tensor]:
        a = x @ p["in_proj.weight"].T
        raw = next(p[name] for name in ("W_kvq", "W_kq", "W_k") if name in p)
        k, v = a @ raw.T, a @ p.get("W_v", raw).T
        s, states = torch.zeros_like(k[:, 0]) if s is None else s, []
        for t in range(x.shape[1]):
            keep = 0.9 if c["update"] == "simple" else 1 - k[:, t] ** 2
            s = _bounded(c["nonlin"], keep * s + v[:, t] * k[:, t])
            states.append(s)
        out = torch.stack(states, 1)
        out = out * F.silu(out)
        return {"y": out @ p["out_proj.weight"].T, "S": s, "traj": torch.stack(states), "pre_out": out}

    return run
