"""Triton source of an element-wise recurrence, printed from its expressions.

One thread walks one channel of one sequence through time. Steps go in tiles of `TILE`: the next tile's inputs are
loaded while this one computes, the loop inside a tile is unrolled, and the state before each tile is kept as a mark,
from which backward replays the tile. Where the recurrence is linear in its state, `ends` and `adjoint_ends` run parts
of the sequence at once, each from zero, and return what a carry needs: its end and the product of its factors.
Where all streams are bf16 in even rows, a thread has two channels side by side and loads them as one word (`PAIRS`).
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from rnn_lab.kernels.dialects import printed
from rnn_lab.kernels.expression import (
    ONE,
    Node,
    add,
    as_json,
    from_json,
    gradients,
    mul,
    substitute,
    var,
    variables,
)

TILE = 8
"""Steps per tile: marks cost 4 / TILE bytes per channel and step."""
AHEAD = 2
"""Tiles that are on their way while one computes."""
_WAITING = ["", *("n" * i for i in range(1, AHEAD + 1))]
"""Prefixes of the tile that computes and of those after it."""


@dataclass(frozen=True)
class Program:
    """s = update(h, x0, x1, ..., w0, w1, ...) and y = output(s, x0, ..., w0, ...) with n_x streams and n_w weights."""

    n_x: int
    n_w: int
    update: Node
    output: Node

    @cached_property
    def text(self) -> str:
        """The program as JSON, equal for equal programs."""
        return as_json([self.n_x, self.n_w], self.update, self.output)

    @cached_property
    def factor(self) -> Node | None:
        """ds / dh where it does not depend on h, so that the recurrence is linear; else None."""
        d = gradients([(self.update, ONE)], ["h"])["h"]
        return None if "h" in variables([d]) else d

    @property
    def xs(self) -> list[str]:
        """Names of the streams."""
        return [f"x{i}" for i in range(self.n_x)]

    @property
    def ws(self) -> list[str]:
        """Names of the weights."""
        return [f"w{i}" for i in range(self.n_w)]


@lru_cache(maxsize=256)
def parse(text: str) -> Program:
    """The program of `Program.text`."""
    return Program(*from_json(text, roots=2))


def source(program: Program) -> str:
    """A module with the kernels `forward` and `backward`, and `ends` and `adjoint_ends` of a linear recurrence."""
    kernels = [_forward(program, local=False), _backward(program, local=False)]
    if program.factor is not None:
        kernels += [_forward(program, local=True), _backward(program, local=True)]
    head = [
        '"""Printed by rnn_lab.kernels.diagonal.source."""',
        "import triton",
        "import triton.language as tl",
        "from rnn_lab.kernels.functions_triton import exp, rcp, sigmoid, sign, softplus, tanh, wide, words",
    ]
    return "\n".join(head) + "\n" + "\n".join("\n\n" + "\n".join(lines) for lines in kernels) + "\n"


def _signature(name: str, pointers: list[str], program: Program) -> list[str]:
    scalars = ["reset", *program.xs, *program.ws, *(f"{x}_b" for x in program.xs), "T", "LENGTH", "TILES"]
    strides = [f"{x}_t" for x in program.xs]
    constants = [
        f"{c}: tl.constexpr" for c in ("C", *strides, "EVEN", "RESET", "MARKS", "EXACT", "PAIRS", "WIDE", "BLOCK")
    ]
    jit = "@triton.jit(do_not_specialize_on_alignment=('T', 'LENGTH', 'TILES'))"  # not compiled for every length
    return [jit, f"def {name}({', '.join([*pointers, *scalars, *constants])}):"]


def _where(program: Program) -> list[str]:
    """Which channels, sequence and part of time a program has, as numbers and as words of them; weights."""
    return [
        "WORD: tl.constexpr = 2 if PAIRS and BLOCK > 32 else 1",
        "c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)",
        "b = tl.program_id(1).to(tl.int64)",
        "part = tl.program_id(2)",
        "inside = (c < C) if C % BLOCK else tl.full([BLOCK], True, tl.int1)",
        "word = tl.program_id(0) * (BLOCK // WORD) + tl.arange(0, BLOCK // WORD)",
        "held = (word * WORD < C) if C % BLOCK else tl.full([BLOCK // WORD], True, tl.int1)",
        "start = part * LENGTH",
        "stop = tl.minimum(T, start + LENGTH)",
        "row = (b * tl.num_programs(2) + part) * C + c",
        *(f"{w}_ = tl.load({w} + c, mask=inside, other=0.0).to(tl.float32)" for w in program.ws),
    ]


def _load_tile(program: Program, at: str, prefix: str, valid: str, dy: bool = False) -> list[str]:
    """Inputs of the tile that starts at step `at`; `valid` says that the tile exists."""
    starts = {x: f"{x} + b * {x}_b + ({at}).to(tl.int64) * {x}_t" for x in program.xs}
    starts |= {"dy": f"dy + (b * T + {at}) * C"} if dy else {}
    lines = [f"{prefix}p{x} = words({start}, WORD) + word" for x, start in starts.items()]
    for k in range(TILE):
        mask = f"held & ({valid})" if not k else f"held & ({valid}) & (({at} + {k} < stop) | EVEN)"
        for x in starts:
            step = "C" if x == "dy" else f"{x}_t"
            lines.append(f"{prefix}{x}_{k} = tl.load({prefix}p{x} + {k} * ({step} // WORD), mask={mask}, other=0)")
    return lines


def _move_up(streams: list[str]) -> list[str]:
    """Every waiting tile takes the place of the one before it."""
    return [f"{a}{x}_{k} = {b}{x}_{k}" for a, b in pairwise(_WAITING) for x in streams for k in range(TILE)]


def _names(program: Program, k: int) -> dict[str, str]:
    """What the variables of step k are called, streams widened."""
    return {**{x: f"{x}_{k}f" for x in program.xs}, **{w: f"{w}_" for w in program.ws}}


def _widen(program: Program, k: int) -> list[str]:
    return [f"{x}_{k}f = wide({x}_{k}, WORD)" for x in program.xs]


def _forget(k: int, *values: str) -> list[str]:
    """Zero the values where a document begins at step k of the tile."""
    lines = ["if RESET:", f"    r_{k} = tl.load(reset + b * T + t + {k}, mask=t + {k} < stop, other=0) != 0"]
    return lines + [f"    {v} = tl.where(r_{k}, 0.0, {v})" for v in values]


def _keep(k: int, new: str, old: str) -> list[str]:
    """`old` becomes `new`, unless step k lies past the end."""
    if not k:
        return [f"{old} = {new}"]
    return ["if EVEN:", f"    {old} = {new}", "else:", f"    {old} = tl.where(t + {k} < stop, {new}, {old})"]


def _forward(program: Program, local: bool) -> list[str]:
    """States and outputs; `local`: only the end of each part from zero, and the product of its factors."""
    pointers = ["end", "product"] if local else ["h0", "y", "end", "marks"]
    lines = [*_where(program)]
    if local:
        lines += ["h = tl.zeros([BLOCK], tl.float32)", "p = tl.full([BLOCK], 1.0, tl.float32)"]
    else:
        lines += ["h = tl.load(h0 + row, mask=inside, other=0.0).to(tl.float32)"]
    for i, prefix in enumerate(_WAITING[:-1]):
        at = f"start + {i * TILE}"
        lines += _load_tile(program, at, prefix, f"{at} < stop")
    body = [f"tl.store(marks + (b * TILES + t // {TILE}) * C + c, h, mask=inside)"]
    body = [] if local else ["if MARKS:", *(f"    {line}" for line in body)]
    body += [f"u = t + {AHEAD * TILE}", *_load_tile(program, "u", _WAITING[-1], "u < stop")]
    for k in range(TILE):
        names = _names(program, k)
        body += [*_widen(program, k), *_forget(k, "h", *(["p"] if local else []))]
        if local:
            assert program.factor is not None
            outputs = {f"s_{k}": program.update, f"f_{k}": program.factor}
            body += printed(outputs, names | {"h": "h"}, f"a{k}_")
            body += [*_keep(k, f"s_{k}", "h"), *_keep(k, f"p * f_{k}", "p")]
        else:
            body += [*printed({f"s_{k}": program.update}, names | {"h": "h"}, f"a{k}_"), *_keep(k, f"s_{k}", "h")]
            body += printed({f"y_{k}": program.output}, names | {"s": f"s_{k}"}, f"o{k}_")
            mask = "inside" if not k else f"inside & (EVEN | (t + {k} < stop))"
            body.append(f"tl.store(y + (b * T + t + {k}) * C + c, y_{k}, mask={mask})")
    body += _move_up(program.xs)
    lines += [f"for t in range(start, stop, {TILE}):", *(f"    {line}" for line in body)]
    lines += ["tl.store(end + row, h, mask=inside)"] + (["tl.store(product + row, p, mask=inside)"] if local else [])
    return [*_signature("ends" if local else "forward", pointers, program), *(f"    {line}" for line in lines)]


def step_gradients(program: Program) -> dict[str, Node]:
    """Gradients of one step by h, streams and weights, from dy (output) and dh (state after the step)."""
    inner = gradients([(program.output, ONE)], ["s", *program.xs, *program.ws])
    inner = {name: mul(var("dy"), node) for name, node in inner.items()}  # dy last: what it multiplies has shared parts
    arriving = add(var("dh"), inner["s"])
    outer = gradients([(program.update, var("g"))], ["h", *program.xs, *program.ws])
    memo: dict[Node, Node] = {}
    outer = {name: substitute(node, {"g": arriving}, memo) for name, node in outer.items()}
    return {"h": outer["h"], **{name: add(inner[name], outer[name]) for name in [*program.xs, *program.ws]}}


def _backward(program: Program, local: bool) -> list[str]:
    """All gradients; `local`: only the adjoint at the start of each part from zero, and the product of factors."""
    grads = [] if local else [f"d{x}" for x in program.xs] + [f"d{w}" for w in program.ws]
    pointers = ["marks", "dy", *(["dstart", "product"] if local else ["dend", "dstart"]), *grads]
    lines = [*_where(program)]
    if local:
        lines += ["dh = tl.zeros([BLOCK], tl.float32)", "p = tl.full([BLOCK], 1.0, tl.float32)"]
    else:
        lines += ["dh = tl.load(dend + row, mask=inside, other=0.0).to(tl.float32)"]
        lines += [f"a{w} = tl.zeros([BLOCK], tl.float32)" for w in program.ws]
    lines += [f"last = start + (tl.cdiv(stop - start, {TILE}) - 1) * {TILE}"]
    for i, prefix in enumerate(_WAITING[:-1]):
        at = f"last - {i * TILE}"
        lines += _load_tile(program, at, prefix, f"(start < stop) & ({at} >= start)", dy=True)
    body = [
        "t = last - back",
        f"s_0 = tl.load(marks + (b * TILES + t // {TILE}) * C + c, mask=inside, other=0.0)",
        f"u = t - {AHEAD * TILE}",
        *_load_tile(program, "u", _WAITING[-1], "u >= start", dy=True),
    ]
    for k in range(TILE):
        body += [*_widen(program, k), f"h_{k} = s_{k}", *_forget(k, f"h_{k}")]
        body += printed({f"s_{k + 1}": program.update}, _names(program, k) | {"h": f"h_{k}"}, f"a{k}_")
    step = step_gradients(program)
    if local:
        assert program.factor is not None
        step = {"h": step["h"], "factor": program.factor}
    for k in reversed(range(TILE)):
        names = _names(program, k) | {"h": f"h_{k}", "s": f"s_{k + 1}", "dh": "dh", "dy": f"dy_{k}f"}
        body.append(f"dy_{k}f = wide(dy_{k}, WORD)")
        body += printed({f"g_{name}": node for name, node in step.items()}, names, f"g{k}_")
        body += _keep(k, "g_h", "dh")
        if local:
            body += [*_keep(k, "p * g_factor", "p")]
        body += ["if RESET:", f"    dh = tl.where(r_{k}, 0.0, dh)", *([f"    p = tl.where(r_{k}, 0.0, p)"] * local)]
        if not local:
            mask = "inside" if not k else f"inside & (EVEN | (t + {k} < stop))"
            for x in program.xs:
                body.append(f"tl.store(d{x} + (b * T + t + {k}) * C + c, g_{x}, mask={mask})")
            for w in program.ws:
                body += _keep(k, f"a{w} + g_{w}", f"a{w}")
    body += _move_up([*program.xs, "dy"])
    lines += [f"for back in range(0, stop - start, {TILE}):", *(f"    {line}" for line in body)]
    lines += ["tl.store(dstart + row, dh, mask=inside)"]
    if local:
        lines += ["tl.store(product + row, p, mask=inside)"]
    else:
        lines += [f"tl.store(d{w} + row, a{w}, mask=inside)" for w in program.ws]
    return [*_signature("adjoint_ends" if local else "backward", pointers, program), *(f"    {line}" for line in lines)]
