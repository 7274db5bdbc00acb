"""Stand-ins for the source's gated vector cells E62-E68: from parameters and x~ to the state, step by step.

Written from the models' equations one step at a time, with tensors named as the source names them.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .standins import D, Params, Run, draw

Step = Callable[[Params, Tensor, Tensor], Tensor]
"""From parameters without their prefix, x~ and the last state to the next."""
Shapes = dict[str, tuple[int, ...]]


def _affine(p: Params, xi: Tensor, which: str, bias: str | None = None) -> Tensor:
    return F.linear(xi, p[f"W_{which}"], p[bias or f"b_{which}"])


def e62(p: Params, xi: Tensor, h: Tensor) -> Tensor:
    """62 without W_alpha, 62b with it, 62c with W alone."""
    if "W" in p:
        q = F.linear(xi, p["W"], p["b"])
        return torch.sigmoid(q) * h + (1 - torch.sigmoid(q)) * torch.tanh(q)
    k, v = torch.sigmoid(_affine(p, xi, "k")), torch.tanh(_affine(p, xi, "v"))
    a = torch.sigmoid(_affine(p, xi, "alpha")) if "W_alpha" in p else 1
    return a * (1 - k) * h + k * v


def e63(p: Params, xi: Tensor, h: Tensor) -> Tensor:
    """63 without W_beta, 63b with it, 63c with U_alpha and U_beta too."""
    v = torch.tanh(h @ p["W_h"].T + _affine(p, xi, "x", "b"))
    gates = {}
    for name in ("alpha", "beta"):
        if f"W_{name}" in p:
            logits = _affine(p, xi, name)
            gates[name] = torch.sigmoid(logits + h @ p[f"U_{name}"].T if f"U_{name}" in p else logits)
    return gates["alpha"] * h + gates.get("beta", 1 - gates["alpha"]) * v


def e63d(p: Params, xi: Tensor, h: Tensor) -> Tensor:
    """The residual form."""
    return h + torch.sigmoid(_affine(p, xi, "alpha")) * torch.tanh(h @ p["W_h"].T + _affine(p, xi, "x", "b"))


def e66(p: Params, xi: Tensor, h: Tensor) -> Tensor:
    """64 without d_h, 65 with it, 66 with U and V."""
    seen = h @ p["V"].T @ p["U"].T if "U" in p else p.get("d_h", 1) * h
    a = torch.sigmoid(_affine(p, xi, "alpha"))
    return a * h + (1 - a) * torch.tanh(seen + _affine(p, xi, "x", "b"))


def e67(p: Params, xi: Tensor, h: Tensor) -> Tensor:
    """67 with d_alpha, 67lr with U_alpha and V_alpha."""
    seen = h @ p["V_alpha"].T @ p["U_alpha"].T if "U_alpha" in p else p["d_alpha"] * h
    a = torch.sigmoid(_affine(p, xi, "alpha") + seen)
    return a * h + (1 - a) * torch.tanh(_affine(p, xi, "x", "b_v"))


def e68(p: Params, xi: Tensor, h: Tensor) -> Tensor:
    """The standard form."""
    a, w = torch.sigmoid(_affine(p, xi, "alpha")), torch.tanh(_affine(p, xi, "x", "b_v"))
    return a * h + (1 - a) * w * torch.sigmoid(p["d_g"] * h + p["b_g"])


def e68i(p: Params, xi: Tensor, h: Tensor) -> Tensor:
    """The inverse form."""
    a, w = torch.sigmoid(_affine(p, xi, "alpha")), torch.tanh(_affine(p, xi, "x", "b_v"))
    return a * h + (1 - a) * w * torch.sigmoid(-p["d_g"] * h.abs() + p["b_g"])


STEPS: dict[str, tuple[Step, str]] = {
    "62": (e62, "W_k b_k W_v b_v"),
    "62b": (e62, "W_k b_k W_v b_v W_alpha b_alpha"),
    "62c": (e62, "W b"),
    "63": (e63, "W_alpha b_alpha W_h W_x b"),
    "63b": (e63, "W_alpha b_alpha W_beta b_beta W_h W_x b"),
    "63c": (e63, "W_alpha U_alpha b_alpha W_beta U_beta b_beta W_h W_x b"),
    "63d": (e63d, "W_alpha b_alpha W_h W_x b"),
    "64": (e66, "W_alpha b_alpha W_x b"),
    "65": (e66, "W_alpha b_alpha d_h W_x b"),
    "66": (e66, "W_alpha b_alpha V U W_x b"),
    "66r16": (e66, "W_alpha b_alpha V U W_x b"),
    "67": (e67, "W_alpha d_alpha b_alpha W_x b_v"),
    "67lr": (e67, "W_alpha U_alpha V_alpha b_alpha W_x b_v"),
    "68": (e68, "W_alpha b_alpha d_g b_g W_x b_v"),
    "68i": (e68i, "W_alpha b_alpha d_g b_g W_x b_v"),
}
"""Step and names of the cell's parameters, by level key."""
THIN = {"66": ("U", "V"), "66r16": ("U", "V"), "67lr": ("U_alpha", "V_alpha")}


def params(level: str, d: int, rank: int) -> Params:
    """Random parameters of the layer at `level`."""
    shapes: Shapes = {"in_proj.weight": (d, D), "out_proj.weight": (D, d)}
    for name in STEPS[level][1].split():
        if name in THIN.get(level, ()):
            shapes[f"cell.{name}"] = (d, rank) if name[0] == "U" else (rank, d)
        else:
            shapes[f"cell.{name}"] = (d, d) if name[0] in "WU" else (d,)
    return {name: draw(*shape) for name, shape in shapes.items()}


def run(level: str) -> Run:
    """The layer at `level`."""
    step = STEPS[level][0]

    def layer(p: Params, x: Tensor, h: Tensor | None) -> dict[str, Tensor]:
        a = F.silu(x @ p["in_proj.weight"].T)
        cell = {name.removeprefix("cell."): tensor for name, tensor in p.items()}
        h, states = torch.zeros_like(a[:, 0]) if h is None else h, []
        for xi in a.unbind(1):
            h = step(cell, xi, h)
            states.append(h)
        out = torch.stack(states, 1)
        out = out.square() * torch.sigmoid(out)
        return {"y": out @ p["out_proj.weight"].T, "S": h, "traj": torch.stack(states), "pre_out": out}

    return layer
