"""Checks under bf16 autocast."""

from typing import Any

import torch
from torch import Tensor

from rnn_lab.layer import Layer
from rnn_lab.tensors import relative_error
from rnn_lab.testing.contract import check, expect
from rnn_lab.testing.measure import nan_filled
from rnn_lab.testing.subject import BATCH, Subject

_NUDGE = 2.0**-11
"""Relative change of the state that a bf16 number, with its 8 bits, rounds away."""
_SHORT, _LONG = 4, 256
_ALLOWED = 0.25
_FORGOTTEN = 1e-3


@check("state-precision", "the state is fp32 under bf16 autocast, inside a pass too", needs=("backends",))
def state_precision(subject: Subject, cfg: Any) -> str | None:
    """The state answers a change that bf16 cannot hold as it does in fp64.

    Outright errors cannot tell: bf16 inputs already cost as much as a rounded state does, while a change of
    the initial state by 2^-11 is either carried on or rounded away. A tensor whose end does not depend on its
    start, such as a convolution's past, has nothing to carry and is left out.
    """
    layer, exact = subject.layer(cfg), subject.layer(cfg, dtype=torch.float64)
    kind = torch.device(subject.device).type
    with torch.no_grad(), torch.autocast(kind, torch.bfloat16), nan_filled():
        _, state = layer(subject.x(cfg, _LONG))
    low = {key: tensor.dtype for key, tensor in state.items() if tensor.dtype != torch.float32}
    expect(not low, f"under bf16 autocast the returned state has dtypes {low}")
    left_out = []
    for key in subject.model.state_shapes(cfg):
        with torch.no_grad():
            true = _answer(subject, exact, cfg, key, torch.float64)
            with torch.autocast(kind, torch.bfloat16), nan_filled():
                found = _answer(subject, layer, cfg, key, torch.float32)
        nudged = subject.state(cfg, dtype=torch.float64)[key].square().mean().sqrt() * _NUDGE
        if true.square().mean().sqrt() < _FORGOTTEN * nudged:
            left_out.append(key)
            continue
        r = relative_error(found, true)
        expect(r <= _ALLOWED, f"state {key!r} is rounded to bf16 on the way: its answer to 2^-11 has r = {r:.2g}")
    return f"forgotten within {_SHORT} steps: {', '.join(left_out)}" if left_out else None


def _answer(subject: Subject, layer: Layer, cfg: Any, key: str, dtype: torch.dtype) -> Tensor:
    """Change of the final state `key` when its start is scaled by 1 + 2^-11."""
    x_BTD, start = subject.x(cfg, _SHORT, dtype=dtype), subject.state(cfg, dtype=dtype)
    _, plain = layer(x_BTD, start)
    _, nudged = layer(x_BTD, {**start, key: start[key] * (1 + _NUDGE)})
    change: Tensor = nudged[key].double() - plain[key].double()
    return change


@check("bf16", "forward and backward are finite under bf16 autocast", needs=("state-precision",))
def bf16(subject: Subject, cfg: Any) -> None:
    """From a zero state, as training starts: outputs, states and all gradients."""
    for layer in (subject.layer(cfg), subject.plain_layer(cfg)):
        x_BTD = subject.x(cfg).requires_grad_()
        with nan_filled():
            with torch.autocast(torch.device(subject.device).type, torch.bfloat16):
                y_BTD, state = layer(x_BTD, layer.init_state(BATCH))
            results = {"output": y_BTD} | {f"state {key}": tensor for key, tensor in state.items()}
            torch.stack([tensor.float().square().mean() for tensor in results.values()]).sum().backward()  # type: ignore[no-untyped-call]
        for name, parameter in (("input", x_BTD), *layer.named_parameters()):
            if parameter.grad is not None:
                results[f"gradient by {name}"] = parameter.grad
        bad = [name for name, tensor in results.items() if not tensor.isfinite().all()]
        expect(not bad, f"not finite: {bad}")
