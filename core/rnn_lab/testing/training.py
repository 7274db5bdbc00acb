"""Checks that take seconds, on the default configuration only: learning and torch.compile."""

import math
from typing import Any

import torch
from torch import Tensor

from rnn_lab.layer import Layer
from rnn_lab.testing.contract import ContractError, NotApplicableError, check, expect
from rnn_lab.testing.measure import expect_all_close
from rnn_lab.testing.subject import Subject

_CYCLE = b"abcdefgh"
_STEPS, _BATCH, _WINDOW, _RATE = 80, 8, 25, 0.02
_COMPILED_TIME = 3
_EQUAL = 1e-12


@check("learns", "two layers learn a cycle of bytes in 80 steps", ("gradients", "backends"), every_variant=False)
def learns(subject: Subject, cfg: Any) -> str:
    """The loss stays finite and falls below ln 2, over three steps in a row; at this rate some rise again.

    Embedding and head are one matrix, so without its layers the model scores pairs of bytes alike in both
    orders and cannot tell the next byte from the one before: ln 2 at best. A configuration that
    `diverges` by its own declaration has to do so.
    """
    declared = subject.model.diverges(cfg)
    lm = subject.lm(cfg)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=_RATE)
    text = torch.tensor(list(_CYCLE * 8), dtype=torch.uint8, device=subject.device)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(_STEPS):
        starts = torch.randint(0, len(_CYCLE), (_BATCH,), generator=generator).tolist()
        lm.prepare()
        loss, _ = lm.loss(torch.stack([text[i : i + _WINDOW] for i in starts]))
        if declared and not loss.isfinite():
            raise NotApplicableError(f"diverges at step {step}, as declared: {declared}")
        expect(loss.isfinite(), f"the loss is {loss.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    lowest = min(sum(losses[i : i + 3]) / 3 for i in range(_STEPS - 2))
    expect(not declared, f"declared to diverge ({declared}), but the loss stays finite")
    told = f"loss {losses[0]:.2f} -> {lowest:.2f} nats in {_STEPS} steps"
    expect(lowest < math.log(2), f"{told}: not below ln 2 = 0.69, what a model with dead layers reaches")
    return told


@check(
    "compile",
    "torch.compile traces the layer whole and gives equal results",
    ("backends",),
    every_variant=False,
)
def compile_equal(subject: Subject, cfg: Any) -> None:
    """aot_eager in one graph, fp64: outputs, states and all gradients; a graph break is a failure."""
    layer = subject.layer(cfg, dtype=torch.float64)
    expected = _pass(subject, cfg, layer, layer)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        found = _pass(subject, cfg, layer, compiled)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ContractError(f"torch.compile(fullgraph=True): {type(error).__name__}: {first}") from error
    finally:
        torch._dynamo.reset()
    expect_all_close("compiled", found, expected, _EQUAL)


def _pass(subject: Subject, cfg: Any, layer: Layer, run: Any) -> dict[str, Tensor]:
    """Results and gradients of one pass of `run`, which is `layer` or its compiled form."""
    x_BTD = subject.x(cfg, _COMPILED_TIME, dtype=torch.float64).requires_grad_()
    y_BTD, state = run(x_BTD, subject.state(cfg, dtype=torch.float64))
    results = {"output": y_BTD} | {f"state {key}": tensor for key, tensor in state.items()}
    parameters = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(
        torch.stack([tensor.square().sum() for tensor in results.values()]).sum(),
        [x_BTD, *parameters.values()],
        allow_unused=True,
    )
    names = ("input", *parameters)
    return results | {f"gradient by {n}": g for n, g in zip(names, found, strict=True) if g is not None}
