"""Implementations of a case: our backends, the plain loop, and what other libraries have for it.

A *peer* computes the same function on the same inputs. A *yardstick* does not: it is the nearest thing that a library
has for a state of this shape, on inputs of its own, and says what such a state costs there.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.bench.calls import bind
from rnn_lab.bench.cases import Case, needs_cuda, random
from rnn_lab.bench.dense_peers import dense, gates_of
from rnn_lab.bench.implementation import Implementation, reference, yardstick
from rnn_lab.discovery.libraries import load, load_gated_delta_rule
from rnn_lab.kernels import recurrence
from rnn_lab.kernels.dispatch import REFERENCE, Backend
from rnn_lab.kernels.linear import gated_delta_rule
from rnn_lab.kernels.recurrence import Cell, Streams


def implementations(case: Case) -> Iterator[Implementation]:
    """Ours in order of preference, the plain loop, then the libraries'."""
    for backend in case.op.backends:
        ours = _ours(backend.name, "backend", backend.run, partial(_refused, backend))
        yield ours if backend.capturable else replace(ours, uncapturable="it replays CUDA graphs of its own")
    yield _ours(REFERENCE, "reference", case.op.reference, lambda case: None)
    if case.op.name == "ssd":
        yield _peer("mamba-ssm mamba_chunk_scan_combined", _mamba_ssm)
    elif case.op.name == "gated_delta_rule":
        yield _peer("fla chunk_gated_delta_rule", _fla_delta)
    elif case.state is not None:
        yield from _yardsticks(case, case.state)


def _refused(backend: Backend[Any], case: Case) -> str | None:
    return backend.refuses(*case.args)


def _ours(
    name: str, kind: str, run: Callable[..., Any], refuses: Callable[[Case], str | None], note: str = ""
) -> Implementation:
    return Implementation(name, kind, lambda case: bind(run, case.args), reference, refuses, note)


def _peer(name: str, run: Callable[..., Any]) -> Implementation:
    return _ours(name, "peer", run, needs_cuda)


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
    gates = gates_of(case)
    if gates is not None:
        yield from dense(case, gates)
    elif len(state) == 1:
        for form in ("chunk_hgrn", "fused_recurrent_hgrn"):
            yield yardstick(f"fla {form}", partial(_fla_scan, form), _scan, _scan_inputs, "linear scan, bf16")
    elif len(state) in (2, 3) and state[-2] == state[-1]:
        yield yardstick("fla chunk_gated_delta_rule", _fla_linear_delta, _linear_delta, _delta_inputs, "linear")
        recurrent = "fla fused_recurrent_delta_rule"  # its gated form has no backward
        yield yardstick(recurrent, _fla_recurrent_delta, _undecayed_delta, _undecayed_inputs, "linear, no decay")
        yield yardstick("fla chunk_simple_gla", _fla_gla, _gla, _gla_inputs, "linear, no delta, scalar decay")


def _scan_inputs(case: Case) -> tuple[Tensor, ...]:
    """Input and log decay `[B, T, d]`."""
    assert case.state is not None
    x, g = (random(case, *case.state, seed=seed) for seed in (1, 2))
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
    q, k, v = (random(case, heads, n, seed=seed).to(case.dtype) for seed in (1, 2, 3))
    return q, F.normalize(k, dim=-1), v, F.logsigmoid(random(case, heads, seed=4) + 2)


def _delta_inputs(case: Case) -> tuple[Tensor, ...]:
    """The same and a write strength `[B, T, H]`."""
    q, k, v, g = _gla_inputs(case)
    return q, k, v, g, random(case, g.shape[2], seed=5).sigmoid().to(case.dtype)


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
