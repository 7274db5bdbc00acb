"""Recurrences with resident matrices as CUDA C++: what is printed around dense.cuh."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from rnn_lab.kernels.cuda_jit import skeleton
from rnn_lab.kernels.dense.plan import UNITS, Plan, Problem
from rnn_lab.kernels.dense.source import Program
from rnn_lab.kernels.dialects import CUDA_CLOSE, printed
from rnn_lab.kernels.expression import Node, variables
from rnn_lab.kernels.matrix.layout import TYPES


@dataclass(frozen=True)
class Form:
    """What a kernel is printed for, but for its plan.

    `types` are those of the program's streams, `seen` that of outputs; `width` is the program's, rounded up to whole
    items; `saves` says whether forward keeps what backward needs.
    """

    program: Program
    forward: bool
    width: int
    types: tuple[torch.dtype, ...]
    seen: torch.dtype
    reset: bool
    saves: bool

    @cached_property
    def reads(self) -> list[tuple[str, torch.dtype]]:
        """What every step reads, by name: streams; backward also states, outputs' adjoints, products."""
        found = list(zip(self.program.streams, self.types, strict=True))
        if self.forward:
            return found
        found += [(f"dy{i}", self.seen) for i in range(len(self.program.output))]
        found += [(f"h{i}", torch.bfloat16) for i in range(self.program.parts)]
        return found + [(f"p{i}", torch.bfloat16) for i in range(len(self.program.products)) if self.program.replays]

    @cached_property
    def writes(self) -> list[tuple[str, torch.dtype]]:
        """What every step writes, by name."""
        program = self.program
        if not self.forward:
            gradients = [(f"d{n}", dtype) for n, dtype in zip(program.streams, self.types, strict=True)]
            return gradients + [(f"dp{i}", torch.bfloat16) for i in range(len(program.products))]
        outputs = [(f"y{i}", self.seen) for i in range(len(program.output))]
        if not self.saves:
            return outputs
        outputs += [(f"s{i}", torch.bfloat16) for i in range(program.parts)]
        return outputs + ([("m", torch.bfloat16)] if program.sent is None else [])

    @property
    def problem(self) -> Problem:
        """What planning needs to know."""
        program = self.program
        x, w, g, s = len(program.streams), len(program.weights), len(program.products), program.parts
        live = x + w + g + 2 * s + 2 if self.forward else 2 * (x + g) + w * 3 // 2 + 4 * s + 3
        streamed = sum(dtype.itemsize for _, dtype in self.reads)
        return Problem(self.forward, self.width, s, g, w, streamed, live)


def source(form: Form, plan: Plan) -> str:
    """CUDA C++ with the kernel `forward` or `backward`."""
    program = form.program
    constants = {
        "V": UNITS, "S": program.parts, "G": len(program.products), "NX": len(program.streams),
        "NW": len(program.weights), "NY": len(program.output), "NI": max(1, len(form.reads)), "NO": len(form.writes),
        "WIDTH": form.width, "REAL": program.width,
        "D": plan.padded, "C": plan.cluster, "U": plan.units, "N": plan.rows, "F": plan.groups, "WM": plan.across,
        "WK": plan.along, "KR": plan.held, "KS": plan.kept, "STAGES": plan.stages, "RING_BYTES": plan.ring,
        "UNROLL": plan.unrolled, "RESET": int(form.reset), "FORWARD": int(form.forward),
        **{f"{name}_AT": at for name, at in plan.places.items() if name != "end"},
    }  # fmt: skip
    lines = ["// Printed by rnn_lab.kernels.dense.cuda."]
    lines += [f"constexpr int {name} = {value};" for name, value in constants.items()]
    way = "dense_forward" if form.forward else "dense_backward"
    lines += [skeleton("ptx", "cluster", "functions", "pack", "dense", way)]
    body = _forward(form, plan) if form.forward else _backward(form, plan)
    return "\n".join([*lines, '#line 1 "cell.cuh"', "namespace recurrence {", *_fetch(form, plan), *body, "}", ""])


_OF_ITEM = "const Args& a, const Place& p, const Item& o, "


def _function(head: str, body: Iterable[str]) -> Iterator[str]:
    yield f"__device__ __forceinline__ {head} {{"
    yield from (f"    {line}" for line in body)
    yield "}"


def _offsets(form: Form, plan: Plan) -> dict[str, int]:
    """Where each of what is read begins in a stage of the ring."""
    found, at = {}, 0
    for name, dtype in form.reads:
        found[name] = at
        at += plan.items * UNITS * dtype.itemsize
    return found


def _fetch(form: Form, plan: Plan) -> Iterator[str]:
    offsets = _offsets(form, plan)
    lines = [
        f"fetch_one<{TYPES[dtype]}, {j}, {offsets[name]}>(a, p, o, stage, i, t);"
        for j, (name, dtype) in enumerate(form.reads)
    ]
    yield from _function(f"void fetch({_OF_ITEM}char* stage, int i, i64 t)", lines)


def _read(form: Form, plan: Plan, function: str, array: str, size: str, names: list[str]) -> Iterator[str]:
    """A function that reads pieces of a stage into an array."""
    offsets, types = _offsets(form, plan), dict(form.reads)
    lines = [
        f"read_one<{TYPES[types[name]]}, {offsets[name]}>(stage, i, {array}[{j}]);"
        for j, name in enumerate(names)
        if name in types
    ]
    yield from _function(f"void {function}(const char* stage, int i, float (&{array})[{size}][V])", lines)


def _write(form: Form, function: str, array: str, names: list[str], const: str = "const Values*") -> Iterator[str]:
    """A function that writes an array's numbers to where they belong."""
    at = {name: (j, dtype) for j, (name, dtype) in enumerate(form.writes)}
    element = f"{array}[{{}}]" if const.endswith("*") else array
    lines = [
        f"write_one<{TYPES[at[name][1]]}, {at[name][0]}>(a, p, o, {_step(name)}, {element.format(j)});"
        for j, name in enumerate(names)
        if name in at
    ]
    yield from _function(f"void {function}({_OF_ITEM}i64 t, {const} {array})", lines)


def _step(name: str) -> str:
    """Saved states begin with the first one, before any step."""
    return "t + 1" if name[0] == "s" else "t"


def _names(program: Program) -> dict[str, str]:
    """What variables are called in the functions of one unit."""
    names = {name: f"x[{i}][v]" for i, name in enumerate(program.streams)}
    names |= {name: f"w[{i}][v]" for i, name in enumerate(program.weights)}
    names |= {f"{letter}{i}": f"{letter}[{i}][v]" for letter in "hsd" for i in range(program.parts)}
    names |= {f"p{i}": f"p[{i}][v]" for i in range(len(program.products))}
    return names | {f"dy{i}": f"dy[{i}][v]" for i in range(len(program.output))} | {"q": "q[v]"}


def _lines(program: Program, outputs: dict[str, Node], prefix: str = "") -> list[str]:
    """Statements; `prefix` stands before arrays that are fields of a structure."""
    names = {n: code if code[0] in "dq" and code[1] != "y" else prefix + code for n, code in _names(program).items()}
    used = {n: names[n] for n in variables(outputs.values())}
    return printed(outputs, used, "a", CUDA_CLOSE)


def _forward(form: Form, plan: Plan) -> Iterator[str]:
    program = form.program
    yield from _read(form, plan, "inputs", "x", "NX + 1", program.streams)
    update = {f"s[{i}][v]": node for i, node in enumerate(program.update)}
    of_unit = "int v, const Values* {}, "
    known = "const Values* x, const Values* w, "
    yield from _function(
        f"void update({of_unit.format('h')}const Values* p, {known}Values* s)", _lines(program, update)
    )
    yield from _function(
        "float wire(int v, const Values* h)", [*_lines(program, {"const float m": program.wire}), "return m;"]
    )
    output = {f"y[{i}][v]": node for i, node in enumerate(program.output)}
    yield from _function(f"void output({of_unit.format('s')}{known}Values* y)", _lines(program, output))
    yield from _write(form, "write", "y", [f"y{i}" for i in range(len(program.output))])
    yield from _write(form, "save", "s", [f"s{i}" for i in range(program.parts)])
    yield from _write(form, "save_wire", "m", ["m"], "const Values&")


def _backward(form: Form, plan: Plan) -> Iterator[str]:
    program = form.program
    parts, products = range(program.parts), range(len(program.products))
    outputs = range(len(program.output))
    yield from _read(form, plan, "inputs", "x", "NX + 1", program.streams)
    yield from _read(form, plan, "states", "h", "S", [f"h{i}" for i in parts])
    yield from _read(form, plan, "products", "p", "G", [f"p{i}" for i in products])
    yield from _read(form, plan, "cotangents", "dy", "NY", [f"dy{i}" for i in outputs])
    at = {name: j for j, (name, _) in enumerate(form.reads)}
    last = [
        f"load<bf16>(static_cast<const bf16*>(a.in[{at[f'h{i}']}]) + in_place(a, p, o, {at[f'h{i}']}, a.T), s[{i}]);"
        for i in parts
    ]
    yield from _function(
        f"void last_state({_OF_ITEM}float (&s)[S][V])",
        [
            "for (int j = 0; j < S; ++j)",
            "    for (int v = 0; v < V; ++v) s[j][v] = 0.0f;",
            "if (!o.inside) return;",
            *last,
        ],
    )
    targets = {f"h{i}": f"found.dh[{i}][v]" for i in parts} | {f"p{i}": f"found.dp[{i}][v]" for i in products}
    targets |= {name: f"found.dx[{i}][v]" for i, name in enumerate(program.streams)}
    targets |= {name: f"found.dw[{i}][v]" for i, name in enumerate(program.weights)}
    found = {targets[name]: node for name, node in program.adjoint.items()}
    yield from _function(
        "void adjoint(int v, const Known& known, const Values* d, const Values& q, const Found& found)",
        _lines(program, found, "known."),
    )
    first = {f"dh[{i}][v]": program.first_adjoint[f"h{i}"] for i in parts}
    yield from _function(
        "void adjoint_of_first(int v, const Values* h, const Values& q, Values* dh)", _lines(program, first)
    )
    yield from _write(form, "write", "dx", [f"d{n}" for n in program.streams])
    yield from _write(form, "save", "dp", [f"dp{i}" for i in products])
