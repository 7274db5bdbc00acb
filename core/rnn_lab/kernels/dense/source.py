"""A recurrence with products of the state and matrices as expressions: one step, what is exchanged, gradients.

    m_t = wire(h_t)                        what every product is of, `m` in memory
    p_t = matrices m_{t-1}                 `p0`, `p1`, ..., each as wide as a part of the state
    h_t = update(h_{t-1}, p_t, x_t, w)     element-wise
    y_t = output(h_t, x_t, w)              element-wise

Variables: parts of the state before and after a step, `h0` and `s0`; products `p0`; piece 1 of stream 0, `x0.1`, and of
weight 0, `w0.1`; adjoints that arrive, `d0` of a part of the state after the step, `q` of the wire, `dy0` of an output.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from rnn_lab.kernels.dense.expression import Factor, NotDense, Pieces, Product, Products
from rnn_lab.kernels.expression import (
    Node,
    NotElementwise,
    add,
    as_json,
    from_json,
    gradients,
    substitute,
    var,
    variables,
)
from rnn_lab.kernels.matrix.expression import rename
from rnn_lab.kernels.matrix.source import Shapes, names_of

if TYPE_CHECKING:
    from rnn_lab.kernels.cell import Cell

MOST_PARTS = 4
"""Parts of the state that may stand side by side in one axis."""


@dataclass(frozen=True)
class Program:
    """One step; `heads` says that the state's first axis counts heads, which do not meet.

    `width` is that of a part of the state and `products` says what each of p0, p1, ... is the product with; outputs are
    `stacked` in an axis of their own, or stand side by side.
    """

    heads: bool
    stacked: bool
    width: int
    products: tuple[Product, ...]
    wire: Node
    update: tuple[Node, ...]
    output: tuple[Node, ...]

    @cached_property
    def text(self) -> str:
        """The program as JSON, equal for equal programs."""
        head = [len(self.update), len(self.output), self.heads, self.stacked, self.width, self.products]
        return as_json(head, self.wire, *self.update, *self.output)

    @property
    def parts(self) -> int:
        """Parts of the state."""
        return len(self.update)

    @cached_property
    def sent(self) -> int | None:
        """The part of the state that the wire is, where it is one."""
        return int(str(self.wire.value)[1:]) if self.wire.op == "var" else None

    @cached_property
    def streams(self) -> list[str]:
        """Pieces of streams that are used."""
        return self._used("x")

    @cached_property
    def weights(self) -> list[str]:
        """Pieces of weights that are used and no matrices."""
        return self._used("w")

    def _used(self, letter: str) -> list[str]:
        found = [n for n in variables([*self.update, *self.output]) if n[0] == letter]
        return sorted(found, key=lambda n: tuple(map(int, n[1:].split("."))))

    @cached_property
    def adjoint(self) -> dict[str, Node]:
        """Gradients by `h0`, ..., `p0`, ..., streams and weights, from `d0`, ..., `q` and `dy0`, ..."""
        states, inputs = [f"s{i}" for i in range(self.parts)], [*self.streams, *self.weights]
        seen = [(node, var(f"dy{i}")) for i, node in enumerate(self.output)]
        sent = substitute(self.wire, {f"h{i}": var(s) for i, s in enumerate(states)})
        inner = gradients([*seen, (sent, var("q"))], [*states, *inputs])
        names = [*(f"h{i}" for i in range(self.parts)), *(f"p{i}" for i in range(len(self.products))), *inputs]
        outer = gradients([(node, var(f"g{i}")) for i, node in enumerate(self.update)], names)
        arriving = {f"g{i}": add(var(f"d{i}"), inner[s]) for i, s in enumerate(states)}
        memo: dict[Node, Node] = {}
        found = {name: substitute(node, arriving, memo) for name, node in outer.items()}
        found |= {name: add(inner[name], found[name]) for name in inputs}
        known = {node: var(s) for node, s in zip(self.update, states, strict=True) if node.args}
        return {name: rename(node, known.get) for name, node in found.items()}

    @cached_property
    def first_adjoint(self) -> dict[str, Node]:
        """What flows to the first state, by `h0`, ..., where `q` flows to its wire."""
        return gradients([(self.wire, var("q"))], [f"h{i}" for i in range(self.parts)])

    @cached_property
    def replays(self) -> bool:
        """Whether backward needs the products themselves."""
        return any(name[0] == "p" for name in variables(self.adjoint.values()))


@lru_cache(maxsize=256)
def parse(text: str) -> Program:
    """The program of `Program.text`."""
    parts, outputs, *_ = json.loads(text)
    _, _, heads, stacked, width, products, *nodes = from_json(text, roots=1 + parts + outputs)
    made = tuple((tuple((int(w), bool(t)) for w, t in factors), int(piece)) for factors, piece in products)
    return Program(heads, stacked, width, made, nodes[0], tuple(nodes[1 : 1 + parts]), tuple(nodes[1 + parts :]))


def traced(cell: "Cell", shape: tuple[int, ...], streams: Sequence[Shapes]) -> Program:
    """The cell as a program.

    The last axis of the state may hold one part or several side by side, and an axis before it heads or parts. What
    fits is found by trying, one part and heads first.

    Args:
        cell: the step.
        shape: of the state, without the batch.
        streams: shapes of inputs, weights, queries, biases and gates, without batch and time.

    Raises:
        NotElementwise: it is no recurrence of this kind, or uses what the language lacks; the text says what.

    """
    if len(shape) == 1:
        ways = [_Way("", 1, shape[0] // k, k) for k in range(1, MOST_PARTS + 1) if shape[0] % k == 0]
    elif len(shape) == 2:
        ways = [_Way("H", shape[0], shape[1], 1), _Way("S", shape[0], shape[1], 1)]
    else:
        raise NotDense("a state of more than two axes")
    reasons: list[NotElementwise] = []
    for way in ways:
        try:
            return way.traced(cell, streams)
        except NotElementwise as error:
            reasons.append(error)
    raise reasons[0]


@dataclass(frozen=True)
class _Way:
    """A meaning of the state's axes: `axis` before the last is H, S or none, of `count`; `side` parts in the last."""

    axis: str
    count: int
    width: int
    side: int

    def traced(self, cell: "Cell", streams: Sequence[Shapes]) -> Program:
        made = Products(self.width)
        names = names_of(streams)
        inputs, queries, gates = (
            [self.stream(made, n, s) for n, s in zip(names[i], streams[i], strict=True)] for i in (0, 2, 4)
        )
        weights, biases = ([self.weight(made, n, s) for n, s in zip(names[i], streams[i], strict=True)] for i in (1, 3))
        try:
            if cell.before is not None:
                inputs = [_at_step(x) for x in cell.before(*map(_in_time, inputs), *biases)]
            new = _realised(cell.update(self.state(made, "h"), *inputs, *weights))
            seen: Any = self.state(made, "s")
            seen = seen if cell.read is None else cell.read(seen, *queries)
            if cell.after is not None:
                seen = _at_step(cell.after(_in_time(seen), *map(_in_time, gates)))
        except NotElementwise:
            raise
        except Exception as error:  # as in expression.trace
            raise NotElementwise(f"{type(error).__name__}: {error}") from error
        start, seen = self.state(made, "h"), _realised(seen)
        if made.wire is None:
            raise NotDense("no product of the state with a matrix")
        if new.axes != start.axes or len(new.nodes) != len(start.nodes):
            raise NotDense("an update whose result is not of the state's shape")
        if seen.axes not in (start.axes, start.axes.replace("S", "")):
            raise NotDense("a read-out whose axes are not the state's")
        heads, products = self.axis == "H", tuple(made.found)
        return Program(heads, "S" in seen.axes, self.width, products, made.wire, new.nodes, seen.nodes)

    def state(self, made: Products, letter: str) -> Pieces:
        stacked = self.count if self.axis == "S" else 1
        nodes = tuple(var(f"{letter}{i}") for i in range(stacked * self.side))
        return Pieces(nodes, f"B{self.axis}", made, stacked)

    def stream(self, made: Products, name: str, shape: tuple[int, ...]) -> Pieces:
        """`[B, T, k width]`; with heads also `[B, T, heads or 1, k width]`, with parts `[B, T, parts, width]`."""
        *lead, last = shape or (0,)
        stacked = self.count if self.axis == "S" and lead == [self.count] else 1
        if not last or last % self.width or not (not lead or stacked > 1 or (self.axis == "H" and len(lead) == 1)):
            raise NotDense(f"a stream of shape {tuple(shape)} beside parts of the state of width {self.width}")
        if self.axis == "H" and lead and lead[0] not in (1, self.count):
            raise NotDense(f"a stream of {lead[0]} heads beside a state of {self.count}")
        nodes = tuple(var(f"{name}.{i}") for i in range(stacked * last // self.width))
        return Pieces(nodes, f"B{self.axis if lead else ''}", made, stacked)

    def weight(self, made: Products, name: str, shape: tuple[int, ...]) -> Pieces | Factor:
        """A number, `[k width]`, with heads `[heads, k width]`; else a matrix."""
        by_head = self.axis == "H" and len(shape) == 2 and shape[0] == self.count and shape[0] % self.width
        if len(shape) > 1 and not by_head:
            if len(shape) > 3 or (len(shape) == 3 and (self.axis != "H" or shape[0] != self.count)):
                raise NotDense(f"a weight of shape {tuple(shape)}")
            return Factor(int(name[1:]), tuple(shape))
        last = self.width if shape in ((), (1,)) else shape[-1]
        if last % self.width:
            raise NotDense(f"a weight of shape {tuple(shape)} beside parts of the state of width {self.width}")
        return Pieces(tuple(var(f"{name}.{i}") for i in range(last // self.width)), "H" if by_head else "", made)


def _realised(x: Any) -> Pieces:
    if not isinstance(x, Pieces):
        raise NotDense(f"{x!r}, which is no tensor")
    return x.realised()


def _in_time(x: Any) -> Any:
    """For all steps at once, as `before` and `after` see it."""
    return Pieces(x.nodes, f"BT{x.axes[1:]}", x.made, x.stacked)


def _at_step(x: Any) -> Pieces:
    """Undo `_in_time`."""
    x = _realised(x)
    return Pieces(x.nodes, x.axes.replace("T", ""), x.made, x.stacked)
