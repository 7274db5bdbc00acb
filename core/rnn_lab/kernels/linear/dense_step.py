"""Steps that are linear in a vector state: h W, or h W', plus inputs, found by tracing plain torch code.

What `update` may use to be found so, and nothing else: products of the state with one of the weights (`@`, mm, addmm,
F.linear), transposes of weights, sums with inputs, casts. What is not linear in the inputs belongs into `before`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional as F

from rnn_lab.kernels.expression import Incomparable, NotElementwise, trace

if TYPE_CHECKING:
    from rnn_lab.kernels.cell import Cell

STATE = "h"


class NotLinear(NotElementwise):
    """The step left the language above; the text says with what."""


@dataclass(frozen=True)
class Step:
    """h W + the sum of inputs, W' if `transposed`; inputs and weights by their places."""

    weight: int
    transposed: bool
    inputs: tuple[int, ...]

    @property
    def text(self) -> str:
        """Equal for equal steps."""
        return repr(self)


@dataclass(frozen=True)
class Product:
    """The state times a weight."""

    weight: int
    transposed: bool


@dataclass(frozen=True)
class Matrix:
    """A weight or its transpose."""

    weight: int
    transposed: bool = False


class Symbol(Incomparable):
    """Stands for a tensor while a step is traced: a weight, or a sum of the state, its products and inputs."""

    _meaning: ClassVar[dict[Any, Callable[..., "Symbol"]]] = {}

    def __init__(self, terms: Sequence[object]) -> None:
        self.terms = tuple(terms)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> "Symbol":
        if function not in cls._meaning or kwargs:
            raise NotLinear(
                f"{getattr(function, '__name__', function)}, which is not linear in the state or not listed"
            )
        return cls._meaning[function](*args)

    def __bool__(self) -> bool:
        raise NotLinear("a branch on a value")

    def to(self, *args: Any, **kwargs: Any) -> "Symbol":
        """Itself: casts mean nothing here."""
        return self

    float = to

    @property
    def T(self) -> "Symbol":
        """The transpose of a weight."""
        (matrix,) = self.terms
        if not isinstance(matrix, Matrix):
            raise NotLinear("the transpose of what is no weight")
        return Symbol([Matrix(matrix.weight, not matrix.transposed)])

    mT = T

    def t(self) -> "Symbol":
        """As T."""
        return self.T

    def transpose(self, first: int, second: int) -> "Symbol":
        """As T."""
        if {first % 2, second % 2} != {0, 1}:
            raise NotLinear("a weight with other axes exchanged")
        return self.T

    def __add__(self, other: Any) -> "Symbol":
        return _sum(self, other)

    __radd__ = __add__

    def __matmul__(self, other: Any) -> "Symbol":
        return _product(self, other)

    def __mul__(self, other: Any) -> "Symbol":
        raise NotLinear("an element-wise product")

    __rmul__ = __mul__

    def __getattr__(self, name: str) -> Any:
        raise NotLinear(f".{name}, which is not linear in the state or not listed")


def _sum(a: Any, b: Any) -> Symbol:
    terms = [term for x in (a, b) if isinstance(x, Symbol) for term in x.terms]
    if not (isinstance(a, Symbol) and isinstance(b, Symbol)) or any(isinstance(term, Matrix) for term in terms):
        raise NotLinear("a sum with what is no input")
    return Symbol(terms)


def _product(a: Any, b: Any) -> Symbol:
    if not (isinstance(a, Symbol) and isinstance(b, Symbol) and a.terms == (STATE,) and isinstance(b.terms[0], Matrix)):
        raise NotLinear("a product of other than the state with a weight")
    return Symbol([Product(b.terms[0].weight, b.terms[0].transposed)])


def _affine(x: Any, weight: Any, bias: Any = None) -> Symbol:
    product = _product(x, weight.T)
    return product if bias is None else _sum(product, bias)


Symbol._meaning.update({
    torch.add: _sum, torch.Tensor.add: _sum, torch.mm: _product, torch.matmul: _product,
    torch.addmm: lambda c, a, b: _sum(c, _product(a, b)), F.linear: _affine,
})  # fmt: skip


def traced(cell: "Cell", counts: tuple[int, ...]) -> Step:
    """The step that `cell.update` is; its inputs are those that `before` makes.

    Args:
        cell: anybody's.
        counts: lengths of the five parts of Streams.

    Raises:
        NotElementwise: it is no such step, or `before` is not element-wise.

    """
    n_inputs, n_weights, _, n_biases, _ = counts
    if cell.before is not None:
        n_inputs = len(trace(cell.before, *(f"x{i}" for i in range(n_inputs + n_biases))))
    inputs = [Symbol([i]) for i in range(n_inputs)]
    found = cell.update(Symbol([STATE]), *inputs, *(Symbol([Matrix(i)]) for i in range(n_weights)))
    terms: tuple[Any, ...] = getattr(found, "terms", ())
    products = [term for term in terms if isinstance(term, Product)]
    added = tuple(term for term in terms if isinstance(term, int))
    if len(products) != 1 or not added or len(products) + len(added) != len(terms):
        raise NotLinear("a state that is not one product of the last with a matrix, plus inputs")
    return Step(products[0].weight, products[0].transposed, added)
