"""tanh of matrices as a function of what is a constant times larger, so that the instruction for exp2 needs no product.

The constant goes into a factor of which a lane has few where there is one: a decay, a row's error.
"""

import math

from rnn_lab.kernels.expression import Node, const, mul
from rnn_lab.kernels.matrix.expression import kind

TANH_SCALE = 2 / math.log(2)
"""scaled_tanh(TANH_SCALE x) = tanh(x): 1 - 2 / (2 ** (TANH_SCALE x) + 1)."""


def prescaled(outputs: dict[str, Node]) -> dict[str, Node]:
    """The expressions with scaled_tanh for every tanh of a matrix."""
    kinds: dict[Node, str] = {}
    memo: dict[Node, Node] = {}

    def changed(node: Node) -> Node:
        if node not in memo:
            args = tuple(map(changed, node.args))
            if node.op == "tanh" and kind(node, kinds) == "cr":
                memo[node] = Node("scaled_tanh", (_scaled(args[0], kinds),))
            else:
                memo[node] = Node(node.op, args, node.value)
        return memo[node]

    return {name: changed(node) for name, node in outputs.items()}


def _scaled(node: Node, kinds: dict[Node, str]) -> Node:
    if kind(node, kinds) != "cr":
        return mul(const(TANH_SCALE), node)
    if node.op in ("add", "sub", "neg"):
        return Node(node.op, tuple(_scaled(a, kinds) for a in node.args))
    if node.op == "mul":
        small, large = sorted(node.args, key=lambda a: ("", "r", "c", "cr").index(kind(a, kinds)))
        return mul(_scaled(small, kinds), large)
    return mul(const(TANH_SCALE), node)
