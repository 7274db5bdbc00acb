"""Element-wise recurrences as CUDA C++: what is printed around diagonal.cuh, and its launches.

A lane has one channel of a narrow problem, so that there are warps enough, and two of a wide one, which takes fewer
instructions per byte.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rnn_lab.kernels.cuda_jit import Kernel, skeleton
from rnn_lab.kernels.diagonal.engine import Call
from rnn_lab.kernels.diagonal.source import TILE, Program, parse, step_gradients
from rnn_lab.kernels.dialects import CUDA, printed
from rnn_lab.kernels.triton_support import tried

STAGES = 4
"""Tiles in shared memory: on an H100 three of 8 steps on their way are 30 KB per SM at 41K channels of two streams."""
WIDE = 2**17
"""Channels from which on a lane has two."""
_TYPES = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Form:
    """What a kernel is printed for.

    `types` are those of the streams and of the outputs; `channels` those of one lane, 1 or 2; `unit` the bytes of an
    asynchronous copy, 16 or 4, or 0 where rows are not aligned; `even` says that there are only whole tiles.
    """

    forward: bool
    types: tuple[torch.dtype, ...]
    channels: int
    unit: int
    even: bool
    reset: bool
    marks: bool


def source(program: Program, form: Form) -> str:
    """CUDA C++ with the kernel `forward` or `backward`."""
    constants = {
        "NX": program.n_x, "NW": program.n_w, "V": form.channels, "UNIT": form.unit, "TILE": TILE, "STAGES": STAGES,
        "EVEN": int(form.even), "RESET": int(form.reset), "MARKS": int(form.marks),
    }  # fmt: skip
    lines = ["// Printed by rnn_lab.kernels.diagonal.cuda."]
    lines += [f"constexpr int {name} = {value};" for name, value in constants.items()]
    lines += [f"#define STREAMS {', '.join(_TYPES[dtype] for dtype in form.types)}"]
    lines += [f"#define FORWARD {int(form.forward)}", skeleton("ptx", "functions", "pack", "diagonal")]
    return "\n".join([*lines, '#line 1 "cell.cuh"', *_cell(program), ""])


def _cell(program: Program) -> list[str]:
    """The functions `update`, `output` and `gradients` of one step."""
    names = {f"x{i}": f"x[{i}]" for i in range(program.n_x)} | {f"w{i}": f"w[{i}]" for i in range(program.n_w)}
    names |= {name: name for name in ("h", "s", "dh", "dy")}
    fields = {"h": "g.h"} | {name: f"g.{code}" for name, code in names.items() if "[" in code}
    step = {fields[name]: node for name, node in step_gradients(program).items()}

    def function(head: str, body: list[str], result: str) -> list[str]:
        return [
            f"__device__ __forceinline__ {head} {{",
            *(f"    {line}" for line in body),
            f"    return {result};",
            "}",
        ]

    return [
        "namespace recurrence {",
        *function("float update(float h, X x, W w)", printed({"const float s": program.update}, names, "a", CUDA), "s"),
        *function("float output(float s, X x, W w)", printed({"const float y": program.output}, names, "a", CUDA), "y"),
        *function(
            "Gradients gradients(float h, float s, float dh, float dy, X x, W w)",
            ["Gradients g;", *printed(step, names, "a", CUDA)],
            "g",
        ),
        "}  // namespace recurrence",
    ]


@lru_cache(maxsize=1024)
def kernel(text: str, form: Form) -> Kernel:
    """A kernel of the program with this text."""
    program = parse(text)
    n_x, n_w = program.n_x, max(program.n_w, 1)
    fields = 3 * (n_x + 1) + n_w + n_x + n_w + 7
    return Kernel(source(program, form), "forward" if form.forward else "backward", [f"{fields}Q"], "diagonal.cu")


def forward(call: Call, h: Tensor, y: Tensor, last: Tensor, marks: Tensor | None) -> None:
    """Fill outputs `[B, T, C]`, the last state `[B, 1, C]` and, where asked for, marks."""
    _launch(True, call, y, h, last, marks, [], [])


def backward(
    call: Call, marks: Tensor, dy: Tensor, dlast: Tensor, dstart: Tensor, dxs: list[Tensor], dws: list[Tensor]
) -> None:
    """Fill the gradients by the initial state `[B, 1, C]`, streams, and weights `[B, 1, C]`."""
    _launch(False, call, dy, dlast, dstart, marks, dxs, dws)


def _launch(
    forward: bool, call: Call, y: Tensor, start: Tensor, stop: Tensor, marks: Tensor | None,
    dxs: list[Tensor], dws: list[Tensor],
) -> None:  # fmt: skip
    """Launch a direction; `y` is dy in backward. The values are the fields of Args in diagonal.cuh."""
    assert call.parts == 1
    B, T, C = call.shape
    rows = [*call.xs, y]
    read = call.xs if forward else rows
    types, channels = tuple(row.dtype for row in rows), lanes(B, C)
    form = Form(
        forward, types, channels, _unit(read, C), T % TILE == 0, call.reset is not None, forward and marks is not None
    )
    nulls_w, nulls_x = [None] * (not call.ws), [None] * (len(call.xs) - len(dxs))
    values: list[Any] = [*rows, *(row.stride(0) for row in rows), *(row.stride(1) for row in rows)]
    values += [*(w.float() for w in call.ws), *nulls_w, *dxs, *nulls_x, *dws, *[None] * (len(call.ws) - len(dws))]
    values += [*nulls_w, start, stop, y if forward else None, marks, call.reset, T, C]
    tile = TILE * sum(row.element_size() for row in read) + (0 if forward else 4)
    grid = (B * -(-C // (32 * channels)), 1, 1)
    kernel(call.program, form)(grid, (32, 1, 1), *values, shared=STAGES * 32 * channels * tile)


def lanes(B: int, C: int) -> int:
    """Channels of one lane."""
    if C % 2:
        return 1
    index = tried(2)
    return index + 1 if index is not None else 1 + (B * C >= WIDE)


def _unit(rows: list[Tensor], C: int) -> int:
    """Bytes of the largest asynchronous copy that every row of every stream is aligned to; 0: none."""
    for unit in (16, 4):
        if all(
            row.data_ptr() % unit == 0
            and all(n * row.element_size() % unit == 0 for n in (C, row.stride(0), row.stride(1)))
            for row in rows
        ):
            return unit
    return 0
