"""Recurrences with products of the state and matrices, one kernel per direction, made from the cell's own expression.

Serves every cell whose update and read-out stay inside the language of kernels.dense.expression, whoever wrote it, on
GPUs with thread-block clusters. Matrices stay on the chip for all steps; what the blocks of a cluster tell each other
is bf16, the state and every sum fp32. Saved for backward: the inputs, and states after every step in bf16; products
that backward needs, and gradients by the matrices, are large products over all steps outside of the kernels.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels import beside
from rnn_lab.kernels.cuda_jit import Kernel
from rnn_lab.kernels.dense import plan as dense_plan
from rnn_lab.kernels.dense.cuda import Form, source
from rnn_lab.kernels.dense.plan import MULTIPROCESSORS, UNITS, Plan, choices, soonest
from rnn_lab.kernels.dense.source import Program, parse
from rnn_lab.kernels.saving import keep, kept
from rnn_lab.kernels.triton_support import constant, multiprocessors, tried


def run(
    program: Program, h: Tensor, xs: list[Tensor], ws: list[Tensor], reset_BT: Tensor | None, narrow: bool
) -> tuple[Tensor, Tensor]:
    """Outputs and last state.

    Args:
        program: the step.
        h: initial state `[B, k width]`, `[B, heads, width]` or `[B, parts, width]`.
        xs: streams `[B, T, k width]`, `[B, T, heads or 1, k width]` or `[B, T, parts, width]`, fp32, bf16 or fp16 each.
        ws: weights: matrices, and what is none, `[k width]`, `[heads, k width]` or one number.
        reset_BT: True at t zeroes the state before step t.
        narrow: whether outputs take the dtype of the first stream instead of fp32.

    Returns:
        Outputs `[B, T, ...]` and the last state like `h`, in fp32.

    """
    with torch.autocast(h.device.type, enabled=False):
        B, width = h.shape[0], program.width
        start = h.float().reshape((B, -1, 1, width) if program.heads else (B, 1, -1, width))
        flat = [_with_heads(x, program) for x in xs]
        vectors = [_vector(w, i, program) for i, w in enumerate(ws)]
        matrices = _matrices(program, ws)
        lack = whole(width) - width
        if lack:
            start, matrices = F.pad(start, (0, lack)), F.pad(matrices, (0, lack, 0, lack))
            flat, vectors = ([_padded(x, width, lack) for x in part] for part in (flat, vectors))
        tensors = (start, matrices, *flat, *vectors)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        reset = None if reset_BT is None else reset_BT.to(torch.uint8).contiguous()
        y, last, _, _ = _forward(
            program.text, start.contiguous(), flat, vectors, matrices, reset, narrow, wanted, beside.calls()
        )
        y = y.unflatten(-1, (-1, width + lack))[..., :width]
        y = y if program.stacked else y.flatten(-2)
        return y if program.heads else y.squeeze(2), last[..., :width].reshape(h.shape)


def whole(width: int) -> int:
    """The width with the units that fill a last item."""
    return width + -width % UNITS


def _with_heads(x: Tensor, program: Program) -> Tensor:
    """`[B, T, heads or 1, k width]`."""
    if program.heads:
        return x if x.dim() == 4 else x.unsqueeze(2)
    return x.flatten(2).unsqueeze(2)


def _vector(w: Tensor, index: int, program: Program) -> Tensor:
    """`[heads or 1, k width]` in fp32; of a matrix nothing."""
    if not any(name.startswith(f"w{index}.") for name in program.weights):
        return w.new_empty(0, dtype=torch.float32)
    w = w.float().expand(program.width) if w.numel() == 1 else w.float()
    return w if w.dim() == 2 else w[None]


def _padded(x: Tensor, width: int, lack: int) -> Tensor:
    """With `lack` zeros behind each piece."""
    return F.pad(x.unflatten(-1, (-1, width)), (0, lack)).flatten(-2) if x.numel() else x  # type: ignore[no-untyped-call]


def _matrices(program: Program, ws: list[Tensor]) -> Tensor:
    """Every product's matrix, `[heads or 1, products, width, width]` in fp32, rows by what it gives.

    A chain is multiplied out: one exchange per step instead of one for each of its matrices.
    """
    chains: dict[Any, Tensor] = {}
    for factors, _ in program.products:
        if factors not in chains:
            # Multiplied from the right one after the other; as columns, from the left in reverse.
            made = [ws[i].float() if transposed else ws[i].float().mT for i, transposed in factors]
            whole = made[0]
            for factor in made[1:]:
                whole = factor @ whole
            whole = whole if whole.dim() == 3 else whole[None]
            chains[factors] = whole.unflatten(1, (-1, program.width))  # type: ignore[no-untyped-call]
    if len(chains) == 1:
        (chain,) = chains.values()
        pieces = [piece for _, piece in program.products]
        return chain if pieces == list(range(chain.shape[1])) else chain[:, pieces]
    heads = max(chain.shape[0] for chain in chains.values())
    parts = [chains[factors][:, piece] for factors, piece in program.products]
    return torch.stack([part.expand(heads, -1, -1) for part in parts], 1)


def arranged(matrix: Tensor, plan: Plan) -> Tensor:
    """Rows of every block, `[heads, cluster, rows, sum]`, as A operands of 16 x 16 in the order of lanes, bf16.

    Within 16 numbers of the sum, a lane's four are side by side in what is exchanged: mma takes the two halves of them
    as its columns k and k + 8.
    """
    heads, blocks = matrix.shape[:2]
    cut = matrix.reshape(heads, blocks, plan.across, plan.tiles, 2, 8, plan.along, plan.steps, 4, 2, 2)
    return cut.permute(0, 1, 2, 6, 7, 3, 5, 8, 9, 4, 10).to(torch.bfloat16, memory_format=torch.contiguous_format)


class _Call:
    """A call of either direction."""

    def __init__(
        self, program: str, h: Tensor, xs: list[Tensor], ws: list[Tensor], matrices: Tensor, reset: Tensor | None,
        calls: int,
    ) -> None:  # fmt: skip
        self.calls = calls
        self.program, self.xs, self.ws = parse(program), [_aligned(x) for x in xs], [w.contiguous() for w in ws]
        self.matrices, self.reset, self.width = matrices, reset, whole(self.program.width)
        self.B, self.T, self.H = h.shape[0], xs[0].shape[1], h.shape[1]
        self.places = {name: tuple(map(int, name[1:].split("."))) for name in
                       (*self.program.streams, *self.program.weights)}  # fmt: skip

    def form(self, forward: bool, seen: torch.dtype, saves: bool) -> Form:
        """What a kernel is printed for."""
        types = tuple(self.xs[self.places[name][0]].dtype for name in self.program.streams)
        return Form(self.program, forward, self.width, types, seen, self.reset is not None, saves)

    def operands(self, plan: Plan) -> Tensor:
        """The matrices as a direction takes them."""
        lack = plan.padded - self.width
        W = F.pad(self.matrices, (0, lack, 0, lack)) if lack else self.matrices
        if plan.problem.forward:
            rows = W.unflatten(2, (plan.cluster, plan.units)).transpose(1, 2).flatten(2, 3)  # type: ignore[no-untyped-call]
        else:
            rows = W.permute(0, 3, 1, 2).flatten(2).unflatten(1, (plan.cluster, plan.units))  # type: ignore[no-untyped-call]
        return arranged(rows, plan)

    def stream(self, name: str, tensors: list[Tensor]) -> tuple[Any, ...]:
        """Tensor, first element and strides of a piece of a stream or of its gradient."""
        i, piece = self.places[name]
        x = tensors[i]
        heads = x.stride(2) if x.shape[2] > 1 else 0
        return x, piece * self.width, x.stride(0), x.stride(1), heads

    def launch(
        self, form: Form, rows: dict[str, tuple[Any, ...]], start: Tensor, stop: Tensor, dw: Tensor | None
    ) -> None:
        """Launch a direction. The values are the fields of Args in dense.cuh; `rows` has what steps read and write."""
        plan = planned(form, self.B, self.H, start.device, self.calls)
        unused = [(None, 0, 0, 0, 0)] * (not form.reads)
        read = [*(rows[name] for name, _ in form.reads), *unused]
        written = [rows[name] for name, _ in form.writes]
        weights = [(self.ws[self.places[name][0]], self.places[name][1]) for name in form.program.weights]
        operands, parts = self.operands(plan), -(-self.B // plan.sequences)
        values = [*(row[i] for i in range(5) for row in read), *(row[i] for i in range(5) for row in written)]
        values += [*(w for w, _ in weights), *[None] * (not weights)]
        values += [*(piece * form.width for _, piece in weights), *[0] * (not weights)]
        values += [*(w.shape[-1] if w.shape[0] > 1 else 0 for w, _ in weights), *[0] * (not weights)]
        values += [operands, operands[0].numel() // 8 if operands.shape[0] > 1 else 0]
        values += [start, stop, dw, self.reset, self.B, self.T, self.H, parts]
        kernel(form, plan, len(values))(
            (self.H * parts * plan.cluster, 1, 1), (plan.threads, 1, 1), *values, shared=plan.shared
        )


def _aligned(x: Tensor) -> Tensor:
    """The stream, or a copy whose rows begin where a thread's units can be copied at once."""
    unit = UNITS * x.element_size()
    steps = [n * x.element_size() for n, size in zip(x.stride()[:3], x.shape[:3], strict=True) if size > 1]
    even = x.stride(-1) == 1 and x.data_ptr() % unit == 0 and all(n % unit == 0 for n in steps)
    return x if even else x.clone(memory_format=torch.contiguous_format)


@constant
def refuses(text: str, types: tuple[torch.dtype, ...]) -> str | None:
    """Why no kernel serves the program of this text with streams of these dtypes, or None."""
    program = parse(text)
    width = whole(program.width)
    low, high = dense_plan.NARROWEST, dense_plan.WIDEST
    if not low <= width <= high:
        return f"its state is {program.width} wide, and clusters take {low} to {high}"
    used = tuple(types[int(name[1:].partition(".")[0])] for name in program.streams)
    forms = [Form(program, way, width, used, torch.float32, True, True) for way in (True, False)]
    if not all(dense_plan.plans(form.problem) for form in forms):
        return "its matrices and inputs find no room on the chip"
    return None


def planned(form: Form, sequences: int, heads: int, device: torch.device, calls: int = 1) -> Plan:
    """The way to spread a direction beside so many calls like it; a certificate asks for each that may be chosen."""
    count = multiprocessors(device.index or 0) if device.type == "cuda" else MULTIPROCESSORS
    found = choices(form.problem, heads, count)
    index = tried(len(found))
    return soonest(found, sequences, heads * calls, count) if index is None else found[index]


@lru_cache(maxsize=1024)
def kernel(form: Form, plan: Plan, fields: int) -> Kernel:
    """The kernel of a direction."""
    name = "forward" if form.forward else "backward"
    return Kernel(source(form, plan), name, [f"{fields}Q"], "dense.cu", cluster=(plan.cluster, 1, 1))


def _saved(x: Tensor, part: int = 0) -> tuple[Any, ...]:
    """Tensor, first element and strides of a part of what forward saves, `[parts, heads, T, B, width]`."""
    return x, part * x.stride(0), x.stride(3), x.stride(2), x.stride(1)


@torch.library.custom_op("rnn_lab::dense", mutates_args=())
def _forward(
    program: str, h: Tensor, xs: list[Tensor], ws: list[Tensor], matrices: Tensor, reset: Tensor | None, narrow: bool,
    saves: bool, calls: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    call = _Call(program, h, xs, ws, matrices, reset, calls)
    y, last, states, wires = _results(program, h, xs, narrow, saves)
    form, width = call.form(True, y.dtype, saves), call.width
    rows = {name: call.stream(name, call.xs) for name in call.program.streams}
    rows |= {f"y{i}": (y, i * width, y.stride(0), y.stride(1), y.stride(2)) for i in range(len(call.program.output))}
    if saves:
        rows |= {f"s{i}": _saved(states, i) for i in range(call.program.parts)} | {"m": _saved(wires)}
    call.launch(form, rows, h, last, None)
    return y, last, states, wires


@_forward.register_fake
def _(
    program: str, h: Tensor, xs: list[Tensor], ws: list[Tensor], matrices: Tensor, reset: Tensor | None, narrow: bool,
    saves: bool, calls: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _results(program, h, xs, narrow, saves)


def _results(
    program: str, h: Tensor, xs: list[Tensor], narrow: bool, saves: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Memory for outputs, the last state, states in bf16 and, where it is no part of those, the wire."""
    made = parse(program)
    B, T, H, width = h.shape[0], xs[0].shape[1], h.shape[1], whole(made.width)
    y = h.new_empty((B, T, H, len(made.output) * width), dtype=xs[0].dtype if narrow else torch.float32)
    states = (made.parts, H, T + 1, B, width) if saves else (0, 0, 0, 0, 0)
    wires = (1, H, T, B, width) if saves and made.sent is None else (0, 0, 0, 0, 0)
    saved, sent = (h.new_empty(shape, dtype=torch.bfloat16) for shape in (states, wires))
    return y, torch.empty_like(h), saved, sent


@torch.library.custom_op("rnn_lab::dense_backward", mutates_args=())
def _backward(
    program: str, xs: list[Tensor], ws: list[Tensor], matrices: Tensor, reset: Tensor | None, states: Tensor,
    wires: Tensor, dy: Tensor, dlast: Tensor, calls: int,
) -> list[Tensor]:  # fmt: skip
    call = _Call(program, dlast, xs, ws, matrices, reset, calls)
    made, dy, B, T, H = call.program, dy.contiguous(), call.B, call.T, call.H
    width, products = call.width, len(made.products)
    sent = _sent(made, states, wires, reset)
    pieces = dy.new_empty((H, T, B, products, width), dtype=torch.bfloat16)
    if made.replays:
        torch.matmul(sent, matrices.flatten(1, 2).to(torch.bfloat16).mT, out=pieces.view(H, T * B, products * width))
    dxs = [x.new_empty(B, T, H, x.shape[-1]) if _covered(made, i, x) else x.new_zeros(B, T, H, x.shape[-1])
           for i, x in enumerate(xs)]  # fmt: skip
    dw = dlast.new_empty(len(made.weights), B, H, width)
    rows = {name: call.stream(name, call.xs) for name in made.streams}
    rows |= {f"d{name}": call.stream(name, dxs) for name in made.streams}
    rows |= {f"dy{i}": (dy, i * width, dy.stride(0), dy.stride(1), dy.stride(2)) for i in range(len(made.output))}
    rows |= {f"h{i}": _saved(states, i) for i in range(made.parts)}
    strides = pieces.stride(2), pieces.stride(1), pieces.stride(0)
    rows |= {f"{letter}{i}": (pieces, i * width, *strides) for letter in ("p", "dp") for i in range(products)}
    dh = torch.empty_like(dlast, memory_format=torch.contiguous_format)
    call.launch(call.form(False, dy.dtype, True), rows, dlast.contiguous(), dh, dw)
    dW = _product(pieces.view(H, T * B, products * width).mT, sent).view(H, products, width, width)
    return [
        dh,
        *(g if g.shape == x.shape else g.sum(2, keepdim=True) for g, x in zip(dxs, xs, strict=True)),
        *_collected(made, dw.sum(1), ws),
        dW if matrices.shape[0] == H else dW.sum(0, keepdim=True),
    ]


def _sent(program: Program, states: Tensor, wires: Tensor, reset: Tensor | None) -> Tensor:
    """What every step's products are of, `[heads, T B, width]`."""
    if program.sent is None:
        return wires[0].flatten(1, 2)
    before = states[program.sent, :, :-1]
    if reset is not None:
        before = before.masked_fill(reset.T[None, :, :, None].bool(), 0)
    return before.flatten(1, 2)


def _covered(program: Program, index: int, x: Tensor) -> bool:
    """Whether the kernel writes the gradient by every piece of a stream."""
    return sum(name.startswith(f"x{index}.") for name in program.streams) * whole(program.width) == x.shape[-1]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of bf16 matrices, in fp32."""
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _collected(program: Program, dw: Tensor, ws: list[Tensor]) -> list[Tensor]:
    """Gradients by weights from those by their pieces, `[pieces, heads, width]`."""
    out = [torch.zeros_like(w) for w in ws]
    for g, name in zip(dw, program.weights, strict=True):
        i, piece = map(int, name[1:].split("."))
        g = g if ws[i].shape[0] > 1 else g.sum(0, keepdim=True)
        width = whole(program.width)
        out[i][:, piece * width : (piece + 1) * width] = g
    return out


@_backward.register_fake
def _(
    program: str, xs: list[Tensor], ws: list[Tensor], matrices: Tensor, reset: Tensor | None, states: Tensor,
    wires: Tensor, dy: Tensor, dlast: Tensor, calls: int,
) -> list[Tensor]:  # fmt: skip
    return [t.new_empty(t.shape) for t in (dlast, *xs, *ws, matrices)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.program, _, xs, ws, matrices, reset, _, _, ctx.calls = inputs
    keep(ctx, output[2], xs, [*ws, matrices, output[3]], reset)


def _differentiate(ctx: Any, dy: Tensor, dlast: Tensor, *_: Tensor) -> tuple[Any, ...]:
    states, xs, rest, reset = kept(ctx)
    *ws, matrices, wires = rest
    dh, *grads = _backward(ctx.program, xs, ws, matrices, reset, states, wires, dy, dlast, ctx.calls)
    return None, dh, grads[: len(xs)], grads[len(xs) : -1], grads[-1], None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
