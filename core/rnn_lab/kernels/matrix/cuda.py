"""Recurrences of independent rows as CUDA C++: what is printed around matrix.cuh."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from rnn_lab.kernels.cuda_jit import skeleton
from rnn_lab.kernels.dialects import CUDA, CUDA_CLOSE, Dialect, printed
from rnn_lab.kernels.expression import Node, variables
from rnn_lab.kernels.matrix.layout import TYPES, Form, Layout, axes, code
from rnn_lab.kernels.matrix.printer import Lane, loops
from rnn_lab.kernels.matrix.scaling import prescaled
from rnn_lab.kernels.matrix.source import Program


def source(program: Program, form: Form) -> str:
    """CUDA C++ with the kernel `forward` or `backward`."""
    layout, t = Layout(program, form), form.tiling
    constants = {
        "ROWS": program.rows, "COLUMNS": program.columns,
        "SR": 1 if program.transposed else program.columns, "SC": program.rows if program.transposed else 1,
        "RE": t.rows, "CE": t.columns, "CL": t.across, "W": t.warps, "SPLIT": t.split, "TILE": t.steps,
        "SEGMENT": t.segment, "RESIDENT": form.resident,
        "P": layout.prepare_lanes, "NU": max(1, len(layout.streams)), "EVEN": int(form.even), "RESET": int(form.reset),
        "MARKS": int(form.marks), "UNROLL": max(1, min(4, 32 // (t.rows * t.columns))), "RAW": layout.raw_bytes,
    }  # fmt: skip
    lines = ["// Printed by rnn_lab.kernels.matrix.cuda."]
    lines += [f"constexpr int {name} = {value};" for name, value in constants.items()]
    lines += [f"#define FORWARD {int(form.forward)}", f"#define YTYPE {TYPES[form.output]}"]
    lines += [f"#define MARK {'fp16' if program.bounded and not form.exact else 'float'}"]
    lines += [skeleton("ptx", "functions", "matrix")]
    return "\n".join([*lines, '#line 1 "cell.cuh"', "namespace recurrence {", *_cell(layout), "}", ""])


def _cell(layout: Layout) -> Iterator[str]:
    """The functions that matrix.cuh declares."""
    program, form = layout.program, layout.form
    dialect = CUDA if form.exact else CUDA_CLOSE
    place = "const Args& a, const Place& p, "
    yield from _function(f"begin({place}Walk& w, i64 tile)", _begin(layout))
    yield from _function(f"fetch({place}Walk& w, char* raw, i64 tile)", _fetch(layout))
    yield from _function(f"load_weights({place}char* shared)", _load_weights(layout))
    yield from _function("prepare(const char* raw, char* shared)", _prepare(layout, dialect))
    # Forward, the unit for reciprocals is busiest; backward, the schedulers are.
    lane = Lane(dialect, tiled={"scaled_tanh": "tanh_of_tile"} if form.forward else {})
    update, output = program.forward
    of_step = "const Place& p, char* shared, int k, Tile h"
    if form.forward:
        body = _step(layout, lane, {"new_h": update, "y": output}, {"new_h": "cr", "y": "r"})
        yield from _function(f"step({of_step}, Row y)", ["float new_h[RE][CE];", *body, "copy(new_h, h);"])
        return
    kept = {code(name): node for name, node in program.adjoint.sums.items()}
    kinds = {code(name): axes(name) for name in program.adjoint.sums}
    body = _step(layout, lane, {"new_h": update, **kept}, {"new_h": "cr", **kinds})
    declared = [_array(name, kinds[name]) for name in kept]
    stored = [_keep(layout, name, store=True) for name in program.adjoint.sums]
    yield from _function(f"replay({of_step})", ["float new_h[RE][CE];", *declared, *body, *stored, "copy(new_h, h);"])
    yield from _function(f"adjoint({of_step}, Tile s, Tile dh)", _adjoint(layout, lane))
    yield from _function(
        f"pull_back({place}Walk& w, const char* raw, char* shared, i64 tile)", _pull_back(layout, dialect)
    )
    yield from _function("clear_weights(char* shared)", _clear_weights(layout))
    yield from _function(f"store_weights({place}const char* shared)", _store_weights(layout))


def _function(head: str, body: "Iterator[str] | list[str]") -> Iterator[str]:
    yield f"__device__ __forceinline__ void {head} {{"
    yield from _indented(body)
    yield "}"


def _array(name: str, kind: str) -> str:
    return f"float {name}{ {'r': '[RE]', 'c': '[CE]', '': '', 'cr': '[RE][CE]'}[kind] };"


def _begin(layout: Layout) -> Iterator[str]:
    for i, name in enumerate(layout.streams):
        if name[0] == "w":
            continue
        first = " + p.g * NR" if axes(name) == "r" else ""
        at = f"p.b * a.xb[{i}] + p.h * a.xh[{i}] + tile * TILE * a.xt[{i}]{first}"
        yield f"w.from[{i}] = reinterpret_cast<const char*>(static_cast<const {_type(layout, i)}*>(a.x[{i}]) + {at});"
        if not layout.form.forward and name in layout.program.uses:
            apart = "p.g * a.B * a.T * a.H + " if _apart(layout, name) else ""
            at = f"({apart}(p.b * a.T + tile * TILE) * a.H + p.h) * {_WIDTH[axes(name)]}{first}"
            yield f"w.to[{i}] = reinterpret_cast<char*>(static_cast<{_type_to(layout, name)}*>(a.dx[{i}]) + {at});"


_WIDTH = {"r": "ROWS", "c": "COLUMNS", "": "1"}


def _type(layout: Layout, number: int) -> str:
    return TYPES[layout.form.types[number]]


def _apart(layout: Layout, name: str) -> bool:
    """Whether rows of other blocks add to the gradient by a stream, so that it is kept apart, in fp32."""
    return layout.tiling.split > 1 and axes(name) != "r"


def _type_to(layout: Layout, name: str) -> str:
    return "float" if _apart(layout, name) else _type(layout, layout.streams.index(name))


def _fetch(layout: Layout) -> Iterator[str]:
    yield "const int steps = p.steps(a, tile);"
    for i, name in enumerate(layout.streams):
        if name[0] == "w":
            continue
        dtype, unit = _type(layout, i), layout.form.units[i]
        offset, pitch = layout.raw[name]
        width = "p.rows" if axes(name) == "r" else str(layout.width(name))
        yield (
            f"copy_tile<{dtype}, {unit}, {layout.width(name)}, {pitch}>(raw + {offset}, "
            f"reinterpret_cast<const {dtype}*>(w.from[{i}]), int(a.xt[{i}]), steps, {width});"
        )
        way = "+" if layout.form.forward else "-"
        yield f"w.from[{i}] {way}= TILE * int(sizeof({dtype})) * a.xt[{i}];"


def _load_weights(layout: Layout) -> Iterator[str]:
    for i, name in enumerate(layout.streams):
        if name[0] != "w":
            continue
        first, width = (" + p.g * NR", "p.rows") if axes(name) == "r" else ("", str(layout.width(name)))
        yield f"for (int i = threadIdx.x; i < {layout.width(name)}; i += THREADS)"
        yield (
            f"    {layout.floats(name)}[i] = i < {width} ? "
            f"static_cast<const float*>(a.x[{i}])[p.h * a.xh[{i}]{first} + i] : 0.0f;"
        )


def _needed(nodes: Iterable[Node]) -> list[str]:
    return sorted(variables(nodes))


_COLUMNS = Lane(CUDA, columns="CJ", has_column="(lane + P * c < COLUMNS)", across="across<P>")


def _prepare(layout: Layout, dialect: Dialect) -> Iterator[str]:
    """Values per column by P lanes for each step; values per row, and scalars, by one thread each."""
    made = {name: node for name, node in layout.values.items() if axes(name) == "c"}
    if made:
        yield from _by_step([
            *_read_columns(layout, _needed(made.values())),
            *(f"float {code(name)}[CJ];" for name in made),
            *loops({code(n): node for n, node in made.items()}, {code(n): "c" for n in made},
                   {n: code(n) for n in layout.streams}, replace(_COLUMNS, dialect=dialect)),
            "#pragma unroll",
            "for (int c = 0; c < CJ; ++c) {",
            "    const int at = lane + P * c;",
            "    if (k >= TILE || at >= CP) continue;",
            *(f"    {layout.floats(name)}[k * CS + at] = at < COLUMNS ? {code(name)}[c] : 0.0f;" for name in made),
            "}",
            *_pad_columns(layout, list(made)),
        ])  # fmt: skip
    for axis in ("r", ""):
        own = {name: node for name, node in layout.values.items() if axes(name) == axis}
        if own:
            stored = [f"{layout.floats(name)}[item] = {code(name)};" for name in own]
            yield from _by_number(layout, axis == "r", own, dialect, [], stored)


def _pad_columns(layout: Layout, names: list[str]) -> Iterator[str]:
    """Columns that are only there to fill the lanes are zero."""
    t = layout.tiling
    done = -(-layout.program.columns // layout.prepare_lanes) * layout.prepare_lanes
    if done < t.across * t.columns:
        yield f"for (int at = {done} + lane; k < TILE && at < CP; at += P) {{"
        yield from (f"    {layout.floats(name)}[k * CS + at] = 0.0f;" for name in names)
        yield "}"


def _by_step(body: list[str]) -> Iterator[str]:
    """P lanes have a step k; beyond the last step they take part in what the warp does together."""
    yield "for (int first = 0; first < TILE; first += THREADS / P) {"
    yield "    const int k = first + threadIdx.x / P, lane = threadIdx.x % P;"
    yield from _indented(body)
    yield "}"


def _read_columns(layout: Layout, names: list[str]) -> Iterator[str]:
    """Streams and weights of a step, the columns of a lane."""
    for name in names:
        value = layout.read(name, "min(k, TILE - 1)", "at")
        yield f"float {code(name)}[CJ];"
        yield "#pragma unroll"
        yield "for (int c = 0; c < CJ; ++c) {"
        yield f"    const int at = lane + P * c; {code(name)}[c] = at < COLUMNS ? {value} : 0.0f;"
        yield "}"


def _by_number(
    layout: Layout, rows: bool, outputs: dict[str, Node], dialect: Dialect, before: list[str], after: list[str]
) -> Iterator[str]:
    """Every number of a tile by one thread: `item`, of step k and, where there are rows, row i."""
    count = "TILE * NR" if rows else "TILE"
    yield "#pragma unroll"
    yield f"for (int n = 0; n < ({count} + THREADS - 1) / THREADS; ++n) {{"
    yield "    const int item = threadIdx.x + n * THREADS;"
    yield f"    if ({count} % THREADS && item >= {count}) break;"
    yield "    const int k = item / NR, i = item % NR;" if rows else "    const int k = item;"
    for name in _needed(outputs.values()):
        if name[0] != "g":
            yield f"    const float {code(name)} = {layout.read(name, 'k', 'i' if rows else '0')};"
    declared = [f"float {code(name)};" for name in outputs]
    yield from _indented([*before, *declared, *_printed(outputs, dialect), *after])
    yield "}"


def _printed(outputs: dict[str, Node], dialect: Dialect) -> list[str]:
    names = {name: code(name) for name in _needed(outputs.values())}
    return printed({code(n): node for n, node in outputs.items()}, names, "v", dialect)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (line if line.startswith("#") else f"    {line}" for line in lines)


def _values(layout: Layout, nodes: list[Node]) -> Iterator[str]:
    """Prepared values of step k that the nodes use, as every lane has them."""
    for name in _needed(nodes):
        if name[0] == "f":
            yield _array(code(name), axes(name))
            yield _keep(layout, name, store=False)
        elif name[0] == "p" or name == "dy.r":
            at, pitch = layout.floats(name), layout.pitch[axes(name)]
            yield _array(code(name), axes(name))
            if axes(name):
                load = "load_rows" if axes(name) == "r" else "load_columns"
                yield f"{load}({at} + k * {pitch}, p, {code(name)});"
            else:
                yield f"{code(name)} = {at}[k];"


def _leaves(nodes: list[Node]) -> dict[str, str]:
    return {name: code(name) for name in _needed(nodes)} | {"h.cr": "h", "s.cr": "s", "d.cr": "dh"}


def _step(layout: Layout, lane: Lane, outputs: dict[str, Node], kinds: dict[str, str]) -> Iterator[str]:
    outputs = outputs if layout.form.exact else prescaled(outputs)
    nodes = list(outputs.values())
    yield from _values(layout, nodes)
    yield from loops(outputs, kinds, _leaves(nodes), lane)


def _keep(layout: Layout, name: str, store: bool) -> str:
    """A sum of the replay, for `adjoint`."""
    at = layout.floats(name)
    if axes(name) == "r":
        return f"{'store' if store else 'load'}_rows({at} + k * NR, p, {code(name)});"
    there = f"{at}[k * THREADS + threadIdx.x]"
    return f"{there} = {code(name)};" if store else f"{code(name)} = {there};"


def _adjoint(layout: Layout, lane: Lane) -> Iterator[str]:
    found = layout.program.adjoint.gradients
    outputs = {"new_dh" if name == "h.cr" else f"g{code(name)[1:]}": node for name, node in found.items()}
    kinds = {"new_dh" if name == "h.cr" else f"g{code(name)[1:]}": axes(name) for name in found}
    yield from (_array(name, kinds[name]) for name in outputs)
    yield from _step(layout, lane, outputs, kinds)
    for name in found:
        if name == "h.cr":
            continue
        g = f"g{name[1:]}"
        kind = axes(name)
        store = {"r": "store_rows", "c": "store_columns", "": "store_scalar"}[kind]
        step = {"r": "NR", "c": "CS", "": "(W * RL)"}[kind]
        yield f"{store}({layout.floats(g)} + k * {step}, p, {code(g)});"
    yield "copy(new_dh, dh);"


def _pull_back(layout: Layout, dialect: Dialect) -> Iterator[str]:
    """Gradients by streams go to memory, those by weights of every step to shared memory, where they are added up."""
    program = layout.program
    yield "const int steps = p.steps(a, tile);"
    yield "const int heads = int(a.H);"
    pulled = {f"d{name}": program.pulled[name] for name in program.uses}
    columns = {name: node for name, node in pulled.items() if axes(name) == "c"}
    if columns:
        needed = _needed(columns.values())
        yield from _by_step([
            *_read_columns(layout, [n for n in needed if n[0] != "g"]),
            *(line for n in needed if n[0] == "g" for line in _gather_columns(layout, n)),
            *(f"float {code(name)}[CJ];" for name in columns),
            *loops({code(n): node for n, node in columns.items()}, {code(n): "c" for n in columns},
                   {n: code(n) for n in needed}, replace(_COLUMNS, dialect=dialect)),
            "#pragma unroll",
            "for (int c = 0; c < CJ; ++c) {",
            "    const int i = lane + P * c;",
            "    if (k < steps && i < COLUMNS) {",
            *(f"        {_send(layout, name, f'{code(name)}[c]')}" for name in columns),
            "    }",
            "}",
        ])  # fmt: skip
    rows = {name: node for name, node in pulled.items() if axes(name) == "r"}
    if rows:
        arriving = [f"const float {code(n)} = {layout.floats(n)}[item];" for n in _needed(rows.values()) if n[0] == "g"]
        sent = [f"if (k < steps && i < p.rows) {_send(layout, name, code(name))}" for name in rows]
        yield from _by_number(layout, True, rows, dialect, arriving, sent)
    scalars = {name: node for name, node in pulled.items() if axes(name) == ""}
    if scalars:
        yield from _scalars(layout, scalars, dialect)
    for i, name in enumerate(layout.program.uses):
        if name[0] != "w":
            yield f"w.to[{i}] -= TILE * {_WIDTH[axes(name)]} * int(sizeof({_type_to(layout, name)})) * a.H;"
    if layout.weights:
        yield "meet();"
        for name in layout.weights:
            width = layout.width(name)
            yield f"for (int i = threadIdx.x; i < {width}; i += THREADS) {{"
            yield f"    float sum = {layout.floats(f'a{name}')}[i];"
            yield f"    for (int k = 0; k < steps; ++k) sum += {layout.floats(f'd{name}')}[k * {width} + i];"
            yield f"    {layout.floats(f'a{name}')}[i] = sum;"
            yield "}"


def _gather_columns(layout: Layout, name: str) -> Iterator[str]:
    """A gradient by a prepared value per column: what the warps found, together."""
    yield f"float {code(name)}[CJ];"
    yield "#pragma unroll"
    yield "for (int c = 0; c < CJ; ++c) {"
    yield f"    {code(name)}[c] = 0.0f;"
    yield "    const int at = lane + P * c;"
    yield "    if (k >= TILE || at >= COLUMNS) continue;"
    yield "#pragma unroll"
    yield f"    for (int w = 0; w < W; ++w) {code(name)}[c] += {layout.floats(name)}[(w * TILE + k) * CS + at];"
    yield "}"


def _scalars(layout: Layout, outputs: dict[str, Node], dialect: Dialect) -> Iterator[str]:
    """Gradients by scalars: lanes of a step add up what all rows found."""
    rows = layout.tiling.warps * 32 // layout.tiling.across
    lanes = min(32, 1 << (rows.bit_length() - 1))
    names = _needed(outputs.values())
    yield f"for (int first = 0; first < TILE; first += THREADS / {lanes}) {{"
    yield f"    const int item = first + threadIdx.x / {lanes}, k = min(item, TILE - 1), lane = threadIdx.x % {lanes};"
    for name in names:
        if name[0] == "g":
            yield f"    float {code(name)} = 0.0f;"
            yield f"    for (int j = lane; j < {rows}; j += {lanes})"
            yield f"        {code(name)} += {layout.floats(name)}[k * {rows} + j];"
            yield f"    {code(name)} = across<{lanes}>({code(name)});"
        else:
            yield f"    const float {code(name)} = {layout.read(name, 'k', '0')};"
    yield from _indented([
        *(f"float {code(name)};" for name in outputs),
        *_printed(outputs, dialect),
        *(f"if (item < steps && lane == 0) {_send(layout, name, code(name))}" for name in outputs),
    ])  # fmt: skip
    yield "}"


def _send(layout: Layout, name: str, value: str) -> str:
    """A gradient to where it belongs."""
    use = name[1:]
    index = {"r": "i", "c": "i", "": "0"}[axes(use)]
    if use[0] == "w":
        return f"{layout.floats(name)}[k * {layout.width(use)} + {index}] = {value};"
    dtype = _type_to(layout, use)
    at = f"k * heads * {_WIDTH[axes(use)]} + {index}"
    return f"reinterpret_cast<{dtype}*>(w.to[{layout.streams.index(use)}])[{at}] = narrow<{dtype}>({value});"


def _clear_weights(layout: Layout) -> Iterator[str]:
    for name in layout.weights:
        yield f"for (int i = threadIdx.x; i < {layout.width(name)}; i += THREADS) "
        yield f"    {layout.floats(f'a{name}')}[i] = 0.0f;"


def _store_weights(layout: Layout) -> Iterator[str]:
    """Gradients by weights of this block: `[B, H, SPLIT, ...]`."""
    for name in layout.weights:
        width, number = layout.width(name), layout.streams.index(name)
        yield f"for (int i = threadIdx.x; i < {width}; i += THREADS) "
        yield (
            f"    static_cast<float*>(a.dx[{number}])[i64(blockIdx.x) * {width} + i] = "
            f"reinterpret_cast<const float*>(shared + {layout.at[f'a{name}']})[i];"
        )
