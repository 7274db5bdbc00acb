"""What libraries have for a state that meets a recurrent matrix: cuDNN, FlashRNN, and a plain loop in 16 bits.

cuDNN's tanh RNN, GRU and LSTM are given our recurrent weights. Where our cell on the same input then computes the same
function they are peers, checked against our reference in fp64; else yardsticks, checked against torch's own loop.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rnn_lab.bench.calls import Bound, bind
from rnn_lab.bench.cases import Case, needs_cuda, random, tensors
from rnn_lab.bench.implementation import Implementation, reference, yardstick
from rnn_lab.discovery.libraries import load, load_flashrnn
from rnn_lab.kernels import recurrence
from rnn_lab.kernels.cell import Cell, Streams
from rnn_lab.tensors import relative_error

GATES = {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}
"""cuDNN's cell by the number of recurrent products."""
SAME = 1e-9
"""Largest relative error, in fp64, of two forms of one function."""


def gates_of(case: Case) -> int | None:
    """How many products with matrices as wide as the state a step has, where cuDNN has such a cell; else None."""
    if case.state is None:
        return None
    d = case.state[-1]
    if case.state not in ((d,), (2, d)):
        return None
    if getattr(case.args[0], "low_rank", None) is not None:
        return 1
    shapes = [t.shape for t in tensors(case.args) if t.dim() == 2 and t.shape != (case.batch, d)]
    return next((s[0] // d for s in shapes if s[1] == d and s[0] % d == 0 and s[0] // d in GATES), None)


def dense(case: Case, gates: int) -> Iterator[Implementation]:
    """Peers and yardsticks of a case with so many recurrent products."""
    if case.op is recurrence.RECURRENCE and case.dtype in (torch.bfloat16, torch.float16):
        yield Implementation(
            f"plain loop {_name(case.dtype)}",
            "peer",
            lambda case: bind(partial(_rounded, case.dtype), case.args),
            reference,
            lambda case: None,
            "the state is rounded at every step",
        )
    cell = GATES[gates]
    kind, plain, whose = ("peer", _by_ours, "our weights, ") if _is_ours(case, gates) else ("yardstick", _native, "")
    note = f"torch.nn.{cell.__name__}, {whose}its product of the input included"
    for dtype in (torch.float16, torch.bfloat16) if case.dtype == torch.bfloat16 else (case.dtype,):
        name, fast, exact = f"cuDNN {cell.__name__} {_name(dtype)}", *(partial(f, cell, dtype) for f in (_cudnn, plain))
        yield Implementation(name, kind, fast, exact, needs_cuda, note)
    if gates != 3:
        function = "elman" if gates == 1 else "lstm"
        for backend in ("cuda_fused", "cuda"):
            run, vanilla = partial(_flashrnn, function, backend), partial(_flashrnn_plain, function)
            name, inputs = f"FlashRNN {function} {backend}", partial(_flashrnn_inputs, gates)
            made = yardstick(name, run, vanilla, inputs, "one head")
            yield replace(made, uncapturable="it launches on streams of its own")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounded(
    dtype: torch.dtype, cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loop over time as one would write it: everything, the state too, in the dtype of the autocast."""
    inputs, weights, queries, biases, gates = ([x.to(dtype) for x in part] for part in streams)
    if cell.before is not None:
        inputs = list(cell.before(*inputs, *biases))
    y, h = recurrence.walk(cell, h.to(dtype), inputs, weights, queries, reset_BT)
    return y if cell.after is None else cell.after(y, *gates), h


def _module(cell: type[nn.RNNBase], dtype: torch.dtype, case: Case) -> tuple[nn.RNNBase, Tensor]:
    """The library's module with our recurrent weights, where they fit it, and an input `[B, T, d]`."""
    assert case.state is not None
    d = case.state[-1]
    torch.manual_seed(3)
    module: nn.RNNBase = cell(d, d, batch_first=True)  # type: ignore[call-arg,arg-type]
    own: Any = module
    with torch.no_grad():
        for w in _weights(case):
            target = own.weight_hh_l0 if w.dim() == 2 else own.bias_hh_l0
            if w.shape == target.shape:
                target.copy_(w)
    return module.to(case.device, dtype), random(case, d, seed=1).to(dtype)


def _weights(case: Case) -> tuple[Tensor, ...]:
    return case.args[2].weights if case.op is recurrence.RECURRENCE else ()


def _cudnn(cell: type[nn.RNNBase], dtype: torch.dtype, case: Case) -> Bound:
    module, x_BTd = _module(cell, dtype, case)
    x_BTd.requires_grad_()
    return Bound(lambda: module(x_BTd)[0], [x_BTd, *module.parameters()])


def _native(cell: type[nn.RNNBase], dtype: torch.dtype, case: Case) -> Bound:
    """The same weights and input in fp64, by torch's own loop."""
    module, x_BTd = _module(cell, dtype, case)
    module, x_BTd = module.double(), x_BTd.double().requires_grad_()

    def run() -> Any:
        with torch.backends.cudnn.flags(enabled=False):
            return module(x_BTd)[0]

    return Bound(run, [x_BTd, *module.parameters()])


def _by_ours(cell: type[nn.RNNBase], dtype: torch.dtype, case: Case) -> Bound:
    """The same weights and input in fp64, by our cell and the reference."""
    module, x_BTd = _module(cell, dtype, case)
    module, x_BTd = module.double(), x_BTd.double().requires_grad_()
    return Bound(lambda: _recurred(case, module, x_BTd), [x_BTd, *module.parameters()])


def _recurred(case: Case, module: Any, x_BTd: Tensor) -> Tensor:
    """Outputs of our cell, its gate left out, on what the module's input product gives."""
    given, weights = case.args[0], _weights(case)
    u = nn.functional.linear(x_BTd, module.weight_ih_l0, module.bias_ih_l0)
    own = [module.weight_hh_l0, module.bias_hh_l0][: len(weights)]
    if len(weights) == 1:
        u = u + module.bias_hh_l0
    assert case.state is not None
    zeros = u.new_zeros(u.shape[0], *case.state)
    return recurrence.reference(Cell(given.update, given.read), zeros, Streams((u,), tuple(own)))[0]


def _is_ours(case: Case, gates: int) -> bool:
    """Whether our cell computes the library's function, seen in fp64 on a few steps."""
    if case.op is not recurrence.RECURRENCE or len(case.args[2].inputs) != 1 or case.state is None:
        return False
    torch.manual_seed(0)
    d = case.state[-1]
    module: Any = GATES[gates](d, d, batch_first=True)
    module = module.to(case.device, torch.float64)
    shapes = [p.shape for p in (module.weight_hh_l0, module.bias_hh_l0)]
    if [w.shape for w in _weights(case)] not in (shapes[:1], shapes):
        return False
    x = torch.randn(2, 3, d, dtype=torch.float64, device=case.device)
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
            ours = _recurred(case, module, x)
            return ours.shape == x.shape and relative_error(ours, module(x)[0]) < SAME
    except Exception:  # the cell is anybody's, and was made for other weights
        return False


def _flashrnn_inputs(gates: int, case: Case) -> tuple[Tensor, ...]:
    """Input `[B, T, G, 1, d]`, recurrent matrices `[G, 1, d, d]`, biases `[G, 1, d]`."""
    assert case.state is not None
    d = case.state[-1]
    generator = torch.Generator(case.device).manual_seed(3)
    R = torch.randn(gates, 1, d, d, generator=generator, device=case.device) / d**0.5
    b = torch.zeros(gates, 1, d, device=case.device)
    return tuple(t.to(torch.bfloat16) for t in (random(case, gates, 1, d, seed=1), R, b))


def _flashrnn(function: str, backend: str, Wx: Tensor, R: Tensor, b: Tensor) -> Any:
    states, _ = load_flashrnn().flashrnn(Wx, R, b, function=function, backend=backend, dtype="bfloat16")
    return states[0]


def _flashrnn_plain(function: str, Wx: Tensor, R: Tensor, b: Tensor) -> Any:
    """Its own plain form."""
    Wx, R, b = (t.float() for t in (Wx, R, b))
    states, _ = load("flashrnn").flashrnn(Wx, R, b, function=function, backend="vanilla", dtype="float32")
    return states[0]
