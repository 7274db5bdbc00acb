"""Symbols for cells whose state meets itself through products with matrices: `linear(h, W)` and what is element-wise.

What is added to the language of kernels.expression, and nothing else:

    @  mm  matmul  bmm  linear  addmm  baddbmm      of a function of the state and weights that are matrices
    .T  .mT  transpose                              of a matrix, or of heads and sequences
    chunk  split  unbind  cat  stack  [..., i, :]   of parts that are as wide as the state
    unsqueeze  squeeze                              of an axis for heads

Every tensor is a row of pieces that are as wide as a part of the state, one expression each: three for the gates of a
GRU, two for an LSTM's h and c. A product of the function `m` of the state before with a chain of matrices is a variable
`p0`, `p1`, ... for each of its pieces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from rnn_lab.kernels.expression import Incomparable, Node, NotElementwise, Symbol, var, variables


class NotDense(NotElementwise):
    """The cell is no recurrence of this kind; the text says why."""


@dataclass(frozen=True, eq=False, repr=False)
class Factor(Incomparable):
    """A weight's matrix `[H?, rows, columns]`, transposed or not."""

    weight: int
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def mT(self) -> "Factor":
        """The other way round."""
        return Factor(self.weight, (*self.shape[:-2], self.shape[-1], self.shape[-2]), not self.transposed)

    @property
    def T(self) -> "Factor":
        """The other way round."""
        if len(self.shape) > 2:
            raise NotDense(".T of a matrix per head")
        return self.mT

    def dim(self) -> int:
        """How many axes."""
        return len(self.shape)

    ndim = property(dim)

    def size(self, axis: int) -> int:
        """As of a tensor."""
        return self.shape[axis]

    def t(self) -> "Factor":
        """The other way round."""
        return self.T

    def transpose(self, a: int, b: int) -> "Factor":
        """The other way round: of its last two axes only."""
        if {a % len(self.shape), b % len(self.shape)} != {len(self.shape) - 1, len(self.shape) - 2}:
            raise NotDense("a matrix per head with other axes exchanged")
        return self.mT

    def to(self, *args: Any, **kwargs: Any) -> "Factor":
        """Itself: casts mean nothing here."""
        return self

    float = contiguous = to

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Pieces.__torch_function__(function, types, args, kwargs)

    def __rmatmul__(self, other: Any) -> "Pieces":
        return _matmul(other, self)

    def __mul__(self, other: Any) -> Any:
        raise NotDense("arithmetic with a matrix: scale what it is multiplied with, or do it before the recurrence")

    __rmul__ = __truediv__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__

    def __neg__(self) -> Any:
        return self * -1


Product = tuple[tuple[tuple[int, bool], ...], int]
"""Weights, each transposed or not, whose product is multiplied from the right; and which piece of the result."""


@dataclass
class Products:
    """Every product that was met while a cell was traced, and the one function of the state that they are of."""

    width: int
    wire: Node | None = None
    found: list[Product] = field(default_factory=list)

    def piece(self, wire: Node, factors: tuple[Factor, ...], index: int) -> Node:
        """The variable that stands for a piece."""
        if self.wire not in (None, wire):
            raise NotDense("products of two functions of the state: one exchange per step cannot carry both")
        self.wire = wire
        product = tuple((f.weight, f.transposed) for f in factors), index
        if product not in self.found:
            self.found.append(product)
        return var(f"p{self.found.index(product)}")


@dataclass(frozen=True, eq=False, repr=False)
class Pieces(Incomparable):
    """Stands for a tensor while a cell is traced.

    `axes` are what precede the last axis: B, T, H for heads, S for parts of the state, 1 for an axis without size.
    `nodes` has a node for each of the S parts, if there is such an axis, and piece. `factors` are matrices that the
    only piece is multiplied with from the right, as long as nobody asks for the product.
    """

    nodes: tuple[Node, ...]
    axes: str
    made: Products
    stacked: int = 1
    factors: tuple[Factor, ...] = ()

    dtype = torch.float32

    def with_nodes(self, nodes: Sequence[Node]) -> "Pieces":
        """The same axes around other pieces."""
        return Pieces(tuple(nodes), self.axes, self.made, self.stacked)

    def dim(self) -> int:
        """How many axes."""
        return len(self.axes) + 1

    ndim = property(dim)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes; -1 for those before the last, which a cell has no reason to know."""
        last = self.factors[-1].shape[-1] if self.factors else len(self.nodes) // self.stacked * self.made.width
        return (*(-1 for _ in self.axes), last)

    def size(self, axis: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if axis is None else self.shape[axis]

    def realised(self) -> "Pieces":
        """With variables for a product."""
        if not self.factors:
            return self
        width = self.factors[-1].shape[-1]
        if width % self.made.width:
            raise NotDense(f"a product of width {width} beside a state of {self.made.width}")
        (wire,) = self.nodes
        count = width // self.made.width
        return self.with_nodes([self.made.piece(wire, self.factors, i) for i in range(count)])

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", str(function))
        if name in _STRUCTURAL:
            return _STRUCTURAL[name](*args, **(kwargs or {}))
        if any(isinstance(a, Factor) for a in args):
            raise NotDense(f"{name} of a matrix")
        operands = [a.realised() for a in args if isinstance(a, Pieces)]
        like = max(operands, key=lambda a: (len(a.axes), len(a.nodes)))
        if any(not _fits(a, like) for a in operands):
            raise NotDense("operands whose axes do not match")
        out, rest = [], iter(operands)
        spread = [next(rest) if isinstance(a, Pieces) else a for a in args]
        for i in range(len(like.nodes)):
            plain = [Symbol(a.nodes[i % len(a.nodes)]) if isinstance(a, Pieces) else a for a in spread]
            out.append(Symbol.__torch_function__(function, types, tuple(plain), kwargs).node)
        return like.with_nodes(out)

    def to(self, *args: Any, **kwargs: Any) -> "Pieces":
        """Itself: casts mean nothing here."""
        return self

    float = contiguous = clone = to

    def __bool__(self) -> bool:
        raise NotDense("a branch on a value")

    def __getitem__(self, key: Any) -> "Pieces":
        keys = [*key] if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys[at : at + 1] = [slice(None)] * (self.dim() - len(keys) + 1)
        keys += [slice(None)] * (self.dim() - len(keys))
        picked = [(i, k) for i, k in enumerate(keys) if k != slice(None)]
        if len(picked) == 1 and isinstance(picked[0][1], int) and picked[0][0] < len(self.axes):
            return _unbind(self, picked[0][0])[picked[0][1]]
        raise NotDense("indexing other than of a part of the state")

    def __neg__(self) -> "Pieces":
        return Pieces.__torch_function__(torch.neg, (), (self,))  # type: ignore[no-any-return]

    def __pow__(self, exponent: Any) -> "Pieces":
        return Pieces.__torch_function__(torch.pow, (), (self, exponent))  # type: ignore[no-any-return]

    def __matmul__(self, other: Any) -> "Pieces":
        return _matmul(self, other)

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch.Tensor, name, None)
        if function is None or name.startswith("__"):
            raise AttributeError(name)
        if not callable(function):
            raise NotDense(f".{name}")
        return lambda *args, **kwargs: Pieces.__torch_function__(function, (), (self, *args), kwargs)


def _operator(function: Any, swapped: bool) -> Any:
    def apply(self: Pieces, other: Any) -> Any:
        return Pieces.__torch_function__(function, (), (other, self) if swapped else (self, other))

    return apply


for _name, _function in (("add", torch.add), ("sub", torch.sub), ("mul", torch.mul), ("truediv", torch.div)):
    setattr(Pieces, f"__{_name}__", _operator(_function, False))
    setattr(Pieces, f"__r{_name}__", _operator(_function, True))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Pieces, f"__{_name}__", _operator(getattr(torch, _name), False))


def _fits(a: Pieces, like: Pieces) -> bool:
    """Whether `a` broadcasts to `like`: its axes are the last ones there, and it has as many pieces, or one."""
    tail = like.axes[len(like.axes) - len(a.axes) :]
    axes = all(x in (y, "1") for x, y in zip(a.axes, tail, strict=True))
    return axes and len(a.nodes) in (1, len(like.nodes), len(like.nodes) // like.stacked)


def _matmul(a: Any, b: Any) -> Pieces:
    """A function of the state by a matrix."""
    if not isinstance(a, Pieces) or not isinstance(b, Factor):
        raise NotDense("a product with what is no weight, or of what is none of the state")
    heads = len(b.shape) > 2
    if heads and a.axes[:1] != "H":
        raise NotDense("a matrix per head beside a state whose first axis is none of heads")
    have = a.factors[-1].shape[-1] if a.factors else a.made.width * len(a.nodes)
    if have != b.shape[-2]:
        raise NotDense(f"a product of width {have} with a matrix of {b.shape[-2]} rows")
    if not a.factors:
        used = variables(a.nodes)
        if any(name[0] == "p" for name in used):
            raise NotDense("a product of what another product enters: two exchanges per step")
        if len(a.nodes) != 1 or any(name[0] != "h" for name in used) or not used:
            raise NotDense("a product of something other than one function of the state alone")
    return Pieces(a.nodes, a.axes, a.made, a.stacked, (*a.factors, b))


def _addmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product: Any = _matmul(a, b).realised()
    return (x if beta == 1 else beta * x) + (product if alpha == 1 else alpha * product)


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, Factor):
        raise NotDense("linear with what is no weight")
    product: Any = _matmul(x, weight.mT)
    return product if bias is None else product.realised() + bias


def _transpose(x: Any, a: int, b: int) -> Any:
    if isinstance(x, Factor):
        return x.transpose(a, b)
    a, b = a % x.dim(), b % x.dim()
    if len(x.axes) in (a, b) or "S" in x.axes:
        raise NotDense("a transpose of the state's own axis")
    axes = list(x.axes)
    axes[a], axes[b] = axes[b], axes[a]
    return Pieces(x.nodes, "".join(axes), x.made, x.stacked, x.factors)


def _cut(x: Pieces, sizes: Sequence[int]) -> tuple[Pieces, ...]:
    """Along the last axis, after so many pieces each."""
    if x.stacked > 1:
        raise NotDense("a split of stacked parts of the state")
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(x.with_nodes(x.nodes[end - size : end]) for size, end in zip(sizes, ends, strict=True))


def _chunk(x: Pieces, chunks: int, dim: int = 0) -> tuple[Pieces, ...]:
    x = x.realised()
    if dim % x.dim() != len(x.axes) or len(x.nodes) % chunks:
        raise NotDense(f"chunks of {len(x.nodes)} times the state's width into {chunks} parts")
    return _cut(x, [len(x.nodes) // chunks] * chunks)


def _split(x: Pieces, size: Any, dim: int = 0) -> tuple[Pieces, ...]:
    x, width = x.realised(), x.made.width
    sizes = [size] * (len(x.nodes) * width // size) if isinstance(size, int) else list(size)
    if dim % x.dim() != len(x.axes) or any(n % width for n in sizes) or sum(sizes) != len(x.nodes) * width:
        raise NotDense("a split into parts that are not as wide as the state")
    return _cut(x, [n // width for n in sizes])


def _unbind(x: Pieces, dim: int = 0) -> tuple[Pieces, ...]:
    at = dim % x.dim()
    if x.axes[at : at + 1] != "S":
        raise NotDense("unbind of an axis that does not count parts of the state")
    axes, each = x.axes.replace("S", ""), len(x.nodes) // x.stacked
    return tuple(Pieces(x.nodes[i * each : (i + 1) * each], axes, x.made) for i in range(x.stacked))


def _stack(parts: Sequence[Pieces], dim: int = 0) -> Pieces:
    parts = [p.realised() for p in parts]
    first = parts[0]
    if dim % (first.dim() + 1) != len(first.axes) or any(p.axes != first.axes or p.stacked > 1 for p in parts):
        raise NotDense("stack of other than parts of the state, beside its last axis")
    return Pieces(tuple(n for p in parts for n in p.nodes), f"{first.axes}S", first.made, len(parts))


def _cat(parts: Sequence[Pieces], dim: int = 0) -> Pieces:
    parts = [p.realised() for p in parts]
    first = parts[0]
    if dim % first.dim() != len(first.axes) or any(p.axes != first.axes or p.stacked > 1 for p in parts):
        raise NotDense("cat along an axis other than the last")
    return first.with_nodes([n for p in parts for n in p.nodes])


def _unsqueeze(x: Pieces, dim: int) -> Pieces:
    at = dim % (x.dim() + 1)
    if at > len(x.axes):
        raise NotDense("an axis behind the state's own")
    return Pieces(x.nodes, f"{x.axes[:at]}1{x.axes[at:]}", x.made, x.stacked, x.factors)


def _squeeze(x: Pieces, dim: int) -> Pieces:
    at = dim % x.dim()
    if x.axes[at : at + 1] != "1":
        return x
    return Pieces(x.nodes, x.axes[:at] + x.axes[at + 1 :], x.made, x.stacked, x.factors)


_STRUCTURAL: dict[str, Callable[..., Any]] = {
    "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "addmm": _addmm, "baddbmm": _addmm,
    F.linear.__name__: _linear, "transpose": _transpose, "swapaxes": _transpose,
    "chunk": _chunk, "split": _split, "unbind": _unbind, "stack": _stack, "cat": _cat, "concat": _cat,
    "unsqueeze": _unsqueeze, "squeeze": _squeeze,
}  # fmt: skip
