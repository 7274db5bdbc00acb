"""One of our layers with a golden case's parameters, run by one backend in one precision."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rnn_lab.layer import Layer
from torch import Tensor, nn

from .cases import Case, CaseError
from .fields import Plan
from .links import Link, copy_in, link_all
from .measure import GRADIENT, Entry

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.float32}
"""Of parameters and inputs; bf16 is autocast over fp32 parameters, as in training."""
NUDGE = 0.05
"""Relative: enough that every draw rounds anew, little enough that it stays the case that it is."""


@dataclass(frozen=True)
class Setting:
    """How to run: `backend` None leaves RNN_LAB_KERNELS as it is, `draw` 0 the golden inputs as they are."""

    backend: str | None = None
    dtype: str = "fp64"
    device: str = "cpu"
    draw: int = 0

    def tensor(self, tensor: Tensor, grad: bool = False) -> Tensor:
        """A copy of a golden tensor in this precision, on this device, in other draws than the first a bit off it."""
        tensor = tensor.detach().double()
        if self.draw:
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(self.draw), dtype=tensor.dtype)
            tensor = tensor * (1 + NUDGE * noise)
        return tensor.to(self.device, DTYPES[self.dtype], copy=True).requires_grad_(grad)

    @contextmanager
    def active(self) -> Iterator[None]:
        """RNN_LAB_KERNELS and autocast as asked."""
        before = os.environ.get("RNN_LAB_KERNELS")
        if self.backend is not None:
            os.environ["RNN_LAB_KERNELS"] = self.backend
        try:
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.dtype == "bf16"):
                yield
        finally:
            if self.backend is not None:
                os.environ.pop("RNN_LAB_KERNELS")
                if before is not None:
                    os.environ["RNN_LAB_KERNELS"] = before

    def no_fallback(self, layer: Layer) -> None:
        """Raise CaseError when anything but the named backend ran."""
        if self.backend is None:
            return
        for choice in layer.backends.values():
            if choice.backend != self.backend:
                why = "; ".join(f"{name}: {reason}" for name, reason in choice.refused)
                raise CaseError(f"{choice.op} fell back to {choice.backend} ({why})")
        if not layer.backends:
            raise CaseError(f"nothing in this layer runs through a backend, so {self.backend} ran nothing")


class Subject:
    """A built layer with the case's parameters; with `cell_only` its recurrence without the projections."""

    def __init__(self, plan: Plan, case: Case, setting: Setting) -> None:
        self.setting, cfg = setting, plan.config()
        self.layer = plan.layer_cls(cfg).to(setting.device, DTYPES[setting.dtype])
        self.links = link_all(plan.model, self.layer, case)
        shell = ("in_proj.", "out_proj.")
        self.cell_only = hasattr(self.layer, "run_cell") and not any(
            link.own.startswith(shell) for link in self.links.values()
        )
        copy_in(self.layer, self.links, case, shell if self.cell_only else ())
        self.key = next(iter(self.layer.state_shapes(cfg)))
        self.starts = power_starts(self.layer, case)
        self.pre_out: Tensor | None = None
        for name in ("out_proj", "o_proj"):
            if isinstance(module := getattr(self.layer, name, None), nn.Module):
                module.register_forward_pre_hook(self._keep)
        _check_expectations(plan.expect, self.layer, cfg)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.pre_out = args[0]

    def forward(self, x_BTD: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output and last main state; a power iteration starts from the case's own vectors every time."""
        for module, u in self.starts.items():
            with torch.no_grad():
                module.get_buffer("u").copy_(u)
            module.prepare()  # type: ignore[operator]
        state = self.layer.init_state(x_BTD.shape[0])
        if h is not None:
            state[self.key] = h
        with self.setting.active():
            if self.cell_only:
                y, last = self.layer.run_cell(x_BTD, state[self.key])  # type: ignore[operator]
            else:
                y, new = self.layer(x_BTD, None if h is None else state)
                last = new[self.key]
        self.setting.no_fallback(self.layer)
        return y, last

    def gradients(
        self, loss: Tensor, leaves: Mapping[str, Tensor], case: Case, prefixes: tuple[str, str]
    ) -> list[Entry]:
        """See `gradients`."""
        return gradients(self.layer, loss, leaves, self.links, case, prefixes)

    def trajectory(self, x_BTD: Tensor, h: Tensor | None) -> Tensor:
        """The states after 1, 2, ... T steps, stacked on a first axis; each from a pass of its own."""
        with torch.no_grad():
            return torch.stack([self.forward(x_BTD[:, :t], h)[1] for t in range(1, x_BTD.shape[1] + 1)])


def gradients(
    module: nn.Module,
    loss: Tensor,
    leaves: Mapping[str, Tensor],
    links: Mapping[str, Link],
    case: Case,
    prefixes: tuple[str, str],
) -> list[Entry]:
    """Entries for every gradient of `loss`: inputs under prefixes[0], parameters under prefixes[1]."""
    own = dict(module.named_parameters())
    trained = {name: parameter for name, parameter in own.items() if parameter.requires_grad}
    found = torch.autograd.grad(loss, [*leaves.values(), *trained.values()], retain_graph=True, allow_unused=True)
    by_leaf = dict(zip(leaves, found, strict=False))
    by_own = dict(zip(trained, found[len(leaves) :], strict=True))
    entries = [
        Entry(prefixes[0] + name, _or_zero(by_leaf[name], leaf), case.get(prefixes[0] + name), GRADIENT)
        for name, leaf in leaves.items()
    ]
    frozen = case.sidecar.get("params_without_gradient") or ()
    for name, link in links.items():
        grad = link.take(_or_zero(by_own.get(link.own), own[link.own]))
        key = f"{prefixes[1]}{name}"
        if name in frozen and key not in case:
            entries.append(Entry(f"{key} (none in the source)", grad, torch.zeros(grad.shape), GRADIENT))
        else:
            entries.append(Entry(key, grad, case.get(key), GRADIENT))
    return entries


def _or_zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def power_starts(layer: Layer, case: Case) -> dict[nn.Module, Tensor]:
    """Start vectors of the power iterations: `aux.u0` for the only one, `buffer.u_k0` for that of W_k."""
    rescaled = {name: m for name, m in layer.named_modules() if "u" in dict(m.named_buffers(recurse=False))}
    starts: dict[nn.Module, Tensor] = {}
    for name, module in rescaled.items():
        keys = [f"buffer.u_{name.split('.')[0].removeprefix('W_')}0"]
        if len(rescaled) == 1:
            keys.append("aux.u0")
        key = next((key for key in keys if key in case), None)
        if key is None:
            raise CaseError(f"the case has no start vector for the power iteration of our {name}")
        starts[module] = case.get(key)
    return starts


def _check_expectations(expect: Mapping[str, Any], layer: Layer, cfg: Any) -> None:
    """What the sidecar says and our Config does not: widths, taps and spectral norms."""
    modules = list(layer.modules())
    known = {
        "d_inner": [getattr(cfg, "d_inner", None)],
        "d_value": [getattr(cfg, "d_value", None)],
        "spectral_radius": [getattr(m, "radius", None) for m in modules],
        "d_conv": [getattr(m, "kernel", None) for m in modules],
    }
    for key, value in expect.items():
        ours = [own for own in known[key] if own is not None]
        if any(own != value for own in ours):
            raise CaseError(f"config key {key!r} = {value!r}, but our layer has {ours[0]!r}")
