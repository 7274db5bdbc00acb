"""Cells over a matrix whose rows never meet, as expressions: tracing, kinds of values, derivatives.

A value is a matrix, one number per row, one per column, or a scalar: its kind is the set of axes that it has, "r" and
"c". Values of different kinds broadcast. The state's rows are the axis along which nothing is ever summed: `S @ k`
sums over columns, `S.mT @ k` over what is then called columns too. The language is that of kernels.expression and

    @  matmul  bmm  baddbmm  einsum   where a matrix meets a vector, or two vectors make a matrix
    sum  mean  linalg.vector_norm    over one axis
    unsqueeze  squeeze  [..., None]  mT  transpose  reshape(-1, ...)  view_as
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from rnn_lab.kernels.expression import (
    ZERO,
    Incomparable,
    Node,
    NotElementwise,
    Symbol,
    add,
    const,
    derivatives,
    mul,
    ordered,
    var,
)

Axes = tuple[tuple[str, int], ...]
"""Label and size per axis: "B" sequences, "T" steps, "H0".. heads, "0" and "1" the matrix, "?" not known yet, "" 1."""
_BATCH, _TIME = 10007, 10009
"""Sizes of batch and time while tracing: no cell may use them."""


class RowsMeet(NotElementwise):
    """The cell is no recurrence of independent rows; the text says why."""


def kind(node: Node, known: dict[Node, str] | None = None) -> str:
    """The axes of a value: "", "r", "c" or "cr". A variable's are in its name, behind the last dot."""
    known = {} if known is None else known
    if node not in known:
        if node.op == "var":
            known[node] = str(node.value).rpartition(".")[2]
        else:
            found = "".join(kind(a, known) for a in node.args)
            known[node] = "".join(
                axis for axis in "cr" if axis in found and not (node.op == "sum" and axis == node.value)
            )
    return known[node]


def total(node: Node, axis: str) -> Node:
    """Sum over an axis."""
    return ZERO if node is ZERO else Node("sum", (node,), axis)


def rename(node: Node, change: Callable[[Node], Node | None], memo: dict[Node, Node] | None = None) -> Node:
    """The node with every node replaced for which `change` gives another; parts of those stay as they are."""
    memo = {} if memo is None else memo
    if node not in memo:
        other = change(node)
        if other is None:
            other = Node(node.op, tuple(rename(a, change, memo) for a in node.args), node.value)
        memo[node] = other
    return memo[node]


def gradients(outputs: Sequence[tuple[Node, Node]], names: Iterable[str]) -> dict[str, Node]:
    """As expression.gradients; what flows from a larger kind to a smaller one is summed over the axes between.

    Contributions of one kind are added before they are summed.
    """
    flow: dict[Node, dict[str, Node]] = {}
    known: dict[Node, str] = {}

    def arrive(node: Node, g: Node, axes: str) -> None:
        """G flows to every entry of something with these axes that was made from the node."""
        kinds = flow.setdefault(node, {})
        kinds[axes] = add(kinds.get(axes, ZERO), g)

    def collected(node: Node) -> Node:
        out = ZERO
        for axes, g in flow.get(node, {}).items():
            for axis in axes:
                g = g if axis in kind(node, known) else total(g, axis)
            out = add(out, g)
        return out

    for output, cotangent in outputs:
        arrive(output, cotangent, kind(output, known))
    for node in reversed(ordered([output for output, _ in outputs])):
        if not node.args or (g := collected(node)) is ZERO:
            continue
        if node.op == "sum":
            (a,) = node.args
            arrive(a, g, "".join(x for x in "cr" if x in kind(a, known) + str(node.value)))
            continue
        axes = "".join(x for x in "cr" if x in kind(node, known))
        for a, d in zip(node.args, derivatives(node, g), strict=True):
            if d is not ZERO and a.op != "const":
                arrive(a, d, axes)
    return {name: collected(var(name)) for name in names}


@dataclass(frozen=True, eq=False, repr=False)
class Labelled(Incomparable):
    """Stands for a tensor while a cell is traced."""

    node: Node
    axes: Axes

    dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(size for _, size in self.axes)

    def dim(self) -> int:
        """How many axes."""
        return len(self.axes)

    ndim = property(dim)

    def __bool__(self) -> bool:
        raise NotElementwise("a branch on a value")

    def size(self, axis: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if axis is None else self.shape[axis]

    def resolved(self, label: str) -> "Labelled":
        """With its unknown axis called `label`."""

        def change(node: Node) -> Node | None:
            if node.op == "var" and str(node.value).endswith("|?"):
                return var(str(node.value)[:-1] + label)
            if node.op == "sum" and node.value == "?":
                return Node("sum", (rename(node.args[0], change),), label)
            return None

        return Labelled(rename(self.node, change), tuple((label if a == "?" else a, n) for a, n in self.axes))

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", str(function))
        if name in _STRUCTURAL:
            return _STRUCTURAL[name](*args, **(kwargs or {}))
        symbols, axes = aligned([a for a in args if isinstance(a, Labelled)])
        waiting = iter(symbols)
        plain = tuple(Symbol(next(waiting).node) if isinstance(a, Labelled) else a for a in args)
        return Labelled(Symbol.__torch_function__(function, types, plain, kwargs).node, axes)

    def to(self, *args: Any, **kwargs: Any) -> "Labelled":
        """Itself: casts mean nothing here."""
        return self

    float = contiguous = clone = to

    @property
    def mT(self) -> "Labelled":
        """With its last two axes exchanged."""
        return _transpose(self, -1, -2)

    def __getitem__(self, key: Any) -> "Labelled":
        keys = list(key) if isinstance(key, tuple) else [key]
        given = sum(k is not None and k is not Ellipsis for k in keys)
        if Ellipsis not in keys:
            keys.append(Ellipsis)
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(self.axes) - given)
        if any(k is not None and k != slice(None) for k in keys):
            raise NotElementwise("indexing other than by None")
        waiting = iter(self.axes)
        return Labelled(self.node, tuple(("", 1) if k is None else next(waiting) for k in keys))

    def __neg__(self) -> "Labelled":
        return Labelled.__torch_function__(torch.neg, (), (self,))  # type: ignore[no-any-return]

    def __pow__(self, exponent: Any) -> "Labelled":
        return Labelled.__torch_function__(torch.pow, (), (self, exponent))  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch.Tensor, name, None)
        if function is None or name.startswith("__"):
            raise AttributeError(name)
        if not callable(function):
            raise NotElementwise(f".{name}")
        return lambda *args, **kwargs: Labelled.__torch_function__(function, (), (self, *args), kwargs)


def _operator(function: Any, swapped: bool) -> Any:
    def apply(self: Labelled, other: Any) -> Any:
        return Labelled.__torch_function__(function, (), (other, self) if swapped else (self, other))

    return apply


for _name, _function in (("add", torch.add), ("sub", torch.sub), ("mul", torch.mul), ("truediv", torch.div),
                         ("matmul", torch.matmul)):  # fmt: skip
    setattr(Labelled, f"__{_name}__", _operator(_function, False))
    setattr(Labelled, f"__r{_name}__", _operator(_function, True))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Labelled, f"__{_name}__", _operator(getattr(torch, _name), False))


def aligned(symbols: Sequence[Labelled]) -> tuple[list[Labelled], Axes]:
    """The symbols with unknown axes called by what they meet when broadcast, and the axes of the result."""
    width, symbols = max(len(s.axes) for s in symbols), list(symbols)
    axes: list[tuple[str, int]] = []
    for position in range(-width, 0):
        here = [s.axes[position] for s in symbols if len(s.axes) >= -position]
        labels = sorted({a for a in here if a[0]}, key=lambda a: a[0] == "?")
        chosen = labels[0] if labels else ("", 1)
        if any(a[0] != "?" or a[1] != chosen[1] for a in labels[1:]):
            raise NotElementwise("operands whose axes do not match")
        axes.append(chosen)
    unknown = [i for i, (label, _) in enumerate(axes) if label == "?"]
    for i, label in zip(unknown, "01", strict=False) if len(unknown) > 1 else ():  # two vectors make the matrix itself
        axes[i] = (label, axes[i][1])
    out = []
    for s in symbols:
        met = [axes[i - len(s.axes)][0] for i, a in enumerate(s.axes) if a[0] == "?"]
        if met and met[0][:1] == "H" and sum(label[:1] == "H" for label, _ in axes) > 1:
            raise RowsMeet("a weight along one of several axes of heads")
        out.append(s.resolved(met[0]) if met and met[0] != "?" else s)
    return out, tuple(axes)


def _product(a: Labelled, b: Labelled) -> Labelled:
    """Element-wise, broadcast."""
    (a, b), axes = aligned([a, b])
    return Labelled(mul(a.node, b.node), axes)


def _sum(x: Labelled, dim: Any = None, keepdim: bool = False, *, axis: Any = None, mean: bool = False) -> Labelled:
    """Over axes of the matrix or of a vector."""
    dim = axis if dim is None else dim
    dims = range(len(x.axes)) if dim is None else [dim] if isinstance(dim, int) else dim
    node, axes = x.node, list(x.axes)
    for d in sorted((d % len(axes) for d in dims), reverse=True):
        label, size = axes[d]
        if label and label not in "01?":
            raise RowsMeet("a sum over sequences, steps or heads")
        if label:
            node = total(node, label) if not mean else mul(const(1 / size), total(node, label))
        axes[d : d + 1] = [("", 1)] if keepdim else []
    return Labelled(node, tuple(axes))


def _mean(x: Labelled, dim: Any = None, keepdim: bool = False) -> Labelled:
    return _sum(x, dim, keepdim, mean=True)


def _norm(x: Labelled, ord: Any = 2, dim: Any = None, keepdim: bool = False) -> Labelled:
    if ord not in (2, "fro"):
        raise NotElementwise(f"a norm of order {ord}")
    square: Any = _sum(_product(x, x), dim, keepdim)
    return square.clamp(min=1e-37).sqrt()  # type: ignore[no-any-return]  # as torch has it, no gradient at zero


def _matmul(a: Labelled, b: Labelled) -> Labelled:
    """A matrix by a vector, or two vectors that make a matrix."""
    if len(b.axes) == 1 or len(a.axes) == 1:
        raise NotElementwise("a product with a vector that all sequences share")
    *_, i, j = a.axes
    *_, k, m = b.axes
    if bool(j[0]) != bool(k[0]) or (i[0] and j[0] and m[0]):
        raise RowsMeet("a product of two matrices")
    if not j[0]:
        return _product(a, b)
    # [.., i, j] @ [.., j, 1]: b's j lies over a's; [.., 1, j] @ [.., j, m]: a's over b's.
    return _sum(_product(_transpose(a), b), -2, True) if m[0] else _sum(_product(a, _transpose(b)), -1, True)


def _baddbmm(x: Labelled, a: Labelled, b: Labelled, *, beta: float = 1, alpha: float = 1) -> Any:
    return _scaled(beta, x) + _scaled(alpha, _matmul(a, b))


def _scaled(factor: float, x: Labelled) -> Any:
    return x if factor == 1 else factor * x  # type: ignore[operator]


def _einsum(equation: str, *operands: Any) -> Labelled:
    """Products summed over the letters that the result lacks."""
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    given, _, wanted = equation.replace(" ", "").partition("->")
    if "." in equation or not wanted:
        raise NotElementwise("einsum with an ellipsis, or without ->")
    letters = [*wanted, *sorted(set(given) - {",", *wanted})]
    spread = []
    for term, x in zip(given.split(","), operands, strict=True):
        place = dict(zip(term, x.axes, strict=True))
        spread.append(Labelled(x.node, tuple(place.get(letter, ("", 1)) for letter in letters)))
    for _ in letters:  # what one letter settles may settle another
        spread, axes = aligned(spread)
    out = Labelled(reduce(mul, [s.node for s in spread]), axes)
    out = _sum(out, [i for i, letter in enumerate(letters) if letter not in wanted], True)
    return Labelled(out.node, tuple(out.axes[letters.index(letter)] for letter in wanted))


def _unsqueeze(x: Labelled, dim: int) -> Labelled:
    at = dim % (len(x.axes) + 1)
    return Labelled(x.node, (*x.axes[:at], ("", 1), *x.axes[at:]))


def _squeeze(x: Labelled, dim: int) -> Labelled:
    at = dim % len(x.axes)
    return x if x.axes[at][0] else Labelled(x.node, (*x.axes[:at], *x.axes[at + 1 :]))


def _transpose(x: Labelled, a: int = -1, b: int = -2) -> Labelled:
    axes = list(x.axes)
    axes[a], axes[b] = axes[b], axes[a]
    return Labelled(x.node, tuple(axes))


def _reshape(x: Labelled, *sizes: Any) -> Labelled:
    """Leading axes to one, or one of size 1 more."""
    sizes = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    own = [a for a in x.axes if a[0]]
    if any(size == 1 and label in "01?" for label, size in own):
        raise NotElementwise("a reshape where a matrix or vector has one row or column, which looks like a new axis")
    tail = [n for n in sizes[1:] if n != 1]
    lead, kept = own[: len(own) - len(tail)], own[len(own) - len(tail) :]
    if sizes[0] != -1 or [n for _, n in kept] != tail or any(label in "01?" for label, _ in lead):
        raise NotElementwise(f"a reshape to {tuple(sizes)}")
    waiting = iter(kept)
    return Labelled(x.node, (("*", -1), *(("", 1) if n == 1 else next(waiting) for n in sizes[1:])))


def _view_as(x: Labelled, like: Labelled) -> Labelled:
    tail = Labelled(like.node, like.axes[1 - len(x.axes) :])
    (x, _), _ = aligned([Labelled(x.node, x.axes[1:]), tail])
    return Labelled(x.node, like.axes)


_STRUCTURAL: dict[str, Callable[..., Any]] = {
    "matmul": _matmul, "bmm": _matmul, "baddbmm": _baddbmm, "einsum": _einsum,
    "sum": _sum, "mean": _mean, "linalg_vector_norm": _norm, "norm": _norm,
    "unsqueeze": _unsqueeze, "squeeze": _squeeze, "transpose": _transpose, "swapaxes": _transpose,
    "reshape": _reshape, "view": _reshape, "view_as": _view_as, "reshape_as": _view_as,
}  # fmt: skip


def symbol(name: str, shape: Sequence[int], heads: Sequence[int], timed: bool) -> Labelled:
    """A stream `[B, (T,) *heads, n]` or `[B, (T,) *heads]`, or a weight `[n]`, `[*heads, n]`, `[*heads]` or `[]`.

    `shape` is what follows batch and time. Whether a weight `[n]` goes with rows, columns or one axis of heads turns
    out where it is used.

    Raises:
        RowsMeet: it has another shape.

    """
    lead: Axes = (("B", _BATCH),) if timed else ()
    named = tuple((f"H{i}", n) for i, n in enumerate(heads))
    shape = tuple(shape)
    if not timed and not shape:
        return Labelled(var(name), ())
    if shape == tuple(heads) and (timed or len(shape) > 1):
        return Labelled(var(name), (*lead, *named))
    if shape[:-1] == tuple(heads) or (not timed and len(shape) == 1):
        return Labelled(var(f"{name}|?"), (*lead, *(named if len(shape) > 1 else ()), ("?", shape[-1])))
    if not timed and len(shape) > len(heads) + 1:
        raise RowsMeet("a weight that is a matrix, so that rows meet")
    raise RowsMeet(f"a {'stream' if timed else 'weight'} of shape {shape} beside heads {tuple(heads)}")


def in_time(x: Labelled) -> Labelled:
    """For all steps at once, as `before` and `after` see it."""
    return Labelled(x.node, (x.axes[0], ("T", _TIME), *x.axes[1:])) if x.axes and x.axes[0][0] == "B" else x


def at_step(x: Any) -> Labelled:
    """Undo `in_time`."""
    if not isinstance(x, Labelled):
        raise NotElementwise(f"{x!r}, which is no tensor")
    return Labelled(x.node, tuple(a for a in x.axes if a[0] != "T"))


def state(shape: Sequence[int], name: str) -> Labelled:
    """The matrix `[B, *heads, rows, columns]`; `shape` is what follows the batch."""
    *heads, rows, columns = shape
    named = [(f"H{i}", n) for i, n in enumerate(heads)]
    return Labelled(var(name), (("B", _BATCH), *named, ("0", rows), ("1", columns)))
