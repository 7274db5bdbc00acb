"""Which view of which parameter of ours is a tensor of the source.

A link goes both ways: loading copies the source's tensor into the view, comparing takes the same view of our
gradient. Names are found by the family's row in `NAMES`, else by the source's own name, else by its symbol.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rnn_lab.layer import Layer
from torch import Tensor, nn

from .cases import Case, CaseError

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Link:
    """Our parameter `own`, of which `take` gives the view that the source keeps as a tensor of its own."""

    own: str
    take: View = lambda p: p


SHELL = {"conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias"}
GATED = {
    "W_alpha": "leak.weight",
    "b_alpha": "leak.bias",
    "W_v": "value.weight",
    "b_v": "value.bias",
    "W_x": "value.weight",
    "W": "value.weight",
    "b": "value.bias",
    "W_k": "write.weight",
    "b_k": "write.bias",
    "W_beta": "write.weight",
    "b_beta": "write.bias",
    "d_alpha": "d_a",
    "U_alpha": "U_a",
    "V_alpha": "V_a",
    "U_beta": "U_b",
}
"""The gated family: a leak, a candidate and a write gate, by whichever name a model of the source calls them."""
E74 = {
    "W": "W_k.weight",
    "W_kvq": "W_k.weight",
    "W_kq": "W_k.weight",
    "log_alpha": "theta",
    "W_alpha": "W_a.weight",
    "b_alpha": "W_a.bias",
    "W_erase": "W_e.weight",
    "b_erase": "W_e.bias",
    "W_write": "W_w.weight",
    "b_write": "W_w.bias",
    "W_gate": "W_a.weight",
    "b_gate": "W_a.bias",
    "W_z_gate": "W_gz.weight",
    "b_z_gate": "W_gz.bias",
}
NAMES: dict[str, dict[str, str]] = {
    "e0": {"W_gate": "W_g.weight", "b_gate": "W_g.bias", "b": "W_x.bias", "w_h_log_scale": "W_h.log_scale"},
    "e1": {"b": "W_x.bias"},
    "e2": {"b": "W_x.bias"},
    "e3": {"b": "W_x.bias"},
    "e4": {"b": "W_x.bias", "U": "W_h.U", "V": "W_h.V"},
    "e5": {"b": "U_x.bias"},
    **dict.fromkeys(("e61", "e62", "e63", "e64", "e65", "e66", "e67", "e68"), GATED),
    "e63m": {"b": "W_x.bias"},
    **dict.fromkeys(("e74", "e74d"), E74),
    "e88": {"value_residual": "D_v", "decay_logit": "theta", "o_norm.weight": "o_norm_weight"},
    "mingru": {"to_hidden_and_gate.weight": "in_proj.weight", "to_out.weight": "out_proj.weight"},
    "minlstm": {"to_hidden_and_gates.weight": "in_proj.weight", "to_out.weight": "out_proj.weight"},
    "llama": {
        **{f"block.{norm}.weight": norm for norm in ("attention_norm", "ffn_norm")},
        **{f"block.attention.{w}.weight": f"{w}.weight" for w in ("wq", "wk", "wv", "wo")},
        **{f"block.ffn.{w}.weight": f"{w}.weight" for w in ("w1", "w2", "w3")},
    },
}
UNUSED = {"e88": ("o_norm_weight",)}
"""Parameters that the source keeps although nothing uses them; ignored only where the case says so."""


def link_all(model: str, layer: Layer, case: Case, prefix: str = "") -> dict[str, Link]:
    """A link for each parameter of the case under `prefix`, by its name without the prefix.

    `UNUSED` parameters that the case lists as without gradient drop out.

    Raises:
        CaseError: a tensor has no counterpart in our layer.

    """
    own = dict(layer.named_parameters())
    symbols = case.sidecar.get("symbols") or {}
    links: dict[str, Link] = {}
    for full in case.parameters():
        if not full.startswith(prefix):
            continue
        name = full.removeprefix(prefix)
        link = _heads(name, layer.cfg) if model in ("e88", "gdn") else None
        if link is None:
            symbol = str(symbols.get(f"param.{name}", symbols.get(name, "")))
            link = _by_name(model, name, symbol, own)
        if link is not None and link.own in own:
            links[name] = _fit(link, own[link.own], case.tensors[f"param.{full}"])
        elif name in UNUSED.get(model, ()) and name in case.sidecar.get("params_without_gradient", ()):
            case.get(f"param.{full}")
        else:
            raise CaseError(f"tensor param.{full} has no counterpart in model {model}")
    return links


def _by_name(model: str, name: str, symbol: str, own: Mapping[str, Tensor]) -> Link | None:
    bare = name
    while bare.startswith("cell."):
        bare = bare.removeprefix("cell.")
    row = SHELL | NAMES.get(model, {})
    if bare in row:
        return Link(row[bare])
    for base in (bare, symbol.split(" ")[0]):
        candidates = [base, f"{base}.weight", f"unused_{base}"]
        if base.startswith("b_"):
            candidates.append(f"W_{base[2:]}.bias")
        for candidate in candidates:
            if candidate in own:
                return Link(candidate)
    return None


def _heads(name: str, cfg: Any) -> Link | None:
    """What E88's and GDN's sources keep apart: q, k, v of projection and convolution, heads of the output."""
    stream, _, rest = name.partition("_")
    if stream in ("q", "k", "v") and rest in ("proj.weight", "conv.weight", "conv1d.weight"):
        index = "qkv".index(stream)
        if index >= len(cfg.widths):
            raise CaseError(f"tensor param.{name}: our values are tied to the keys")
        start = sum(cfg.widths[:index])
        stop = start + cfg.widths[index]
        return Link("conv.weight" if rest.startswith("conv") else "qkv_proj.weight", lambda p: p[start:stop])
    if name.startswith("head_projs."):
        first = int(name.split(".")[1]) * cfg.d_value
        return Link("o_proj.weight", lambda p: p[:, first : first + cfg.d_value])
    return None


def _fit(link: Link, own: Tensor, source: Tensor) -> Link:
    """The link, seen with the source's number of axes where ours stacks gates on an axis of their own."""
    if link.take(own).shape != source.shape and own.dim() == source.dim() + 1:
        return Link(link.own, lambda p: p.flatten(0, 1))
    return link


def copy_in(module: nn.Module, links: Mapping[str, Link], case: Case, left_out: tuple[str, ...] = ()) -> None:
    """Load the source's parameters and check that ours are covered exactly once.

    Raises:
        CaseError: shapes differ, or entries of ours are set twice or not at all.

    """
    own = dict(module.named_parameters())
    filled = dict.fromkeys(own, 0)
    with torch.no_grad():
        for name, link in links.items():
            view, source = link.take(own[link.own]), case.get(f"param.{name}")
            if view.shape != source.shape:
                raise CaseError(
                    f"tensor param.{name} has shape {list(source.shape)}, our {link.own} {list(view.shape)}"
                )
            view.copy_(source)
            filled[link.own] += source.numel()
    for name, count in filled.items():
        if not name.startswith(left_out or ("\0",)) and count != own[name].numel():
            raise CaseError(f"{count} of the {own[name].numel()} entries of our {name} come from the case")
