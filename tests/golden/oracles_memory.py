"""E63m's fed-back form, E75, and E74's low-rank state in plain numpy loops; see oracles.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .oracles import Array, P, Result, branch, sigmoid, silu


def e63m(p: P, x: Array, S: Array, cfg: Mapping[str, Any]) -> Result:
    """What is written depends on what is retrieved; the read-out is fed back from zero, or mixed by W_out."""
    o, ys = np.zeros(len(S)), []
    for xi in branch(p, x):
        k, q = p["W_k.weight"] @ xi, p["W_q.weight"] @ xi
        v = np.tanh(p["W_r"] @ np.tanh(S @ k) + p["W_x.weight"] @ xi + p["W_x.bias"])
        a = sigmoid(p["W_alpha.weight"] @ xi + p["W_alpha.bias"])
        S = a[:, None] * S + np.outer((1 - a) * v, k)
        o = np.tanh(S @ q + p["R"] @ o if cfg["form"] == "rnn" else S @ q)
        ys.append(p["out_proj.weight"] @ (p["W_out.weight"] @ o if cfg["form"] == "lite" else o))
    return np.array(ys), S


def e75(p: P, x: Array, S: Array, cfg: Mapping[str, Any]) -> Result:
    """Delta rule with a forget gate per row, head by head."""
    H, n, _ = S.shape
    S, ys = S.copy(), []
    for xi in branch(p, x):
        k, v, q = (p[f"{name}.weight"] @ xi for name in ("W_k", "W_v", "W_q"))
        beta, out = sigmoid(p["W_beta.weight"] @ xi + p["W_beta.bias"]), []
        for h in range(H):
            own = slice(h * n, (h + 1) * n)
            key = k[own] / (np.sqrt(np.sum(k[own] ** 2)) + 1e-6)
            new = beta[own, None] * S[h] + np.outer(v[own] - S[h] @ key, key)
            S[h] = np.tanh(new) if cfg["nonlinearity"] == "tanh" else new
            out.append(S[h] @ q[own])
        o = np.concatenate(out)
        ys.append(p["out_proj.weight"] @ (o * silu(o)))
    return np.array(ys), S


def e74_low_rank(p: P, x: Array, U: Array, cfg: Mapping[str, Any]) -> Result:
    """S = U V' with V fixed; the error of S is written to U by W_kr k."""
    ys = []
    for xi in branch(p, x):
        k, v, q = (p[f"{name}.weight"] @ xi for name in ("W_k", "W_v", "W_q"))
        k = k / (np.sqrt(np.sum(k * k)) + 1e-6)
        new = U + np.outer(v - U @ (p["V"].T @ k), p["W_kr.weight"] @ k)
        U = np.tanh(new) if cfg["nonlinearity"] == "tanh" else new
        o = U @ (p["V"].T @ q)
        ys.append(p["out_proj.weight"] @ (o * silu(o)))
    return np.array(ys), U
