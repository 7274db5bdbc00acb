"""Stand-ins for the source's dense Elman cells E0-E5, E42 and E56, with tensors named as the source names them.

Constraints are written as the source has them: a power iteration from `u0` in every pass, a materialised U V, and
a clip by a Python number.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .standins import D, Params, Run, draw

R, S = 4, 3
"""Rank and slots."""
Hold = Callable[[Params], Params]
"""The effective parameters."""


def power(M: Tensor, u: Tensor, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    """u and v after three rounds, constants."""
    with torch.no_grad():
        for _ in range(3):
            v = M.T @ u
            v = v / (v.square().sum().sqrt() + eps)
            u = M @ v
            u = u / (u.square().sum().sqrt() + eps)
    return u, v


def rescaled(name: str, radius: float, u0: Tensor) -> Hold:
    """Constraint A on one matrix."""

    def hold(p: Params) -> Params:
        u, v = power(p[name], u0)
        return p | {name: p[name] * radius / ((u @ p[name] @ v).abs() + 1e-8)}

    return hold


def clipped(radius: float, u0: Tensor) -> Hold:
    """Constraint B on W_h."""

    def hold(p: Params) -> Params:
        u, v = power(p["W_h"], u0, 0.0)
        s = float((u @ p["W_h"] @ v).detach())
        return p | {"W_h": p["W_h"] * (radius / s) if s > radius else p["W_h"]}

    return hold


def rescaled_product(radius: float, u0: Tensor) -> Hold:
    """Constraint C on U and V."""

    def hold(p: Params) -> Params:
        M = p["U"] @ p["V"]
        u, v = power(M, u0)
        root = torch.sqrt(radius / ((u @ M @ v).abs() + 1e-8))
        return p | {"U": root * p["U"], "V": root * p["V"]}

    return hold


def free(p: Params) -> Params:
    """No constraint."""
    return p


def recurrent(p: Params, h: Tensor) -> Tensor:
    """What the state adds inside tanh: dense, diagonal or low rank; per slot where U and V have slots."""
    if "U" in p and p["U"].dim() == 3:
        return torch.stack([h[:, s] @ p["V"][s].T @ p["U"][s].T for s in range(S)], 1)
    if "U" in p:
        return h @ p["V"].T @ p["U"].T
    if "A" in p or "A_raw" in p:
        return 0.99 * torch.sigmoid(p["A"] if "A" in p else p["A_raw"]) * h
    return h @ p["W_h"].T


def two_branches(hold: Hold = free, slots: int = 0) -> Run:
    """E1-E4, and E56 where W stands for W_x and W_h."""

    def layer(given: Params, x: Tensor, h: Tensor | None) -> dict[str, Tensor]:
        a, z = (x @ given["in_proj.weight"].T).chunk(2, -1)
        p = {name.removeprefix("cell."): tensor for name, tensor in given.items()}
        if "W" in p:
            p["W_x"], p["W_h"] = p["W"].chunk(2, 1)
        p = hold(p)
        shape = (len(x), slots, a.shape[2]) if slots else (len(x), a.shape[2])
        h, outs, states = x.new_zeros(shape) if h is None else h, [], []
        for t in range(x.shape[1]):
            u = F.silu(a[:, t]) @ p["W_x"].T + p["b"]
            h = torch.tanh((u.unsqueeze(1) if slots else u) + recurrent(p, h))
            c = sum(p["C"][s] * h[:, s] for s in range(slots)) if slots else h
            outs.append(c * F.silu(z[:, t]))
            states.append(h)
        out = torch.stack(outs, 1)
        return {"y": out @ given["out_proj.weight"].T, "S": h, "traj": torch.stack(states), "pre_out": out}

    return layer


def e5(given: Params, x: Tensor, h: Tensor | None) -> dict[str, Tensor]:
    """Six thin matrices and no projections."""
    p = {name.removeprefix("cell."): tensor for name, tensor in given.items()}
    h, states = torch.zeros_like(x[:, 0]) if h is None else h, []
    for xi in x.unbind(1):
        h = torch.tanh(p["U_h"] @ (p["V_h"] @ h.T) + p["U_x"] @ (p["V_x"] @ xi.T) + p["b"][:, None]).T
        states.append(h)
    out = torch.stack(states, 1) * F.silu(x @ p["V_z"].T @ p["U_z"].T)
    return {"y": out, "S": h, "traj": torch.stack(states), "pre_out": out}


def e42(hold: Hold = free) -> Run:
    """One matrix for input and state, no tanh, gated by itself."""

    def layer(given: Params, x: Tensor, h: Tensor | None) -> dict[str, Tensor]:
        p = hold({name.removeprefix("cell."): tensor for name, tensor in given.items()})
        a = F.silu(x @ given["in_proj.weight"].T)
        h, states = torch.zeros_like(a[:, 0]) if h is None else h, []
        for xi in a.unbind(1):
            h = (xi + h) @ p["W"].T + p["b"]
            states.append(h)
        out = torch.stack(states, 1)
        out = out.square() * torch.sigmoid(out)
        return {"y": out @ given["out_proj.weight"].T, "S": h, "traj": torch.stack(states), "pre_out": out}

    return layer


CELLS = {
    "e1": "W_x W_h b",
    "e2": "W_x b W_h C",
    "e2_diag": "W_x b A C",
    "e3": "W_x b A_raw C",
    "e3_lowrank": "W_x b slots.U slots.V C",
    "e4": "W_x U V b",
    "e5": "U_h V_h U_x V_x U_z V_z b",
    "e42": "W b",
    "e56": "W b",
}
"""Names of the cell's parameters, by case."""


def params(cell: str, d: int, rank: int = R) -> Params:
    """Random parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in CELLS[cell].split():
        slots, bare = (S,) if name.startswith("slots.") else (), name.removeprefix("slots.")
        table = {"U": (d, rank), "V": (rank, d), "W": (d, d), "b": (d,), "A": (d,), "C": (S,)}
        shapes[f"cell.{bare}"] = (*slots, *table[bare[0]])
    shapes |= {"cell.A_raw": (S, d)} if cell == "e3" else {}
    shapes |= {"cell.W": (d, 2 * d)} if cell == "e56" else {}
    if cell != "e5":
        shapes |= {"in_proj.weight": (d if cell == "e42" else 2 * d, D), "out_proj.weight": (D, d)}
    return {name: draw(*shape) for name, shape in shapes.items()}
