"""The factor of scaled_tanh may go into parts of what tanh gets, as long as the value is the same."""

import operator

import pytest
from rnn_lab.kernels.expression import Node, add, div, mul, neg, sub, var
from rnn_lab.kernels.matrix.scaling import TANH_SCALE, prescaled

VALUES = {"h.cr": 0.3, "r.r": 0.7, "c.c": -1.1}
h, r, c = map(var, VALUES)


def value(node):
    if node.op in ("var", "const"):
        return VALUES.get(node.value, node.value)
    return getattr(operator, {"div": "truediv"}.get(node.op, node.op))(*map(value, node.args))


@pytest.mark.parametrize(
    "inner",
    [add(h, r), sub(mul(h, c), r), neg(mul(h, mul(r, c))), div(mul(r, h), add(c, h)), div(c, h), mul(r, c)],
    ids=range(6),
)
def test_tanh_gets_its_argument_times_the_factor(inner):
    made = prescaled({"y": Node("tanh", (inner,))})["y"]
    assert made.op == "scaled_tanh"
    assert value(made.args[0]) == pytest.approx(TANH_SCALE * value(inner), abs=1e-6)
