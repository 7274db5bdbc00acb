"""What a recurrence is given: streams of inputs, and a cell, which is one step as four plain functions.

A cell is traced once into the program of an engine (kernels.diagonal.source, kernels.matrix.source,
kernels.dense.source): into one element-wise expression, one over a matrix whose rows never meet, or one around
products of the state with matrices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rnn_lab.kernels.dense import source as dense_source
    from rnn_lab.kernels.diagonal.source import Program
    from rnn_lab.kernels.linear import dense_step as linear_step
    from rnn_lab.kernels.matrix import source as matrix_source

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


def counts(streams: Streams) -> tuple[int, ...]:
    """Lengths of the five parts, by which a cell is traced."""
    return tuple(len(part) for part in streams)


@dataclass(frozen=True, eq=False)
class Cell:
    """What one step does.

    `before(*inputs, *biases)` makes what `update` takes, for all steps at once; `update(h, *inputs_t, *weights)` gives
    the next state `[B, ...]`; `read(h, *queries_t)` what is seen of it, the state itself when None; and
    `after(o, *gates)`, element-wise, what leaves the recurrence. `low_rank` is the place among the weights of U, which
    V follows, where `update` takes their product instead of both as well (kernels.captured.low_rank).
    """

    update: Callable[..., Tensor]
    read: Callable[..., Tensor] | None = None
    before: Callable[..., tuple[Tensor, ...]] | None = None
    after: Callable[..., Tensor] | None = None
    low_rank: int | None = None

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
        key = _shapes(h, streams)
        if key not in self._matrices:
            from rnn_lab.kernels.matrix.source import traced

            self._matrices[key] = _or_reason(lambda: traced(self, *key))
        return self._matrices[key]

    @cached_property
    def _linear(self) -> "dict[tuple[int, ...], linear_step.Step | str]":
        return {}

    def linear(self, counts: tuple[int, ...]) -> "linear_step.Step | str":
        """The step as one product of a vector state with a matrix plus inputs, or what keeps it from being one.

        `counts` are the lengths of the five parts of Streams.
        """
        if counts not in self._linear:
            from rnn_lab.kernels.linear.dense_step import traced

            self._linear[counts] = _or_reason(lambda: traced(self, counts))
        return self._linear[counts]

    @cached_property
    def _dense(self) -> "dict[object, dense_source.Program | str]":
        return {}

    def dense(self, h: Tensor, streams: Streams) -> "dense_source.Program | str":
        """The step as products of the state with matrices and an expression around them, or what keeps it from that."""
        key = _shapes(h, streams)
        if key not in self._dense:
            from rnn_lab.kernels.dense.source import traced

            self._dense[key] = _or_reason(lambda: traced(self, *key))
        return self._dense[key]

    @property
    def fingerprint(self) -> str:
        """What tells cells apart to a certificate, the same in every process."""
        parts = (self._programs, self._matrices, self._linear, self._dense)
        programs = [program for part in parts for program in part.values()]
        found = [p if isinstance(p, str) else p.text for p in programs]
        return f"{self._functions} {found}"

    @cached_property
    def _functions(self) -> str:
        return ", ".join(_named(f) for f in (self.update, self.read, self.before, self.after))


def _shapes(h: Tensor, streams: Streams) -> tuple[tuple[int, ...], tuple[tuple[tuple[int, ...], ...], ...]]:
    """Of the state without the batch, and of all streams without batch and time."""
    parts = tuple(tuple(tuple(x.shape[0 if i % 2 else 2 :]) for x in part) for i, part in enumerate(streams))
    return tuple(h.shape[1:]), parts


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
    from rnn_lab.kernels.diagonal.source import Program
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
