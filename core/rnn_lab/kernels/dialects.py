"""Expressions as lines of Triton or CUDA C++."""

from dataclasses import dataclass, replace

from rnn_lab.kernels.expression import Node, ordered


@dataclass(frozen=True)
class Dialect:
    """How a language writes operations and numbers, and how it declares a local number or condition."""

    operations: dict[str, str]
    number: str = "{}"
    local: str = ""
    condition: str = ""
    end: str = ""


_CONDITIONS = {"lt": "{0} < {1}", "le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}"}
_SAME = _CONDITIONS | {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "neg": "-{0}",
    "sigmoid": "sigmoid({0})", "softplus": "softplus({0})", "sign": "sign({0})",
}  # fmt: skip
TRITON = Dialect(
    _SAME | {
        "where": "tl.where({0}, {1}, {2})", "tanh": "tanh({0}, EXACT)", "exp": "exp({0})", "log": "tl.log({0})",
        "sqrt": "tl.sqrt({0})", "abs": "tl.abs({0})",
        "maximum": "tl.maximum({0}, {1})", "minimum": "tl.minimum({0}, {1})",
    }
)  # fmt: skip
CUDA = Dialect(
    _SAME | {
        "where": "{0} ? {1} : {2}", "tanh": "tanh({0})", "exp": "expf({0})", "log": "logf({0})",
        "sqrt": "sqrtf({0})", "abs": "fabsf({0})", "maximum": "fmaxf({0}, {1})", "minimum": "fminf({0}, {1})",
    },
    number="{}f", local="const float ", condition="const bool ", end=";",
)  # fmt: skip
CUDA_CLOSE = replace(CUDA, operations=CUDA.operations | {
    "tanh": "close_tanh({0})", "scaled_tanh": "scaled_tanh({0})", "exp": "fast_exp({0})", "sqrt": "fast_sqrt({0})",
    "div": "{0} * reciprocal({1})",
})  # fmt: skip
"""Within a few 1e-7, where inputs are narrow: what a GPU has instructions for. tanh's error is not relative to it."""


def printed(outputs: dict[str, Node], names: dict[str, str], prefix: str, dialect: Dialect = TRITON) -> list[str]:
    """Lines that assign every output; `names` says what variables are called, `prefix` marks locals."""
    lines: list[str] = []
    known: dict[Node, str] = {}
    for node in ordered(outputs.values()):
        if node.op == "const":
            number = dialect.number.format(repr(node.value))
            known[node] = f"({number})" if float(node.value) < 0 else number
        elif node.op == "var":
            known[node] = names[str(node.value)]
        else:
            known[node] = f"{prefix}{len(lines)}"
            kind = dialect.condition if node.op in _CONDITIONS else dialect.local
            value = dialect.operations[node.op].format(*(known[a] for a in node.args))
            lines.append(f"{kind}{known[node]} = {value}{dialect.end}")
    return lines + [f"{name} = {known[node]}{dialect.end}" for name, node in outputs.items()]
