"""A recurrence of independent rows as expressions: what is prepared for all steps at once, one step, its gradients.

Variables end in a dot and their kind (expression.kind): streams `x0.r` and weights `w0.c`; the state before and
after a step, `h.cr` and `s.cr`; prepared values `p0.c`; sums that backward takes from its replay, `f0.r`; the adjoint
of s that arrives, `d.cr`, and that of the output, `dy.r`; gradients by prepared values that arrive, `g0.c`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from rnn_lab.kernels.expression import (
    ZERO,
    Node,
    NotElementwise,
    add,
    as_json,
    from_json,
    ordered,
    substitute,
    var,
    variables,
)
from rnn_lab.kernels.matrix.expression import (
    Labelled,
    RowsMeet,
    at_step,
    gradients,
    in_time,
    kind,
    rename,
    state,
    symbol,
)

if TYPE_CHECKING:
    from rnn_lab.kernels.cell import Cell

S = var("s.cr")


class Step(NamedTuple):
    """Prepared values by the names they get, and update and output by those."""

    prepared: dict[str, Node]
    update: Node
    output: Node


class Adjoint(NamedTuple):
    """Gradients by `h.cr` and prepared values, and the sums of the step, by h, that they refer to."""

    gradients: dict[str, Node]
    sums: dict[str, Node]


@dataclass(frozen=True)
class Program:
    """s = update(h, ...) and y = output(s, ...) for states of `rows` by `columns`, in memory transposed or not."""

    rows: int
    columns: int
    transposed: bool
    update: Node
    output: Node

    @cached_property
    def text(self) -> str:
        """The program as JSON, equal for equal programs."""
        return as_json([self.rows, self.columns, self.transposed], self.update, self.output)

    @property
    def bounded(self) -> bool:
        """Whether no entry of a state after a step is beyond 1."""
        return self.update.op in ("tanh", "sigmoid")

    @cached_property
    def uses(self) -> list[str]:
        """Streams and weights by the kind as which they are used; one may be used as two."""
        found = variables([self.update, self.output]) - {"h.cr", "s.cr"}
        return sorted(found, key=lambda name: (name[0] == "w", int(name[1:].partition(".")[0]), name))

    @cached_property
    def hoisted(self) -> Step:
        """The step by prepared values: the largest parts of it that streams and weights of one kind make up."""
        found: dict[Node, str] = {}
        kinds: dict[Node, str] = {}

        def change(node: Node) -> Node | None:
            used = variables([node])
            own = kind(node, kinds)
            if not used or used & {"h.cr", "s.cr"} or {name.rpartition(".")[2] for name in used} != {own}:
                return None
            return var(found.setdefault(node, f"p{len(found)}.{own}"))

        update, output = (rename(node, change) for node in (self.update, self.output))
        return Step({name: node for node, name in found.items()}, update, output)

    @cached_property
    def forward(self) -> tuple[Node, Node]:
        """The state after a step and its output, both by the state before and prepared values."""
        step = self.hoisted
        return step.update, substitute(step.output, {"s.cr": step.update})

    @cached_property
    def adjoint(self) -> Adjoint:
        """Gradients of one step, from `d.cr` and `dy.r`."""
        step = self.hoisted
        names = list(step.prepared)
        inner = gradients([(step.output, var("dy.r"))], ["s.cr", *names])
        outer = gradients([(step.update, var("g.cr"))], ["h.cr", *names])
        arriving = {"g.cr": add(var("d.cr"), inner["s.cr"])}
        memo: dict[Node, Node] = {}
        found = {name: add(inner.get(name, ZERO), substitute(node, arriving, memo)) for name, node in outer.items()}
        # What the step has computed is not computed again: its result is s, and its sums come from the replay.
        known = {step.update: S} if step.update.args else {}
        for node in ordered([step.update, step.output]):
            if node.op == "sum":
                known[node] = var(f"f{len(known)}.{kind(node)}")
        found = {name: rename(node, known.get) for name, node in found.items()}
        used = variables(found.values())
        sums = {
            str(v.value): substitute(n, {"s.cr": step.update})
            for n, v in known.items()
            if v.value in used and v is not S
        }
        return Adjoint(found, sums)

    @cached_property
    def pulled(self) -> dict[str, Node]:
        """Gradients by streams and weights, from those by prepared values."""
        pairs = [(node, var(f"g{name[1:]}")) for name, node in self.hoisted.prepared.items()]
        return gradients(pairs, self.uses)


@lru_cache(maxsize=256)
def parse(text: str) -> Program:
    """The program of `Program.text`."""
    return Program(*from_json(text, roots=2))


Shapes = tuple[tuple[int, ...], ...]


def traced(cell: "Cell", shape: tuple[int, ...], streams: Sequence[Shapes]) -> Program:
    """The cell as a program.

    Args:
        cell: the step.
        shape: of the state, without the batch.
        streams: shapes of inputs, weights, queries, biases and gates, without batch and time.

    Raises:
        NotElementwise: it is no recurrence of independent rows, or uses what the language lacks; the text says what.

    """
    *heads, first, second = shape
    names = names_of(streams)
    inputs, weights, queries, biases, gates = (
        [symbol(name, size, heads, name[0] == "x") for name, size in zip(part, sizes, strict=True)]
        for part, sizes in zip(names, streams, strict=True)
    )
    try:
        if cell.before is not None:
            made = cell.before(*map(in_time, inputs), *biases)
            inputs = [at_step(x) for x in made]
        new: Any = cell.update(state(shape, "h"), *inputs, *weights)
        seen: Any = state(shape, "s")
        seen = seen if cell.read is None else cell.read(seen, *queries)
        if cell.after is not None:
            seen = at_step(cell.after(in_time(seen), *map(in_time, gates)))
    except NotElementwise:
        raise
    except Exception as error:  # as in expression.trace
        raise NotElementwise(f"{type(error).__name__}: {error}") from error
    return _oriented(new, seen, state(shape, "h"), first, second)


def names_of(streams: Sequence[Shapes]) -> list[list[str]]:
    """x0, x1, ... for inputs, queries and gates; w0, w1, ... for weights and biases."""
    n, out = {"x": 0, "w": 0}, [[] for _ in streams]  # type: ignore[var-annotated]
    for i in (0, 2, 4, 1, 3):
        letter = "w" if i in (1, 3) else "x"
        for _ in streams[i]:
            out[i].append(f"{letter}{n[letter]}")
            n[letter] += 1
    return out


def _oriented(new: Any, seen: Any, h: Labelled, first: int, second: int) -> Program:
    """With kinds for labels: columns are the axis that is summed over."""
    if not isinstance(new, Labelled) or new.axes != h.axes:
        raise RowsMeet("an update whose result is not of the state's shape")
    if not isinstance(seen, Labelled) or len(seen.axes) != len(h.axes) - 1:
        raise RowsMeet("a read-out that is not one number per row of the state")
    nodes = ordered([new.node, seen.node])
    summed = {str(node.value) for node in nodes if node.op == "sum"}
    if len(summed) > 1:
        raise RowsMeet("sums over rows and over columns, so that rows meet")
    columns = summed.pop() if summed else "1"
    rows = {"0": "1", "1": "0"}.get(columns)
    if rows is None or seen.axes != (*h.axes[:-2], next(a for a in h.axes if a[0] == rows)):
        raise RowsMeet("a read-out that is not one number per row of the state")

    def change(node: Node) -> Node | None:
        if node.op == "var":
            if node.value in ("h", "s"):
                return var(f"{node.value}.cr")
            name, _, label = str(node.value).partition("|")
            if label == "?":
                raise RowsMeet("a vector of which it is not clear whether it goes with rows or with columns")
            return var(f"{name}.{'r' if label == rows else 'c' if label == columns else ''}")
        if node.op == "sum":
            return Node("sum", (rename(node.args[0], change, memo),), "c")
        return None

    memo: dict[Node, Node] = {}
    update, output = (rename(x.node, change, memo) for x in (new, seen))
    sizes = (first, second) if rows == "0" else (second, first)
    return Program(*sizes, rows == "1", update, output)
