"""h_t = update(h_{t-1}, inputs_t, weights), y_t = after(read(h_t, queries_t)): the recurrence of every layer.

The reference walks over time in plain torch. It computes in fp32 (fp64 for fp64 inputs) whatever autocast says,
because a recurrent state that is rounded at every step loses more than it saves. On a GPU an element-wise cell becomes
one kernel per direction (kernels.diagonal), Triton or CUDA C++, and so does one over a matrix whose rows never meet
(kernels.matrix); any other runs as a loop captured in CUDA graphs (kernels.graphed).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from rnn_lab.kernels.dispatch import Backend, Choice, Op
from rnn_lab.kernels.triton_support import refuses_triton

if TYPE_CHECKING:
    from rnn_lab.kernels import matrix_source
    from rnn_lab.kernels.diagonal_source import Program

P = TypeVar("P")


class Streams(NamedTuple):
    """What enters a recurrence besides the state.

    `inputs`, `queries` and `gates` are `[B, T, ...]`, for `update`, `read` and `after`; `weights` and `biases` have
    no time axis, for `update` and `before`.
    """

    inputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] = ()
    queries: tuple[Tensor, ...] = ()
    biases: tuple[Tensor, ...] = ()
    gates: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Cell:
    """What one step does.

    `before(*inputs, *biases)` makes what `update` takes, for all steps at once; `update(h, *inputs_t, *weights)` gives
    the next state `[B, ...]`; `read(h, *queries_t)` what is seen of it, the state itself when None; and
    `after(o, *gates)`, element-wise, what leaves the recurrence.
    """

    update: Callable[..., Tensor]
    read: Callable[..., Tensor] | None = None
    before: Callable[..., tuple[Tensor, ...]] | None = None
    after: Callable[..., Tensor] | None = None

    @cached_property
    def _programs(self) -> dict[tuple[int, ...], "Program | str"]:
        return {}

    def program(self, counts: tuple[int, ...]) -> "Program | str":
        """The step as one element-wise expression, or what keeps it from being one.

        `counts` are the lengths of the five parts of Streams.
        """
        if counts not in self._programs:
            self._programs[counts] = _or_reason(lambda: _traced(self, *counts))
        return self._programs[counts]

    @cached_property
    def _matrices(self) -> "dict[object, matrix_source.Program | str]":
        return {}

    def matrix(self, h: Tensor, streams: Streams) -> "matrix_source.Program | str":
        """The step as an expression over a matrix whose rows never meet, or what keeps it from being one."""
        if h.dim() < 3:
            return "its state is no matrix"
        shapes = [tuple(tuple(x.shape[0 if i % 2 else 2 :]) for x in part) for i, part in enumerate(streams)]
        key = (tuple(h.shape[1:]), *shapes)
        if key not in self._matrices:
            from rnn_lab.kernels.matrix_source import traced

            self._matrices[key] = _or_reason(lambda: traced(self, tuple(h.shape[1:]), shapes))
        return self._matrices[key]

    @property
    def fingerprint(self) -> str:
        """What tells cells apart to a certificate, the same in every process."""
        programs = (*self._programs.values(), *self._matrices.values())
        found = [p if isinstance(p, str) else p.text for p in programs]
        return f"{self._functions} {found}"

    @cached_property
    def _functions(self) -> str:
        return ", ".join(_named(f) for f in (self.update, self.read, self.before, self.after))


def _named(value: Any) -> str:
    """A function by its name and the sources around it, a partial by its parts, anything else as it prints."""
    if isinstance(value, partial):
        return f"partial({', '.join(_named(v) for v in (value.func, *value.args, *value.keywords.items()))})"
    if not hasattr(value, "__code__"):
        return getattr(value, "__qualname__", None) or repr(value)
    from rnn_lab.kernels.certificates import sources

    return f"{value.__module__}.{value.__qualname__} {sources(value.__module__)}"


def _or_reason(make: Callable[[], P]) -> P | str:
    """A program, or what keeps the cell from being one.

    Cells are anybody's code and are traced on every machine, so whatever it raises on symbols is a reason too, and a
    cell that draws random numbers leaves the generator as it was.
    """
    from rnn_lab.kernels.expression import NotElementwise

    try:
        with torch.random.fork_rng(devices=[]):
            return make()
    except NotElementwise as error:
        return f"the cell uses {error}"
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        return f"the cell cannot be traced ({type(error).__name__}: {first})"


def _traced(cell: Cell, n_inputs: int, n_weights: int, n_queries: int, n_biases: int, n_gates: int) -> "Program":
    """Streams are x0... in the order inputs, queries, gates; weights w0... in the order weights, biases."""
    from rnn_lab.kernels.diagonal_source import Program
    from rnn_lab.kernels.expression import trace

    def step(h: Any, *rest: Any) -> Any:
        xs, ws = rest[:n_inputs], rest[n_inputs:]
        return cell.update(h, *(xs if cell.before is None else cell.before(*xs, *ws[n_weights:])), *ws[:n_weights])

    def output(s: Any, *rest: Any) -> Any:
        o = s if cell.read is None else cell.read(s, *rest[:n_queries])
        return o if cell.after is None else cell.after(o, *rest[n_queries:])

    xs = [f"x{i}" for i in range(n_inputs + n_queries + n_gates)]
    ws = [f"w{i}" for i in range(n_weights + n_biases)]
    (update,) = trace(step, "h", *xs[:n_inputs], *ws)
    (seen,) = trace(output, "s", *xs[n_inputs:])
    return Program(len(xs), len(ws), update, seen)


def reference(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Plain loop over time.

    Args:
        cell: the step.
        h: initial state `[B, ...]`.
        streams: everything else.
        reset_BT: True at t zeroes the state before step t.

    Returns:
        Read-outs `[B, T, ...]` in the computing dtype, or with `after` in the dtype of the first input, and the last
        state.

    """
    return run_by(_walk, cell, h, streams, reset_BT)


Walk = Callable[[Cell, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor | None], tuple[Tensor, Tensor]]


def run_by(walk: Walk, cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """`reference` with another walk over time: what surrounds it happens for all steps at once, in fp32 or fp64.

    Args:
        walk: from cell, state, inputs, weights, queries and resets to read-outs and the last state.
        cell: see `reference`.
        h: see `reference`.
        streams: see `reference`.
        reset_BT: see `reference`.

    """
    dtype = torch.promote_types(streams.inputs[0].dtype, torch.float32)
    with torch.autocast(h.device.type, enabled=False):
        inputs, weights, queries, biases, gates = ([x.to(dtype) for x in part] for part in streams)
        if cell.before is not None:
            inputs = list(cell.before(*inputs, *biases))
        y, h = walk(cell, h.to(dtype), inputs, weights, queries, reset_BT)
        return y if cell.after is None else cell.after(y, *gates).to(streams.inputs[0].dtype), h


def _walk(
    cell: Cell,
    h: Tensor,
    inputs: list[Tensor],
    weights: list[Tensor],
    queries: list[Tensor],
    reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`update` and `read` step by step: read-outs `[B, T, ...]` and the last state."""
    inputs_T, queries_T = [x.unbind(1) for x in inputs], [q.unbind(1) for q in queries]
    resets_T = None if reset_BT is None else reset_BT.view(*reset_BT.shape, *[1] * (h.dim() - 1)).unbind(1)
    out = []
    for t in range(inputs[0].shape[1]):
        if resets_T is not None:
            h = torch.where(resets_T[t], 0, h)
        h = cell.update(h, *[x[t] for x in inputs_T], *weights)
        out.append(h if cell.read is None else cell.read(h, *[q[t] for q in queries_T]))
    return torch.stack(out, 1), h


def _probe(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> list[tuple[Any, ...]]:
    """Two sequences of 19 steps, which fill no whole tiles, and of 16, which do; from a state that is not zero.

    A shorter call, a single step of generation say, is repeated: it shares its certificate with longer ones.
    """

    def cut(steps: int) -> tuple[Any, ...]:
        picked = torch.arange(steps, device=h.device) % streams.inputs[0].shape[1]
        timed = ("inputs", "queries", "gates")
        parts = {name: tuple(x[:2].detach()[:, picked] for x in getattr(streams, name)) for name in timed}
        start = h[:2].detach() + 0.3 * torch.randn_like(h[:2])
        return cell, start, streams._replace(**parts), None if reset_BT is None else reset_BT[:2, picked]

    return [cut(steps) for steps in (19, 16)]


def _counts(streams: Streams) -> tuple[int, ...]:
    return tuple(len(part) for part in streams)


def _usable(
    make: Callable[[], P | str], refuses: Callable[..., str | None], h: Tensor, streams: Streams
) -> P | str:  # fmt: skip
    """The program, or why it cannot run. The cell is judged first: a machine without a GPU tells what one would do."""
    tensors = (*streams.inputs, *streams.queries, *streams.gates, h)
    if torch.compiler.is_compiling():  # which would follow every step of the tracing
        return refuses(*tensors) or make()
    program = make()
    return program if isinstance(program, str) else refuses(*tensors) or program


def _refuses_diagonal(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    program = _usable(lambda: cell.program(_counts(streams)), refuses_triton, h, streams)
    return program if isinstance(program, str) else None


def _refuses_diagonal_cuda(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    from rnn_lab.kernels.cuda_jit import refuses_cuda
    from rnn_lab.kernels.diagonal import parts_of

    program = _usable(lambda: cell.program(_counts(streams)), refuses_cuda, h, streams)
    if isinstance(program, str):
        return program
    B, T = streams.inputs[0].shape[:2]
    if parts_of(program, B, T, h[0].numel()) > 1:
        return "it is linear and narrow, so parts of time should run at once, which this backend cannot"
    return None


def _diagonal_cuda(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _diagonal(cell, h, streams, reset_BT, "cuda")


def _diagonal(
    cell: Cell,
    h: Tensor,
    streams: Streams,
    reset_BT: Tensor | None = None,
    backend: Literal["triton", "cuda"] = "triton",
) -> tuple[Tensor, Tensor]:
    from rnn_lab.kernels import diagonal

    program = cell.program(_counts(streams))
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


def _refuses_matrix(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    from rnn_lab.kernels.cuda_jit import refuses_cuda

    program = _usable(lambda: _short_rows(cell.matrix(h, streams)), refuses_cuda, h, streams)
    return program if isinstance(program, str) else None


def _short_rows(program: "matrix_source.Program | str") -> "matrix_source.Program | str":
    if isinstance(program, str):
        return program
    from rnn_lab.kernels.matrix import across

    fits = across(program.rows, program.columns)
    return program if fits else f"its rows of {program.columns} numbers are too long"


def _matrix(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    from rnn_lab.kernels import matrix

    program = cell.matrix(h, streams)
    assert not isinstance(program, str)
    xs, ws = [*streams.inputs, *streams.queries, *streams.gates], [*streams.weights, *streams.biases]
    return matrix.run(program, h, xs, ws, reset_BT, cell.after is not None)


def _refuses_graph(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    from rnn_lab.kernels import graphed

    return graphed.refuses(cell, h, streams, reset_BT)


def _graph(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    from rnn_lab.kernels import graphed

    return graphed.run(cell, h, streams, reset_BT)


class Recurrence(Op[Callable[..., tuple[Tensor, Tensor]]]):
    """The operation, whose matrices a token filter may let learn from kept positions alone."""

    def __call__(self, record: dict[str, Choice], *args: Any) -> Any:
        """See Op."""
        from rnn_lab.token_filter import active

        held = active()
        if held is None or held.recurrent == "full" or not held.takes(args[2].inputs[0]):
            return super().__call__(record, *args)
        if not any(w.dim() >= 2 for w in args[2].weights):
            return super().__call__(record, *args)
        from rnn_lab.kernels.kept import run

        cell, h, streams, *reset = args
        return run(partial(super().__call__, record), held, cell, h, streams, reset[0] if reset else None)


RECURRENCE = Recurrence(
    "recurrence",
    reference,
    [
        Backend("diagonal", _diagonal, _refuses_diagonal),
        Backend("diagonal-cuda", _diagonal_cuda, _refuses_diagonal_cuda),
        Backend("matrix", _matrix, _refuses_matrix),
        Backend("graph", _graph, _refuses_graph, capturable=False),
    ],
    _probe,
)
