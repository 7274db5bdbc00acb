"""Implementations of a case: our backends, the plain loop, and what other libraries have for it.

A *peer* computes the same function on the same inputs. A *yardstick* does not: it is the nearest thing that a library
has for a state of this shape, on inputs of its own, and says what such a state costs there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_lab.bench.calls import PEER_LIMITS, Bound, bind
from rnn_lab.bench.cases import Case, tensors
from rnn_lab.kernels import gated_delta_rule, recurrence
from rnn_lab.kernels.certificates import limits_of
from rnn_lab.kernels.dispatch import REFERENCE, Backend
from rnn_lab.kernels.recurrence import Cell, Streams
from rnn_lab.libraries import load, load_gated_delta_rule

GATES = {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}
"""cuDNN's cell by the number of recurrent products."""


@dataclass(frozen=True)
class Implementation:
    """One way to run a case: what is timed, and the same in fp64.

    `kind` is backend, reference, peer or yardstick; `refuses` gives a reason not to try; one that is not `capturable`
    cannot become part of a CUDA graph.
    """

    name: str
    kind: str
    fast: Callable[[Case], Bound]
    exact: Callable[[Case], Bound]
    refuses: Callable[[Case], str | None]
    note: str = ""
    capturable: bool = True

    def limits(self, case: Case) -> tuple[float, float]:
        """Errors that are allowed."""
        return limits_of(case.args) if self.kind in ("backend", "reference") else PEER_LIMITS


def implementations(case: Case) -> Iterator[Implementation]:
    """Ours in order of preference, the plain loop, then the libraries'."""
    for backend in case.op.backends:
        ours = _ours(backend.name, "backend", backend.run, partial(_refused, backend))
        yield replace(ours, capturable=backend.capturable)
    yield _ours(REFERENCE, "reference", case.op.reference, lambda case: None)
    if case.op.name == "ssd":
        yield _peer("mamba-ssm mamba_chunk_scan_combined", _mamba_ssm)
    elif case.op.name == "gated_delta_rule":
        yield _peer("fla chunk_gated_delta_rule", _fla_delta)
    elif case.state is not None:
        yield from _yardsticks(case, case.state)


def _refused(backend: Backend[Any], case: Case) -> str | None:
    return backend.refuses(*case.args)


def _needs_cuda(case: Case) -> str | None:
    return None if case.device.type == "cuda" else "it needs a CUDA device"


def _ours(
    name: str, kind: str, run: Callable[..., Any], refuses: Callable[[Case], str | None], note: str = ""
) -> Implementation:
    return Implementation(name, kind, lambda case: bind(run, case.args), _reference, refuses, note)


def _reference(case: Case) -> Bound:
    return bind(case.op.reference, case.args, torch.float64)


def _peer(name: str, run: Callable[..., Any]) -> Implementation:
    return _ours(name, "peer", run, _needs_cuda)


def _mamba_ssm(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, *rest: None) -> Any:
    scan = load("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    B, C = B.unsqueeze(2), C.unsqueeze(2)
    return scan(x, dt, A, B, C, chunk_size=256, initial_states=h, return_final_states=True)


def _fla_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor, *rest: None) -> Any:
    chunked = load_gated_delta_rule().chunk_gated_delta_rule
    q, k, beta = (t.to(v.dtype) for t in (q, k, beta))
    return chunked(q, k, v, g=g, beta=beta, scale=1.0, initial_state=S, output_final_state=True)


def _yardsticks(case: Case, state: tuple[int, ...]) -> Iterator[Implementation]:
    """By the shape of the state: a vector with a recurrent matrix, a vector without, a square matrix."""
    d = state[-1]
    shapes = [t.shape for t in tensors(case.args) if t.dim() == 2 and t.shape != (case.batch, d)]
    gates = next((s[0] // d for s in shapes if s[1] == d and s[0] % d == 0 and s[0] // d in GATES), None)
    if gates is not None and state in ((d,), (2, d)):
        yield from _dense(case, gates, d)
    elif len(state) == 1:
        for form in ("chunk_hgrn", "fused_recurrent_hgrn"):
            yield _yardstick(f"fla {form}", partial(_fla_scan, form), _scan, _scan_inputs, "linear scan, bf16")
    elif len(state) in (2, 3) and state[-2] == d:
        yield _yardstick("fla chunk_gated_delta_rule", _fla_linear_delta, _linear_delta, _delta_inputs, "linear")
        recurrent = "fla fused_recurrent_delta_rule"  # its gated form has no backward
        yield _yardstick(recurrent, _fla_recurrent_delta, _undecayed_delta, _undecayed_inputs, "linear, no decay")
        yield _yardstick("fla chunk_simple_gla", _fla_gla, _gla, _gla_inputs, "linear, no delta, scalar decay")


def _yardstick(
    name: str, run: Callable[..., Any], plain: Callable[..., Any], inputs: Callable[[Case], tuple[Tensor, ...]],
    note: str,
) -> Implementation:  # fmt: skip
    return Implementation(
        name, "yardstick", lambda case: bind(run, inputs(case)),
        lambda case: bind(plain, inputs(case), torch.float64), _needs_cuda, note,
    )  # fmt: skip


def _random(case: Case, *shape: int, seed: int) -> Tensor:
    generator = torch.Generator(case.device).manual_seed(seed)
    return torch.randn(case.batch, case.seq_len, *shape, generator=generator, device=case.device)


def _scan_inputs(case: Case) -> tuple[Tensor, ...]:
    """Input and log decay `[B, T, d]`."""
    assert case.state is not None
    x, g = (_random(case, *case.state, seed=seed) for seed in (1, 2))
    return x.to(case.dtype), F.logsigmoid(g + 2).to(case.dtype)


def _fla_scan(form: str, x: Tensor, g: Tensor) -> Any:
    return getattr(load("fla.ops.hgrn"), form)(x, g)[0]


def _scan(x: Tensor, g: Tensor) -> Tensor:
    zeros = x.new_zeros(x.shape[0], x.shape[2])
    return recurrence.reference(Cell(lambda h, x, g: torch.exp(g) * h + x), zeros, Streams((x, g)))[0]


def _gla_inputs(case: Case) -> tuple[Tensor, ...]:
    """Query, unit key and value `[B, T, H, n]`, log decay `[B, T, H]`."""
    assert case.state is not None
    heads, n = (1, *case.state[-3:-2])[-1], case.state[-1]
    q, k, v = (_random(case, heads, n, seed=seed).to(case.dtype) for seed in (1, 2, 3))
    return q, F.normalize(k, dim=-1), v, F.logsigmoid(_random(case, heads, seed=4) + 2)


def _delta_inputs(case: Case) -> tuple[Tensor, ...]:
    """The same and a write strength `[B, T, H]`."""
    q, k, v, g = _gla_inputs(case)
    return q, k, v, g, _random(case, g.shape[2], seed=5).sigmoid().to(case.dtype)


def _undecayed_inputs(case: Case) -> tuple[Tensor, ...]:
    """The same without the decay."""
    q, k, v, _, beta = _delta_inputs(case)
    return q, k, v, beta


def _fla_recurrent_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Any:
    return load("fla.ops.delta_rule").fused_recurrent_delta_rule(q, k, v, beta, scale=1.0)[0]


def _undecayed_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    return _linear_delta(q, k, v, torch.zeros_like(beta), beta)


def _fla_linear_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Any:
    return load_gated_delta_rule().chunk_gated_delta_rule(q, k, v, g=g, beta=beta, scale=1.0)[0]


def _linear_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    zeros = q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1])
    return gated_delta_rule.reference(q, k, v, g, beta, zeros)[0]


def _fla_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Any:
    return load("fla.ops.simple_gla").chunk_simple_gla(q, k, v, g=g, scale=1.0)[0]


def _gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    cell = Cell(
        lambda S, k, v, g: torch.exp(g)[..., None, None] * S + k.unsqueeze(-1) * v.unsqueeze(-2),
        lambda S, q: (q.unsqueeze(-2) @ S).squeeze(-2),
    )
    zeros = q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1])
    return recurrence.reference(cell, zeros, Streams((k, v, g), queries=(q,)))[0]


def _dense(case: Case, gates: int, d: int) -> Iterator[Implementation]:
    cell = GATES[gates]
    note = f"torch.nn.{cell.__name__}, its product of the input included"
    dtypes = (torch.float16, torch.bfloat16) if case.dtype == torch.bfloat16 else (case.dtype,)
    for dtype in dtypes:
        name = f"cuDNN {cell.__name__} {str(dtype).removeprefix('torch.')}"
        fast, exact = partial(_cudnn, cell, d, dtype), partial(_native, cell, d, dtype)
        yield Implementation(name, "yardstick", fast, exact, _needs_cuda, note)
    if gates != 3:
        function = "elman" if gates == 1 else "lstm"
        for backend in ("cuda_fused", "cuda"):
            run, plain = partial(_flashrnn, function, backend), partial(_flashrnn_plain, function)
            inputs = partial(_flashrnn_inputs, gates, d)
            yield _yardstick(f"FlashRNN {function} {backend}", run, plain, inputs, "one head")


def _module(cell: type[nn.RNNBase], d: int, dtype: torch.dtype, case: Case) -> tuple[nn.RNNBase, Tensor]:
    torch.manual_seed(3)
    return cell(d, d, batch_first=True).to(case.device, dtype), _random(case, d, seed=1).to(dtype)  # type: ignore[call-arg,arg-type]


def _cudnn(cell: type[nn.RNNBase], d: int, dtype: torch.dtype, case: Case) -> Bound:
    module, x_BTd = _module(cell, d, dtype, case)
    x_BTd.requires_grad_()
    return Bound(lambda: module(x_BTd)[0], [x_BTd, *module.parameters()])


def _native(cell: type[nn.RNNBase], d: int, dtype: torch.dtype, case: Case) -> Bound:
    """The same weights and input in fp64, by torch's own loop."""
    module, x_BTd = _module(cell, d, dtype, case)
    module, x_BTd = module.double(), x_BTd.double().requires_grad_()

    def run() -> Any:
        with torch.backends.cudnn.flags(enabled=False):
            return module(x_BTd)[0]

    return Bound(run, [x_BTd, *module.parameters()])


def _flashrnn_inputs(gates: int, d: int, case: Case) -> tuple[Tensor, ...]:
    """Input `[B, T, G, 1, d]`, recurrent matrices `[G, 1, d, d]`, biases `[G, 1, d]`."""
    generator = torch.Generator(case.device).manual_seed(3)
    R = torch.randn(gates, 1, d, d, generator=generator, device=case.device) / d**0.5
    b = torch.zeros(gates, 1, d, device=case.device)
    return tuple(t.to(torch.bfloat16) for t in (_random(case, gates, 1, d, seed=1), R, b))


def _flashrnn(function: str, backend: str, Wx: Tensor, R: Tensor, b: Tensor) -> Any:
    states, _ = load("flashrnn").flashrnn(Wx, R, b, function=function, backend=backend, dtype="bfloat16")
    return states[0]


def _flashrnn_plain(function: str, Wx: Tensor, R: Tensor, b: Tensor) -> Any:
    """Its own plain form."""
    Wx, R, b = (t.float() for t in (Wx, R, b))
    states, _ = load("flashrnn").flashrnn(Wx, R, b, function=function, backend="vanilla", dtype="float32")
    return states[0]
