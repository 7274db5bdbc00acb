"""Element-wise functions as expressions: traced from plain torch code and differentiated; kernels.dialects prints them.

What a function may use to be traced, and nothing else (docs/add-a-kernel.md):

    + - * / unary -   ** with a whole number   comparisons with where
    sigmoid  tanh  silu  exp  log  sqrt  abs  sign  square  relu  softplus  logsigmoid  minimum  maximum  clamp
    to, float and detach-free casts, which change nothing: a kernel computes in fp32
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch.nn import functional as F


class NotElementwise(TypeError):
    """The function left the language above; the text says with what."""


class Node:
    """One value: `op` of `args`, which are nodes; a variable or constant has its name or number in `value`.

    Equal nodes are one object, so that a shared part is computed once.
    """

    __slots__ = ("__weakref__", "args", "op", "value")
    op: str
    args: tuple["Node", ...]
    value: str | float
    _all: ClassVar[WeakValueDictionary[tuple[object, ...], "Node"]] = WeakValueDictionary()

    def __new__(cls, op: str, args: tuple["Node", ...] = (), value: str | float = "") -> "Node":
        """The one node of these parts."""
        key = (op, args, value)
        node = cls._all.get(key)
        if node is None:
            node = super().__new__(cls)
            node.op, node.args, node.value = op, args, value
            cls._all[key] = node
        return node

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is the node itself."""
        return Node, (self.op, self.args, self.value)


def const(x: float) -> Node:
    """A number."""
    return Node("const", value=float(x))


def var(name: str) -> Node:
    """An argument."""
    return Node("var", value=name)


ZERO, ONE = const(0), const(1)


def _is(node: Node, x: float) -> bool:
    return node.op == "const" and node.value == x


def add(a: Node, b: Node) -> Node:
    """A + b, zeros left out; w * x + (1 - w) * y is y + w * (x - y), with one product less there and in derivatives."""
    if _is(a, 0):
        return b
    if _is(b, 0):
        return a
    for one, other in ((a, b), (b, a)):
        if one.op == other.op == "mul":
            for w, x in (one.args, one.args[::-1]):
                for rest, y in (other.args, other.args[::-1]):
                    if rest.op == "sub" and rest.args == (ONE, w):
                        return add(y, mul(w, sub(x, y)))
    return _folded("add", a, b)


def sub(a: Node, b: Node) -> Node:
    """A - b, zeros left out."""
    if _is(a, 0):
        return neg(b)
    return a if _is(b, 0) else _folded("sub", a, b)


def mul(a: Node, b: Node) -> Node:
    """A * b, zeros and ones left out."""
    if _is(a, 0) or _is(b, 0):
        return ZERO
    if _is(a, 1):
        return b
    return a if _is(b, 1) else _folded("mul", a, b)


def div(a: Node, b: Node) -> Node:
    """A / b."""
    return a if _is(b, 1) or _is(a, 0) else _folded("div", a, b)


def neg(a: Node) -> Node:
    """-a."""
    return a.args[0] if a.op == "neg" else const(-float(a.value)) if a.op == "const" else Node("neg", (a,))


def where(condition: Node, a: Node, b: Node) -> Node:
    """A where the condition holds, else b."""
    return a if a is b else Node("where", (condition, a, b))


def call(name: str, *args: Node) -> Node:
    """Any other operation."""
    return Node(name, args)


_FOLD: dict[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
}  # fmt: skip


def _folded(op: str, a: Node, b: Node) -> Node:
    """The node, or its value where both sides are numbers."""
    if a.op == b.op == "const":
        return const(_FOLD[op](float(a.value), float(b.value)))
    return Node(op, (a, b))


def _power(a: Node, exponent: Any) -> Node:
    if not isinstance(exponent, int | float) or exponent != int(exponent) or not 0 < exponent <= 8:
        raise NotElementwise(f"a power of {exponent!r}, not of a whole number from 1 to 8")
    out = a
    for _ in range(int(exponent) - 1):
        out = mul(out, a)
    return out


def _clamp(a: Node, low: Any = None, high: Any = None) -> Node:
    if low is not None:
        a = call("maximum", a, _node(low))
    return a if high is None else call("minimum", a, _node(high))


def _silu(a: Node) -> Node:
    return mul(a, call("sigmoid", a))


def _relu(a: Node) -> Node:
    return call("maximum", a, ZERO)


def _logsigmoid(a: Node) -> Node:
    return neg(call("softplus", neg(a)))


def _lerp(a: Node, b: Node, weight: Node) -> Node:
    return add(a, mul(weight, sub(b, a)))


def _of_two(name: str) -> Callable[..., Node]:
    return lambda a, b: call(name, a, b)


def _softplus(a: Node, beta: Any = 1, threshold: Any = 20) -> Node:
    if beta != 1:
        raise NotElementwise("softplus with a beta other than 1")
    return call("softplus", a)


def _table() -> dict[Any, Callable[..., Node]]:
    """What each torch function means, as a function and as a method."""
    table: dict[Any, Callable[..., Node]] = {}
    meanings: dict[str, Callable[..., Node]] = {
        "add": add, "sub": sub, "mul": mul, "div": div, "true_divide": div, "neg": neg, "negative": neg,
        "where": where, "pow": _power, "square": lambda a: mul(a, a), "clamp": _clamp, "clip": _clamp,
        "lerp": _lerp, "relu": _relu, "rsqrt": lambda a: div(ONE, call("sqrt", a)),
        **{name: partial(call, name) for name in ("sigmoid", "tanh", "exp", "log", "sqrt", "abs", "sign")},
        **{name: _of_two(name) for name in ("minimum", "maximum", "lt", "le", "gt", "ge")},
    }  # fmt: skip
    for name, meaning in meanings.items():
        for owner in (torch, torch.Tensor):
            if hasattr(owner, name):
                table[getattr(owner, name)] = meaning
    table |= {
        F.silu: _silu, F.relu: _relu, F.softplus: _softplus, F.logsigmoid: _logsigmoid,
        F.sigmoid: meanings["sigmoid"], F.tanh: meanings["tanh"],
    }  # fmt: skip
    return table


_MEANING = _table()


def _node(x: Any) -> Node:
    """An operand as a node."""
    if isinstance(x, Symbol):
        return x.node
    if isinstance(x, bool) or not isinstance(x, int | float):
        kind = f"a tensor of shape {tuple(x.shape)} that is none of its arguments" if torch.is_tensor(x) else repr(x)
        raise NotElementwise(f"{kind} as an operand")
    return const(x)


class Incomparable:
    """Of what stands for tensors: an equality of values is in no language here, and Python's own is a plain bool."""

    def __eq__(self, other: object) -> bool:
        raise NotElementwise("an equality of values, which is not listed")

    __ne__ = __eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return "a tensor"


class Symbol(Incomparable):
    """Stands for a tensor while a function is traced."""

    dtype = torch.float32

    def __init__(self, node: Node) -> None:
        self.node = node

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> "Symbol":
        if function not in _MEANING:
            raise NotElementwise(f"{getattr(function, '__name__', function)}, which is not element-wise or not listed")
        plain = _MEANING[function] in (_power, _clamp, _softplus)
        nodes = [x if plain and i else _node(x) for i, x in enumerate(args)]
        given = dict(kwargs or {})
        if given.pop("alpha", 1) != 1 or given.pop("inplace", False):
            raise NotElementwise("alpha other than 1, or an operation in place")
        own = {"min": "low", "max": "high", "input": "a", "other": "b", "end": "b"}
        rest = {own.get(k, k): v if plain else _node(v) for k, v in given.items()}
        return Symbol(_MEANING[function](*nodes, **rest))

    def to(self, *args: Any, **kwargs: Any) -> "Symbol":
        """Itself: casts mean nothing here."""
        return self

    float = to

    def __pow__(self, exponent: Any) -> "Symbol":
        return Symbol(_power(self.node, exponent))

    def __matmul__(self, other: Any) -> "Symbol":
        raise NotElementwise("a product of matrices, which is not element-wise")

    __rmatmul__ = __matmul__

    def __bool__(self) -> bool:
        raise NotElementwise("a branch on a value")

    def __neg__(self) -> "Symbol":
        return Symbol(neg(self.node))

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch.Tensor, name, None) or getattr(torch, name, None)
        if function is None or name.startswith("__"):
            raise AttributeError(name)
        if not callable(function):
            raise NotElementwise(f".{name}, which is not element-wise or not listed")
        return lambda *args, **kwargs: Symbol.__torch_function__(function, (), (self, *args), kwargs)


def _operator(meaning: Callable[[Node, Node], Node], swapped: bool = False) -> Any:
    def apply(self: Symbol, other: Any) -> Symbol:
        a, b = self.node, _node(other)
        return Symbol(meaning(b, a) if swapped else meaning(a, b))

    return apply


for _name, _meaning in (("add", add), ("sub", sub), ("mul", mul), ("truediv", div)):
    setattr(Symbol, f"__{_name}__", _operator(_meaning))
    setattr(Symbol, f"__r{_name}__", _operator(_meaning, swapped=True))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Symbol, f"__{_name}__", _operator(partial(call, _name)))


def trace(function: Callable[..., Any], *names: str) -> list[Node]:
    """What the function computes from arguments of these names: one node per result.

    Raises:
        NotElementwise: it uses what the language above lacks.

    """
    try:
        out = function(*(Symbol(var(name)) for name in names))
    except NotElementwise:
        raise
    except Exception as error:  # the function is anybody's, and has symbols where it expects tensors
        raise NotElementwise(f"{type(error).__name__}: {error}") from error
    results = out if isinstance(out, tuple | list) else (out,)
    return [_node(x) for x in results]


def substitute(node: Node, values: dict[str, Node], memo: dict[Node, Node] | None = None) -> Node:
    """The node with variables replaced."""
    memo = {} if memo is None else memo
    if node not in memo:
        if node.op == "var":
            memo[node] = values.get(str(node.value), node)
        else:
            memo[node] = Node(node.op, tuple(substitute(a, values, memo) for a in node.args), node.value)
    return memo[node]


def ordered(roots: Iterable[Node]) -> list[Node]:
    """Every node below the roots once, arguments before what uses them."""
    seen: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in seen:
            for a in node.args:
                visit(a)
            seen[node] = None

    for root in roots:
        visit(root)
    return list(seen)


def as_json(head: Sequence[Any], *roots: Node) -> str:
    """`head` and the roots as JSON, equal for equal expressions; see from_json."""
    nodes = ordered(roots)
    index = {node: i for i, node in enumerate(nodes)}
    rows = [[n.op, [index[a] for a in n.args], n.value] for n in nodes]
    return json.dumps([*head, *(index[root] for root in roots), rows])


def from_json(text: str, roots: int) -> tuple[Any, ...]:
    """The head's values and then as many roots, from what as_json wrote."""
    *head, rows = json.loads(text)
    nodes: list[Node] = []
    for op, args, value in rows:
        nodes.append(Node(op, tuple(nodes[i] for i in args), value))
    return (*head[:-roots], *(nodes[i] for i in head[-roots:]))


def variables(roots: Iterable[Node]) -> set[str]:
    """Names of the variables below the roots."""
    return {str(n.value) for n in ordered(roots) if n.op == "var"}


def derivatives(node: Node, g: Node) -> tuple[Node, ...]:
    """What flows to each argument when g flows to the node."""
    args, y = node.args, node
    a = args[0] if args else ZERO
    b = args[1] if len(args) > 1 else ZERO
    rules: dict[str, Callable[[], tuple[Node, ...]]] = {
        "add": lambda: (g, g),
        "sub": lambda: (g, neg(g)),
        "mul": lambda: (mul(g, b), mul(g, a)),
        "div": lambda: (div(g, b), neg(div(mul(g, y), b))),
        "neg": lambda: (neg(g),),
        "sigmoid": lambda: (mul(g, mul(y, sub(ONE, y))),),
        "tanh": lambda: (mul(g, sub(ONE, mul(y, y))),),
        "exp": lambda: (mul(g, y),),
        "log": lambda: (div(g, a),),
        "sqrt": lambda: (div(mul(const(0.5), g), y),),
        "softplus": lambda: (mul(g, call("sigmoid", a)),),
        "abs": lambda: (mul(g, call("sign", a)),),
        "sign": lambda: (ZERO,),
        "where": lambda: (ZERO, where(a, g, ZERO), where(a, ZERO, g)),
        # As torch does, a tie is shared.
        "maximum": lambda: _extreme("gt", a, b, g),
        "minimum": lambda: _extreme("lt", a, b, g),
        **{name: lambda: (ZERO, ZERO) for name in ("lt", "le", "gt", "ge")},
    }
    return rules[node.op]()


def _extreme(better: str, a: Node, b: Node, g: Node) -> tuple[Node, Node]:
    if b.op == "const":  # clamp and relu: torch gives the whole gradient at the bound of clamp, none at relu's
        closed = {"gt": "ge", "lt": "le"}[better] if b is not ZERO else better
        return where(call(closed, a, b), g, ZERO), ZERO
    half = mul(const(0.5), g)
    first, second = call(better, a, b), call(better, b, a)
    return where(first, g, where(second, ZERO, half)), where(second, g, where(first, ZERO, half))


def gradients(outputs: Sequence[tuple[Node, Node]], names: Sequence[str]) -> dict[str, Node]:
    """Reverse-mode derivatives: what flows to each named variable when each output receives its cotangent."""
    flow: dict[Node, Node] = {}
    for output, cotangent in outputs:
        flow[output] = add(flow.get(output, ZERO), cotangent)
    for node in reversed(ordered([output for output, _ in outputs])):
        g = flow.get(node, ZERO)
        if node.args and not _is(g, 0):
            for a, d in zip(node.args, derivatives(node, g), strict=True):
                if not _is(d, 0):
                    flow[a] = add(flow.get(a, ZERO), d)
    return {name: flow.get(var(name), ZERO) for name in names}
