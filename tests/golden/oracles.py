"""Forward passes in plain numpy loops, one sequence and one step at a time, from the equations alone.

`p` maps our parameter names to arrays, `x` is `[T, D]`, `h` the initial state; each returns outputs `[T, D]`
and the last state.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
P = Mapping[str, Array]
Result = tuple[Array, Array]
Oracle = Callable[[P, Array, Array, Mapping[str, Any]], Result]


def sigmoid(a: Array) -> Array:
    """Logistic function."""
    return np.asarray(1 / (1 + np.exp(-a)))


def silu(a: Array) -> Array:
    """A sigmoid(a)."""
    return np.asarray(a * sigmoid(a))


def power_iteration(W: Array, u: Array) -> tuple[Array, Array]:
    """Three rounds from u."""
    for _ in range(3):
        v = W.T @ u
        v = v / (np.sqrt(np.sum(v * v)) + 1e-8)
        u = W @ v
        u = u / (np.sqrt(np.sum(u * u)) + 1e-8)
    return u, v


def effective(p: P, cfg: Mapping[str, Any]) -> Array:
    """E0's and E1's recurrent matrix under its constraint."""
    if cfg["constraint"] == "orthogonal":
        return np.asarray(sigmoid(p["W_h.log_scale"]) * p["W_h.Q"])
    W = p["W_h.weight"]
    if cfg["constraint"] == "none":
        return W
    s = abs(float(p["W_h.u"] @ W @ p["W_h.v"]))
    return np.asarray(W * 0.99 / (s + 1e-8))


def convolved(p: P, a: Array) -> Array:
    """Causal convolution of four taps per channel."""
    out = np.zeros_like(a) + p["conv.bias"]
    for t in range(len(a)):
        for tap in range(4):
            if t - 3 + tap >= 0:
                out[t] += p["conv.weight"][:, 0, tap] * a[t - 3 + tap]
    return out


def branch(p: P, x: Array, width: int | None = None) -> Array:
    """silu(conv?(P_in x)) of the first `width` channels."""
    a = (x @ p["in_proj.weight"].T)[:, :width]
    return silu(convolved(p, a) if "conv.weight" in p else a)


def e0(p: P, x: Array, h: Array, cfg: Mapping[str, Any]) -> Result:
    """h = tanh(W_x x + W_h h + b), y = h silu(W_g x + b_g)."""
    W_h, ys = effective(p, cfg), []
    xs = branch(p, x) if "conv.weight" in p else x @ p["in_proj.weight"].T
    for xi in xs:
        h = np.tanh(p["W_x.weight"] @ xi + W_h @ h + p["W_x.bias"])
        ys.append(p["out_proj.weight"] @ (h * silu(p["W_g.weight"] @ xi + p["W_g.bias"])))
    return np.array(ys), h


def e1(p: P, x: Array, h: Array, cfg: Mapping[str, Any]) -> Result:
    """h = tanh(W_x x + W_h h + b), y = h silu(z)."""
    W_h, d, ys = effective(p, cfg), len(h), []
    z = (x @ p["in_proj.weight"].T)[:, d:]
    for t, xi in enumerate(branch(p, x, d)):
        h = np.tanh(p["W_x.weight"] @ xi + W_h @ h + p["W_x.bias"])
        ys.append(p["out_proj.weight"] @ (h * silu(z[t])))
    return np.array(ys), h


def e61(p: P, x: Array, h: Array, cfg: Mapping[str, Any]) -> Result:
    """h = a h + (1 - a) v; additive writes v; tied makes a and tanh's argument from one projection."""
    ys = []
    for xi in branch(p, x):
        v = p["value.weight"] @ xi + p["value.bias"]
        a = sigmoid(v if cfg["form"] == "tied" else p["leak.weight"] @ xi + p["leak.bias"])
        if cfg["tanh"] or cfg["form"] == "tied":
            v = np.tanh(v)
        h = a * h + (v if cfg["form"] == "additive" else (1 - a) * v)
        ys.append(p["out_proj.weight"] @ (h * h * sigmoid(h)))
    return np.array(ys), h


def e68(p: P, x: Array, h: Array, cfg: Mapping[str, Any]) -> Result:
    """h = a h + (1 - a) w s with s = sigmoid(d_g h + b_g), or sigmoid(-d_g |h| + b_g)."""
    ys = []
    for xi in branch(p, x):
        a = sigmoid(p["leak.weight"] @ xi + p["leak.bias"])
        w = np.tanh(p["value.weight"] @ xi + p["value.bias"])
        signal = -p["d_g"] * np.abs(h) if cfg["form"] == "inverse" else p["d_g"] * h
        h = a * h + (1 - a) * w * sigmoid(signal + p["b_g"])
        ys.append(p["out_proj.weight"] @ (h * h * sigmoid(h)))
    return np.array(ys), h


def e74(p: P, x: Array, S: Array, cfg: Mapping[str, Any]) -> Result:
    """Delta rule with or without z, or simple decay, under tanh; element by element."""
    n, ys = len(S), []
    for xi in branch(p, x):
        k, v, q = (p[f"{name}.weight"] @ xi for name in ("W_k", "W_v", "W_q"))
        kn = k / (np.sqrt(np.sum(k * k)) + 1e-6)
        z = p["W_z.weight"] @ xi + p["W_z.bias"] if "W_z.weight" in p else np.ones(n)
        new = np.empty_like(S)
        for i in range(n):
            retrieved = sum(S[i, j] * z[j] * kn[j] for j in range(n))
            for j in range(n):
                if cfg["update"] == "simple":
                    new[i, j] = np.tanh(sigmoid(p["theta"]) * S[i, j] + v[i] * kn[j])
                else:
                    new[i, j] = np.tanh(S[i, j] + (v[i] - retrieved) * kn[j])
        S = new
        o = np.array([sum(S[i, j] * q[j] for j in range(n)) for i in range(n)])
        ys.append(p["out_proj.weight"] @ (o * silu(o)))
    return np.array(ys), S


def e88(p: P, x: Array, S: Array, cfg: Mapping[str, Any]) -> Result:
    """Heads with Mamba's decay after the retrieval, tanh, per-head RMS norm, SiLU gate."""
    H, N, V = S.shape
    S, ys = S.copy(), []
    for xt in x:
        qkv = silu(p["qkv_proj.weight"] @ xt)
        rate = np.log1p(np.exp(p["a_proj.weight"] @ xt + p["dt_bias"]))
        decay, gate = np.exp(-np.exp(p["A_log"]) * rate), silu(p["g_proj.weight"] @ xt)
        out = []
        for h in range(H):
            q = qkv[h * N : (h + 1) * N]
            k = qkv[(H + h) * N : (H + h + 1) * N]
            v = qkv[2 * H * N + h * V : 2 * H * N + (h + 1) * V]
            q, k = (s / (np.sqrt(np.sum(s * s)) + 1e-6) for s in (q, k))
            for c in range(V):  # columns never meet
                delta = v[c] - sum(S[h, i, c] * k[i] for i in range(N))
                S[h, :, c] = np.tanh(decay[h] * S[h, :, c] + k * delta)
            o = np.array([sum(S[h, i, c] * q[i] for i in range(N)) for c in range(V)])
            o = o / np.sqrt(np.mean(o * o) + 1e-5) * p["o_norm_weight"]
            out.append(o * gate[h * V : (h + 1) * V])
        ys.append(p["o_proj.weight"] @ np.concatenate(out))
    return np.array(ys), S
