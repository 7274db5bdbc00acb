"""Checks over time: causality, carried state, document resets. All in fp64, where agreement is equality."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnn_lab.layer import Layer, State
from rnn_lab.testing.contract import check, expect
from rnn_lab.testing.measure import expect_all_close, expect_close, nan_filled
from rnn_lab.testing.subject import BATCH, TIME, Subject

EXACT = 1e-12
"""r between two orders of the same fp64 computation."""

_CHUNKS = ((1, 4, 2, 4), (5, 6), (2, 1, 8))

_RESETS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "none": ((), ()),
    "at 0": ((0,), (0,)),
    "in the middle": ((5,), (5,)),
    "several": ((0, 3, 4, 9), (1, 2, 3, 10)),
    "in one sequence": ((), (6,)),
}
"""Steps at which each of the two sequences starts afresh."""


@check("causal", "an output depends on the past of its own sequence only", needs=("prepare",))
def causal(subject: Subject, cfg: Any) -> None:
    """Changing the future or another sequence changes no output; the gradients there are zero."""
    layer = subject.layer(cfg, dtype=torch.float64)
    x_BTD = subject.x(cfg, dtype=torch.float64).requires_grad_()
    with nan_filled():
        y_BTD, _ = layer(x_BTD, subject.state(cfg, dtype=torch.float64))
        other_BTD = subject.x(cfg, dtype=torch.float64, seed=5)
        for t in (0, TIME // 2, TIME - 2):
            changed = torch.cat([x_BTD[:, : t + 1], other_BTD[:, t + 1 :]], 1).detach()
            again, _ = layer(changed, subject.state(cfg, dtype=torch.float64))
            future = f"output up to t = {t} after a change of the input from t = {t + 1} on"
            expect_close(future, again[:, : t + 1], y_BTD[:, : t + 1], EXACT)
            changed = torch.cat([x_BTD[:1], other_BTD[1:]]).detach()
            again, _ = layer(changed, subject.state(cfg, dtype=torch.float64))
            expect_close("output of a sequence after a change of another one", again[:1], y_BTD[:1], EXACT)
            weight = subject.random((cfg.dim,), dtype=torch.float64)
            (gradient,) = torch.autograd.grad(y_BTD[0, t] @ weight, x_BTD, retain_graph=True)
            scale = EXACT * gradient.abs().max()
            leak = gradient[0, t + 1 :].abs().max()
            expect(leak <= scale, f"gradient of the output at t = {t} by later inputs is {leak:.2g}, not zero")
            leak = gradient[1].abs().max()
            expect(leak <= scale, f"gradient of an output by another sequence is {leak:.2g}, not zero")


@check("streaming", "whole pass = uneven chunks with carried state = one step at a time", needs=("causal",))
def streaming(subject: Subject, cfg: Any) -> None:
    """From the zero state and from another one; outputs and final states agree to fp64 rounding."""
    layer, x_BTD = subject.layer(cfg, dtype=torch.float64), subject.x(cfg, dtype=torch.float64)
    zero = layer.init_state(BATCH)
    with torch.no_grad(), nan_filled():
        whole = layer(x_BTD)
        _expect_same("zero state given explicitly", layer(x_BTD, zero), whole)
        for start in (zero, subject.state(cfg, dtype=torch.float64)):
            whole = layer(x_BTD, start)
            for sizes in _CHUNKS:
                _expect_same(f"chunks of {sizes}", _in_chunks(layer, x_BTD, start, None, sizes), whole)
            state, steps = start, []
            for x_BD in x_BTD.unbind(1):
                y_BD, state = layer.step(x_BD, state)
                steps.append(y_BD)
            _expect_same("single steps", (torch.stack(steps, 1), state), whole)


def _expect_same(what: str, actual: tuple[Tensor, State], whole: tuple[Tensor, State]) -> None:
    expect_close(f"{what}: output", actual[0], whole[0], EXACT)
    expect_all_close(f"{what}: state", actual[1], whole[1], EXACT)


def _in_chunks(
    layer: Layer, x_BTD: Tensor, state: State, reset_BT: Tensor | None, sizes: Sequence[int]
) -> tuple[Tensor, State]:
    outputs = []
    resets: Sequence[Tensor | None] = [None] * len(sizes) if reset_BT is None else torch.split(reset_BT, list(sizes), 1)
    for x, reset in zip(torch.split(x_BTD, list(sizes), 1), resets, strict=True):
        y, state = layer(x, state, reset)
        outputs.append(y)
    return torch.cat(outputs, 1), state


@check("reset", "a reset at t equals a fresh start at t, the convolution's past included", needs=("streaming",))
def reset(subject: Subject, cfg: Any) -> None:
    """Resets at 0, in the middle, several, and in one sequence only; whole and cut into chunks.

    States that grow with the length still hold what came before the reset, so there what counts is that the same
    outputs follow from them.
    """
    layer, x_BTD = subject.layer(cfg, dtype=torch.float64), subject.x(cfg, dtype=torch.float64)
    start = subject.state(cfg, dtype=torch.float64)
    with torch.no_grad(), nan_filled():
        for label, rows in _RESETS.items():
            reset_BT = torch.zeros(BATCH, TIME, dtype=torch.bool, device=subject.device)
            for row, steps in enumerate(rows):
                reset_BT[row, list(steps)] = True
            outputs, states = _afresh(layer, x_BTD, start, rows)
            runs = {f"resets {label}": layer(x_BTD, start, reset_BT)}
            for sizes in _CHUNKS:
                runs[f"resets {label}, chunks of {sizes}"] = _in_chunks(layer, x_BTD, start, reset_BT, sizes)
            for what, run in runs.items():
                if subject.model.state_shapes(cfg, 1) == subject.model.state_shapes(cfg, 2):
                    whole = {key: torch.cat([state[key] for state in states]) for key in start}
                    _expect_same(what, run, (torch.cat(outputs), whole))
                else:
                    expect_close(f"{what}: output", run[0], torch.cat(outputs), EXACT)
                    probe_BTD = subject.x(cfg, dtype=torch.float64, seed=6)
                    _expect_same_future(what, layer, run[1], states, probe_BTD)


def _expect_same_future(what: str, layer: Layer, actual: State, expected: list[State], probe_BTD: Tensor) -> None:
    """The same outputs follow from the state of every sequence."""
    for row, state in enumerate(expected):
        x_BTD = probe_BTD[row : row + 1]
        after, _ = layer(x_BTD, {key: tensor[row : row + 1] for key, tensor in actual.items()})
        expect_close(f"{what}: outputs after the final state", after, layer(x_BTD, state)[0], EXACT)


def _afresh(
    layer: Layer, x_BTD: Tensor, start: State, rows: tuple[tuple[int, ...], ...]
) -> tuple[list[Tensor], list[State]]:
    """The same documents run one at a time, each from a zero state: output and final state of every sequence."""
    outputs, states = [], []
    for row, steps in enumerate(rows):
        state, pieces = {key: tensor[row : row + 1] for key, tensor in start.items()}, []
        for first, last in zip((0, *steps), (*steps, TIME), strict=True):
            if first in steps:
                state = layer.init_state(1)
            if last > first:
                y, state = layer(x_BTD[row : row + 1, first:last], state)
                pieces.append(y)
        outputs.append(torch.cat(pieces, 1))
        states.append(state)
    return outputs, states
