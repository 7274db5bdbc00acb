"""Checks of derivatives and of backends against each other."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rnn_lab.kernels.dispatch import REFERENCE
from rnn_lab.layer import Layer
from rnn_lab.tensors import relative_error
from rnn_lab.testing.contract import check, expect
from rnn_lab.testing.measure import (
    RefusedError,
    expect_all_close,
    forced,
    kernels,
    nan_filled,
)
from rnn_lab.testing.subject import BATCH, TIME, Subject

FORWARD, GRADIENT = 1e-5, 1e-4
"""r of fp32 against fp64."""
DRAWS = 16
"""Random inputs on which a backend's rounding is judged before it is called worse than the reference's."""

Everything = dict[str, dict[str, Tensor]]
"""Results and gradients of a pass by kind, forward or gradient, and name."""

_STEP = 1e-5
_FD_RELATIVE, _FD_FLOOR = 1e-6, 1e-8


def _resets(subject: Subject) -> Tensor:
    reset_BT = torch.zeros(BATCH, TIME, dtype=torch.bool, device=subject.device)
    reset_BT[0, [2, 6]] = True
    return reset_BT


def _leaves(subject: Subject, layer: Layer, cfg: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that a pass is differentiated by: the input, the initial state, every trained parameter."""
    leaves = {"input": subject.x(cfg, dtype=dtype).requires_grad_()}
    for key, tensor in subject.state(cfg, dtype=dtype).items():
        leaves[f"initial state {key}"] = tensor.requires_grad_()
    return leaves | {name: p for name, p in layer.named_parameters() if p.requires_grad}


def _run(layer: Layer, leaves: dict[str, Tensor], reset_BT: Tensor | None) -> dict[str, Tensor]:
    """The output and the final state."""
    prefix = "initial state "
    state = {key.removeprefix(prefix): t for key, t in leaves.items() if key.startswith(prefix)}
    y_BTD, final = layer(leaves["input"], state, reset_BT)
    return {"output": y_BTD} | {f"final state {key}": tensor for key, tensor in final.items()}


def _loss(subject: Subject, results: dict[str, Tensor]) -> Tensor:
    """Random linear function of the output and of the final state."""
    total = torch.zeros((), device=subject.device, dtype=torch.float32)
    for i, tensor in enumerate(results.values()):
        wide = torch.promote_types(tensor.dtype, torch.float32)
        weight = subject.random(tuple(tensor.shape), dtype=wide, seed=20 + i)
        total = total + (tensor.to(wide) * weight).sum()
    return total


def _gradients(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradient by every leaf, zeros where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


@check("gradients", "autograd agrees with finite differences, initial and final states included", ("prepare",))
def gradients(subject: Subject, cfg: Any) -> None:
    """Directional derivatives in fp64, one tensor at a time, with and without resets."""
    layer = subject.layer(cfg, dtype=torch.float64)
    declared = [name for name, part in subject.model.parts(cfg).items() if not getattr(part, "trained", True)]
    frozen = [name for name, p in layer.named_parameters() if not p.requires_grad]
    expect(
        frozen == declared,
        f"parameters that take no gradient: {frozen}, declared are {declared}: "
        "make them buffers, or parts with trained = False",
    )
    for reset_BT in (None, _resets(subject)):
        leaves = _leaves(subject, layer, cfg, torch.float64)
        with nan_filled():
            loss = _loss(subject, _run(layer, leaves, reset_BT))
            found = _gradients(loss, leaves)
        for i, (name, leaf) in enumerate(leaves.items()):
            direction = subject.random(tuple(leaf.shape), dtype=torch.float64, seed=40 + i)
            direction /= direction.norm()
            values = []
            with torch.no_grad():
                kept = leaf.clone()
                for sign in (1, -1):
                    leaf.copy_(kept + sign * _STEP * direction)
                    values.append(_loss(subject, _run(layer, leaves, reset_BT)))
                leaf.copy_(kept)
            numeric = ((values[0] - values[1]) / (2 * _STEP)).item()
            exact = (found[name] * direction).sum().item()
            scale = max(abs(numeric), abs(exact), (found[name].norm() / leaf.numel() ** 0.5).item())
            allowed = _FD_RELATIVE * scale + _FD_FLOOR * (1 + abs(loss.item()))
            where = "with resets" if reset_BT is not None else "without resets"
            expect(
                abs(numeric - exact) <= allowed,
                f"gradient by {name} ({where}): autograd {exact:.8g}, finite difference {numeric:.8g}",
            )


@check("backends", "the reference and every usable kernel agree with fp64, gradients included", ("gradients",))
def backends(subject: Subject, cfg: Any) -> str | None:
    """Fp32 to r < 1e-5 forward and 1e-4 in every gradient; bf16 autocast to twice the reference's own error.

    A backend that refuses these arguments is named in the note with its reason.
    """
    layer = subject.layer(cfg)
    with forced() as operations:
        layer(subject.x(cfg))
    with kernels(REFERENCE):
        layer.backends.clear()
        layer(subject.x(cfg))
    recorded = {op: choice.backend for op, choice in layer.backends.items()}
    wrong = {op: recorded.get(op, "nothing") for op in operations if recorded.get(op) != REFERENCE}
    expect(not wrong, f"RNN_LAB_KERNELS=reference: layer.backends records {wrong}")
    notes = []
    for reset_BT in (None, _resets(subject)):
        exact = _everything(subject, cfg, torch.float64, reset_BT)
        plain = _everything(subject, cfg, torch.float32, reset_BT)
        _expect_agreement(REFERENCE, plain, exact)
        for op in operations.values():
            for backend in op.backends:
                label = f"{op.name}/{backend.name}"
                try:
                    with forced(op.name, backend.name):
                        _expect_agreement(label, _everything(subject, cfg, torch.float32, reset_BT), exact)
                    _expect_no_worse(label, subject, cfg, reset_BT, partial(forced, op.name, backend.name))
                except RefusedError as error:
                    notes.append(f"{label} cannot run here: {error}")
    return "; ".join(dict.fromkeys(notes)) or None


def _everything(subject: Subject, cfg: Any, dtype: torch.dtype, reset_BT: Tensor | None) -> Everything:
    """Results and gradients of one pass; bf16 means autocast over fp32."""
    low = dtype == torch.bfloat16
    wide = torch.float32 if low else dtype
    layer = subject.layer(cfg, dtype=wide)
    leaves = _leaves(subject, layer, cfg, wide)
    with nan_filled():
        with torch.autocast(torch.device(subject.device).type, torch.bfloat16, enabled=low):
            results = _run(layer, leaves, reset_BT)
        found = _gradients(_loss(subject, results), leaves)
    return {"forward": results, "gradient": found}


def _expect_agreement(label: str, actual: Everything, exact: Everything) -> None:
    expect_all_close(f"{label}, fp32 forward:", actual["forward"], exact["forward"], FORWARD)
    expect_all_close(f"{label}, fp32 gradient by", actual["gradient"], exact["gradient"], GRADIENT)


def _expect_no_worse(
    label: str, subject: Subject, cfg: Any, reset_BT: Tensor | None, forcing: Callable[[], AbstractContextManager[Any]]
) -> None:
    """Errors in bf16 of at most twice the reference's.

    Those of a gradient of a few numbers are chance: what is worse on one draw of inputs is judged on DRAWS, as one
    tensor.
    """

    def draw(number: int) -> tuple[Everything, Everything, Everything]:
        drawn = replace(subject, draw=number)
        with forcing():
            rounded = _everything(drawn, cfg, torch.bfloat16, reset_BT)
        dtypes = (torch.bfloat16, torch.float64)
        allowed, exact = (_everything(drawn, cfg, dtype, reset_BT) for dtype in dtypes)
        return rounded, allowed, exact

    draws = [draw(0)]
    if _worse(draws):
        draws += [draw(number) for number in range(1, DRAWS)]
        worse = _worse(draws)
        expect(not worse, f"{label}, bf16 {'; '.join(worse)}")


def _worse(draws: list[tuple[Everything, Everything, Everything]]) -> list[str]:
    """What has more than twice the reference's error, the draws of a tensor taken together."""
    found = []
    for kind, tensors in draws[0][2].items():
        for name in tensors:
            ways = zip(*draws, strict=True)
            actual, reference, exact = (torch.stack([way[kind][name] for way in drawn]) for drawn in ways)
            r, allowed = relative_error(actual, exact), relative_error(reference, exact)
            if not r <= max(2 * allowed, FORWARD):
                found.append(f"{kind} {name}: r = {r:.2g}, reference has {allowed:.2g}")
    return found
