"""Stand-ins for the source's models, and cases in the golden format made from them.

Written from the models' equations with tensors named as the source names them, and without any of our layers:
they make cases for the runner's own tests and for configurations of which no golden data are at hand.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

B, T, D = 2, 5, 6
Params = dict[str, Tensor]
Run = Callable[[Params, Tensor, Tensor | None], dict[str, Tensor]]
"""From parameters, input and initial state to `y`, `S`, `traj` and perhaps `pre_out`."""


def draw(*shape: int, scale: float = 0.5) -> Tensor:
    """Normal values in double precision."""
    return torch.randn(*shape, dtype=torch.float64) * scale


def save(folder: Path, name: str, sidecar: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write one case; its path without suffix."""
    (folder / f"{name}.json").write_text(json.dumps(sidecar))
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    return folder / name


def vector_case(
    folder: Path,
    name: str,
    sidecar: dict[str, Any],
    params: Params,
    run: Run,
    h0: Tensor | None = None,
    aux: Mapping[str, Tensor] | None = None,
    stack: Callable[[Tensor], Tensor] = lambda states: states,
) -> Path:
    """A case with runs A and B; `h0` where the state is no `[B, d]`, `stack` is the case's layout of all states."""
    h0 = draw(B, params["out_proj.weight"].shape[1]) if h0 is None else h0
    tensors = {f"param.{k}": v for k, v in params.items()} | dict(aux or {})
    tensors |= {
        "in.x": draw(B, T, D),
        "in.dout": draw(B, T, D),
        "in.h0": h0,
        "in.dh_final": draw(*h0.shape),
    }
    for letter in "AB":
        leaves = _leaves(params, tensors["in.x"], h0 if letter == "B" else None)
        result = run({k: leaves[f"param.{k}"] for k in params}, leaves["x"], leaves.get("h0"))
        loss = (result["y"] * tensors["in.dout"]).sum()
        loss = loss + ((result["S"] * tensors["in.dh_final"]).sum() if letter == "B" else 0)
        zero = leaves.get("h0", torch.zeros_like(h0))
        tensors |= {
            f"{letter}.out": result["y"],
            f"{letter}.h_final": result["S"],
            f"{letter}.loss": loss.reshape(1),
            f"{letter}.cell_out": result["pre_out"].transpose(0, 1),
            f"{letter}.h_all": stack(torch.cat([zero[None], result["traj"]])),
        }
        tensors |= _grads(loss, leaves, f"{letter}.grad.")
    sides = {"layouts": {"h_all": "[T+1,B,d]"}, "dim": D, "d_inner": h0.shape[-1]}
    return save(folder, name, sides | sidecar, tensors)


def matrix_case(
    folder: Path,
    name: str,
    sidecar: dict[str, Any],
    params: Params,
    run: Run,
    S0: Tensor | None,
    stack: Callable[[Tensor], Tensor] = lambda state: state,
    time_first: bool = False,
) -> Path:
    """A case with `grad` and `gradS`; `stack` is the case's layout of the state; without S0 it has none."""
    x = draw(B, T, D)
    leaves = _leaves(params, x, S0, "S0")
    given = {k: leaves[f"param.{k}"] for k in params}
    result, zero = run(given, leaves["x"], leaves.get("S0")), run(given, x, None)
    dy = draw(*result["y"].shape)

    def turn(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1) if time_first else tensor

    tensors = {f"param.{k}": v for k, v in params.items()}
    tensors |= {"in.x": turn(x), "cot.dy": turn(dy), "out.y": turn(result["y"])}
    tensors["out.y_zero_state"] = turn(zero["y"])
    if "pre_out" in result:
        tensors["mid.pre_out"] = turn(result["pre_out"])
    loss = (result["y"] * dy).sum()
    tensors |= _grads(loss, leaves, "grad.", "")
    if S0 is not None:
        dS = draw(*S0.shape)
        tensors |= {"in.S0": stack(S0), "cot.dS_final": stack(dS), "out.S_final": stack(result["S"])}
        tensors |= {"out.S_final_zero_state": stack(zero["S"]), "mid.S_traj": stack(result["traj"])}
        tensors |= _grads(loss + (result["S"] * dS).sum(), leaves, "gradS.", "")
    for key in ("grad.S0", "gradS.S0", "grad.x", "gradS.x"):
        if key in tensors:
            tensors[key] = (stack if key.endswith("S0") else turn)(tensors[key])
    frozen = [k for k in params if f"grad.{k}" not in tensors]
    return save(folder, name, {"B": B, "T": T, "params_without_gradient": frozen} | sidecar, tensors)


def _leaves(params: Params, x: Tensor, h: Tensor | None, state: str = "h0") -> Params:
    leaves = {"x": x} | ({state: h} if h is not None else {}) | {f"param.{k}": v for k, v in params.items()}
    return {k: v.detach().clone().requires_grad_() for k, v in leaves.items()}


def _grads(loss: Tensor, leaves: Params, prefix: str, params: str = "param.") -> Params:
    found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    names = [name.replace("param.", params) for name in leaves]
    return {prefix + name: g for name, g in zip(names, found, strict=True) if g is not None}


def e61(p: Params, x: Tensor, h: Tensor | None) -> dict[str, Tensor]:
    """h = a h + (1 - a) v, read as h^2 sigmoid(h)."""
    xi = F.silu(x @ p["in_proj.weight"].T)
    a = torch.sigmoid(xi @ p["cell.W_alpha"].T + p["cell.b_alpha"])
    v = xi @ p["cell.W_v"].T + p["cell.b_v"]
    h, states = torch.zeros_like(v[:, 0]) if h is None else h, []
    for t in range(x.shape[1]):
        h = a[:, t] * h + (1 - a[:, t]) * v[:, t]
        states.append(h)
    h_all = torch.stack(states, 1)
    out = h_all.square() * torch.sigmoid(h_all)
    return {"y": out @ p["out_proj.weight"].T, "S": h, "traj": h_all.transpose(0, 1), "pre_out": out}


def e61_params(d: int) -> Params:
    """Parameters of `e61`."""
    names = {"in_proj.weight": (d, D), "cell.W_alpha": (d, d), "cell.b_alpha": (d,)}
    names |= {"cell.W_v": (d, d), "cell.b_v": (d,), "out_proj.weight": (D, d)}
    return {name: draw(*shape) for name, shape in names.items()}


def lstm(p: Params, x: Tensor, s: Tensor | None) -> dict[str, Tensor]:
    """LSTM with gates packed f, i, o and one bias; the state is [B, 2, d]."""
    d = x.shape[2]
    s = torch.zeros(len(x), 2, d, dtype=x.dtype) if s is None else s
    h, c, outs, states = s[:, 0], s[:, 1], [], []
    for t in range(x.shape[1]):
        gates = x[:, t] @ p["cell.W_fio"].T + h @ p["cell.U_fio"].T + p["cell.b_fio"]
        f, i, o = torch.sigmoid(gates).chunk(3, -1)
        c = f * c + i * torch.tanh(x[:, t] @ p["cell.W_c"].T + h @ p["cell.U_c"].T + p["cell.b_c"])
        h = o * torch.tanh(c)
        outs.append(h)
        states.append(torch.stack([h, c], 1))
    return {"y": torch.stack(outs, 1), "S": states[-1], "traj": torch.stack(states)}


def lstm_params() -> Params:
    """Parameters of `lstm`."""
    shapes = {"W_fio": (3 * D, D), "U_fio": (3 * D, D), "b_fio": (3 * D,)}
    shapes |= {"W_c": (D, D), "U_c": (D, D), "b_c": (D,)}
    return {f"cell.{name}": draw(*shape) for name, shape in shapes.items()}


def gru(p: Params, x: Tensor, h: Tensor | None) -> dict[str, Tensor]:
    """GRU with gates packed z, r, one bias, and the reset before the product."""
    h, states = torch.zeros_like(x[:, 0]) if h is None else h, []
    for t in range(x.shape[1]):
        gates = torch.sigmoid(x[:, t] @ p["cell.W_zr"].T + h @ p["cell.U_zr"].T + p["cell.b_zr"])
        z, r = gates.chunk(2, -1)
        new = torch.tanh(x[:, t] @ p["cell.W_h"].T + (r * h) @ p["cell.U_h"].T + p["cell.b_h"])
        h = (1 - z) * h + z * new
        states.append(h)
    return {"y": torch.stack(states, 1), "S": h, "traj": torch.stack(states)}


def gru_params() -> Params:
    """Parameters of `gru`."""
    shapes = {
        "W_zr": (2 * D, D),
        "U_zr": (2 * D, D),
        "b_zr": (2 * D,),
        "W_h": (D, D),
        "U_h": (D, D),
        "b_h": (D,),
    }
    return {f"cell.{name}": draw(*shape) for name, shape in shapes.items()}


def lm_case(
    folder: Path,
    name: str,
    norm: str,
    *,
    level: int = 61,
    layer_params: Callable[[int], Params] = e61_params,
    run: Run = e61,
    rank: int | None = None,
) -> Path:
    """A language model of two layers, with `RMSNorm` or `LayerNorm`; `layer_params` takes the inner width."""
    d = 9
    params = {"embedding.weight": draw(256, D)}
    for place in ("layer_norms.0", "layer_norms.1", "norm"):
        params[f"{place}.weight"] = draw(D)
        params |= {f"{place}.bias": draw(D)} if norm == "LayerNorm" else {}
    params |= {f"layers.{i}.{k}": v for i in range(2) for k, v in layer_params(d).items()}
    chunks = {f"in.chunk{i}": torch.randint(256, (B, T + 1)) for i in (1, 2)}
    lengths = torch.tensor([T + 1, 4])
    tensors = {f"param.{k}": v for k, v in params.items()} | chunks | {"in.actual_length": lengths}
    hidden: list[Tensor] | None = None
    for letter, chunk in zip("AB", chunks.values(), strict=True):
        p = {k: v.clone().requires_grad_() for k, v in params.items()}
        logits, hidden = _lm(p, chunk[:, :-1], hidden, run)
        loss = F.cross_entropy(logits.flatten(0, 1), chunk[:, 1:].flatten())
        grads = torch.autograd.grad(loss, list(p.values()))
        tensors |= {f"{letter}.grad.{k}": g for k, g in zip(p, grads, strict=True)}
        tensors |= {f"{letter}.hidden.{i}": h for i, h in enumerate(hidden)} | {f"{letter}.loss": loss.reshape(1)}
        hidden = [h.detach() for h in hidden]
        if letter == "A":
            each = -logits.log_softmax(-1).gather(-1, chunk[:, 1:, None])[..., 0]
            counted = torch.stack([torch.arange(T) < length - 1 for length in lengths])
            tensors |= {"A.logits": logits, "C.loss": each[counted].mean().reshape(1)}
    ctor = {"vocab_size": 256, "dim": D, "depth": 2, "level": level, "expansion": 1.5, "r_h_mode": "none"}
    sidecar = {
        "family": f"e{level}",
        "level_key": level,
        "norm": f"{norm}(eps=1e-5, weight)",
        "ctor": ctor,
        "d_inner": d,
    }
    return save(folder, name, sidecar | {"level_resolved": {"rank": rank, "w_h_mode": "none"}}, tensors)


def _lm(p: Params, tokens: Tensor, hidden: list[Tensor] | None, run: Run) -> tuple[Tensor, list[Tensor]]:
    def norm(place: str, r: Tensor) -> Tensor:
        if f"{place}.bias" in p:
            return F.layer_norm(r, (D,), p[f"{place}.weight"], p[f"{place}.bias"], 1e-5)
        return r / (r.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{place}.weight"]

    r, last = p["embedding.weight"][tokens], []
    for i in range(2):
        inner = {k.removeprefix(f"layers.{i}."): v for k, v in p.items() if k.startswith(f"layers.{i}.")}
        result = run(inner, norm(f"layer_norms.{i}", r), None if hidden is None else hidden[i])
        r = r + result["y"]
        last.append(result["S"])
    return norm("norm", r) @ p["embedding.weight"].T, last
