"""Backends of the recurrence: how a call of it is put to each engine, and why an engine cannot take it.

Every engine is imported by its first call.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from rnn_lab.kernels.cell import Cell, Streams, counts
from rnn_lab.kernels.triton_support import capability, refuses_triton

if TYPE_CHECKING:
    from rnn_lab.kernels.dense import source as dense_source
    from rnn_lab.kernels.matrix import source as matrix_source

P = TypeVar("P")


def _usable(
    make: Callable[[], P | str], refuses: Callable[..., str | None], h: Tensor, streams: Streams
) -> P | str:  # fmt: skip
    """The program, or why it cannot run. The cell is judged first: a machine without a GPU tells what one would do."""
    tensors = (*streams.inputs, *streams.queries, *streams.gates, h)
    if torch.compiler.is_compiling():  # which would follow every step of the tracing
        return refuses(*tensors) or make()
    program = make()
    return program if isinstance(program, str) else refuses(*tensors) or program


def refuses_diagonal(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    """Why the cell is no element-wise kernel in Triton here, or None."""
    program = _usable(lambda: cell.program(counts(streams)), refuses_triton, h, streams)
    return program if isinstance(program, str) else None


def refuses_diagonal_cuda(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    """Why the cell is no element-wise kernel in CUDA C++ here, or None."""
    from rnn_lab.kernels.cuda_jit import refuses_cuda
    from rnn_lab.kernels.diagonal.engine import parts_of

    program = _usable(lambda: cell.program(counts(streams)), refuses_cuda, h, streams)
    if isinstance(program, str):
        return program
    B, T = streams.inputs[0].shape[:2]
    if parts_of(program, B, T, h[0].numel()) > 1:
        return "it is linear and narrow, so parts of time should run at once, which this backend cannot"
    return None


def run_diagonal_cuda(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See recurrence.reference; by CUDA C++."""
    return run_diagonal(cell, h, streams, reset_BT, "cuda")


def run_diagonal(
    cell: Cell,
    h: Tensor,
    streams: Streams,
    reset_BT: Tensor | None = None,
    backend: Literal["triton", "cuda"] = "triton",
) -> tuple[Tensor, Tensor]:
    """See recurrence.reference; `backend` is the printer of the kernels."""
    from rnn_lab.kernels.diagonal import engine as diagonal

    program = cell.program(counts(streams))
    assert not isinstance(program, str)
    shape = h.shape[1:]
    xs = [_flat(x, 2, shape) for x in (*streams.inputs, *streams.queries, *streams.gates)]
    ws = [_flat(w, 0, shape) for w in (*streams.weights, *streams.biases)]
    y, last = diagonal.run(program, h.flatten(1), xs, ws, reset_BT, cell.after is not None, backend=backend)
    return y.view(*y.shape[:2], *shape), last.view(h.shape)


def _flat(x: Tensor, leading: int, shape: torch.Size) -> Tensor:
    """X with everything after its first axes broadcast to the state's shape and flattened."""
    lead = x.shape[:leading]
    x = x.reshape(*lead, *[1] * (len(shape) - x.dim() + leading), *x.shape[leading:])
    return x.expand(*lead, *shape).flatten(leading)


def refuses_matrix(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    """Why the cell is no kernel over the rows of a matrix here, or None."""
    from rnn_lab.kernels.cuda_jit import refuses_cuda

    if reason := _empty(h, streams):
        return reason
    program = _usable(lambda: _short_rows(cell.matrix(h, streams)), refuses_cuda, h, streams)
    return program if isinstance(program, str) else None


def _empty(h: Tensor, streams: Streams) -> str | None:
    if h.shape[0] == 0:
        return "there are no sequences"
    return "there are no steps" if streams.inputs[0].shape[1] == 0 else None


def _short_rows(program: "matrix_source.Program | str") -> "matrix_source.Program | str":
    if isinstance(program, str):
        return program
    from rnn_lab.kernels.matrix.engine import across

    fits = across(program.rows, program.columns)
    return program if fits else f"its rows of {program.columns} numbers are too long"


def run_matrix(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See recurrence.reference."""
    from rnn_lab.kernels.matrix import engine as matrix

    program = cell.matrix(h, streams)
    assert not isinstance(program, str)
    xs, ws = [*streams.inputs, *streams.queries, *streams.gates], [*streams.weights, *streams.biases]
    return matrix.run(program, h, xs, ws, reset_BT, cell.after is not None)


def refuses_chunked(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    """Why the recurrence is no scan over time here, or None."""
    from rnn_lab.kernels.linear import dense_scan as chunked

    if h.dim() != 2:
        return "its state is no vector"
    if torch.compiler.is_compiling() and not h.is_cuda:
        return f"tensors are on {h.device.type}, not on cuda"
    step = cell.linear(counts(streams))
    return step if isinstance(step, str) else chunked.refuses(streams.inputs[0], h.shape[1])


def run_chunked(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See recurrence.reference."""
    from rnn_lab.kernels.linear import dense_scan as chunked

    step = cell.linear(counts(streams))
    assert not isinstance(step, str)
    return chunked.run(step, cell, h, streams, reset_BT)


def refuses_dense(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    """Why the cell is no kernel with resident matrices here, or None."""
    if reason := _empty(h, streams):
        return reason
    program = _usable(lambda: _served(cell, h, streams), _refuses_clusters, h, streams)
    if isinstance(program, str):
        return program
    if streams.inputs[0].dtype == torch.float32:
        return "inputs are fp32, and what the tensor cores multiply would be rounded to bf16"
    return None


def _served(cell: Cell, h: Tensor, streams: Streams) -> "dense_source.Program | str":
    program = cell.dense(h, streams)
    if isinstance(program, str):
        return program
    from rnn_lab.kernels.dense.engine import refuses

    types = tuple(x.dtype for x in (*streams.inputs, *streams.queries, *streams.gates))
    return refuses(program.text, types) or program


def _refuses_clusters(*tensors: Tensor) -> str | None:
    from rnn_lab.kernels.cuda_jit import refuses_cuda

    if reason := refuses_cuda(*tensors):
        return reason
    major, minor = capability(tensors[0].device.index or 0)
    return None if major == 9 else f"it needs the clusters of compute capability 9.0, and the GPU has {major}.{minor}"


def run_dense(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See recurrence.reference."""
    from rnn_lab.kernels.dense import engine as dense

    program = cell.dense(h, streams)
    assert not isinstance(program, str)
    xs, ws = [*streams.inputs, *streams.queries, *streams.gates], [*streams.weights, *streams.biases]
    return dense.run(program, h, xs, ws, reset_BT, cell.after is not None)


def refuses_graph(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    """Why the loop cannot be captured in CUDA graphs here, or None."""
    from rnn_lab.kernels.captured import loops as graphed

    return graphed.refuses(cell, h, streams, reset_BT)


def run_graph(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See recurrence.reference; factors of a matrix are folded where that is sooner done."""
    from rnn_lab.kernels.captured import loops as graphed
    from rnn_lab.kernels.captured import low_rank
    from rnn_lab.kernels.linear.costs import COSTS

    if cell.low_rank is not None:
        B, T = streams.inputs[0].shape[:2]
        if low_rank.folds(B, T, streams.weights[cell.low_rank], COSTS[h.device.type, False]):
            streams = low_rank.fold(cell, streams)
    return graphed.run(cell, h, streams, reset_BT)
