"""Element-wise recurrences by printed kernels: outputs, states and every gradient against the loop in fp64."""

import pytest
import torch
from rnn_lab.kernels.cell import counts
from rnn_lab.kernels.diagonal import engine as diagonal
from rnn_lab.kernels.expression import ordered, trace
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams, reference
from rnn_lab.registry import registry
from rnn_lab.tensors import relative_error
from rnn_lab.testing.measure import nan_filled
from torch.nn import functional as F

LIMITS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (5e-3, 1e-2)}


def gates(a, w, b_a):
    return torch.sigmoid(a + b_a), w.tanh()


def nonlinear(h, a, w, d):
    return a * h + (1 - a) * w * torch.sigmoid(d * h.abs())


def linear(h, a, w, d):
    return a * h + d * w


def everything(h, u, v, d):
    s = torch.sign(u) * torch.sqrt(torch.exp(-v * v) + 0.1) + F.softplus(v) - F.logsigmoid(u)
    s = torch.lerp(s, torch.log(v.square() + 1) / (1 + u**2), torch.sigmoid(d))
    return torch.where(h > u, s.clamp(-1, 2), torch.maximum(h, other=v) - torch.minimum(u, d) + F.relu(h - 0.1)).tanh()


def self_gate(o):
    return o * F.silu(o)


def by_branch(o, z):
    return o * F.silu(z)


CELLS = {
    "nonlinear": Cell(nonlinear, before=gates, after=self_gate),
    "linear": Cell(linear, before=gates, after=by_branch),
    "read": Cell(linear, read=torch.mul, before=gates),
    "language": Cell(everything),
}


def streams_of(name, B, T, C, dtype, device):
    wide = torch.randn(B, T, 3 * C, device=device).to(dtype)
    x, y, z = wide.chunk(3, -1)  # not contiguous, as the branches of a projection are
    w = [torch.randn(C, device=device) for _ in range(2)]
    return {
        "nonlinear": Streams((x, y), (w[0],), biases=(w[1],)),
        "linear": Streams((x, y), (w[0],), biases=(w[1],), gates=(z,)),
        "read": Streams((x, y), (w[0],), queries=(z,), biases=(w[1],)),
        "language": Streams((x, y), (w[0],)),
    }[name]


def run(cell, h, streams, reset, dtype=None, parts=None):
    """Results and gradients by the kernel, or in fp64 by the loop."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for part in streams for t in part]
    h = h.detach().to(dtype or h.dtype).requires_grad_()
    rest = iter(leaves)
    streams = Streams(*(tuple(next(rest) for _ in part) for part in streams))
    with nan_filled():
        if dtype is not None:
            results = reference(cell, h, streams, reset)
        else:
            xs = [*streams.inputs, *streams.queries, *streams.gates]
            program = cell.program(counts(streams))
            ws = [*streams.weights, *streams.biases]
            results = diagonal.run(program, h, xs, ws, reset, cell.after is not None, parts)
    torch.manual_seed(7)
    total = sum((r.double() * torch.randn(r.shape, device=r.device)).sum() for r in results)
    return [*results, *torch.autograd.grad(total, [h, *leaves])]


@pytest.mark.parametrize("dtype", LIMITS, ids=["fp32", "bf16"])
@pytest.mark.parametrize(("B", "T", "C", "resets"), [(2, 19, 40, True), (1, 1, 3, True), (3, 16, 5, False)])
@pytest.mark.parametrize("name", CELLS)
def test_it_equals_the_loop(name, B, T, C, resets, dtype, device):
    torch.manual_seed(B)
    streams = streams_of(name, B, T, C, dtype, device)
    h = torch.randn(B, C, device=device)
    reset = torch.rand(B, T, device=device) < 0.2 if resets else None
    found = run(CELLS[name], h, streams, reset)
    wanted = run(CELLS[name], h, streams, reset, torch.float64)
    forward, gradient = LIMITS[dtype]
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape
        if b.abs().max() > 1e-9:
            assert relative_error(a, b) < (forward if i < 2 else gradient), i
        else:
            assert a.abs().max() < 1e-6, i


@pytest.mark.parametrize(("T", "parts"), [(40, 3), (19, 2), (9, 5)])
def test_a_linear_recurrence_may_be_split_in_time(T, parts, device):
    torch.manual_seed(T)
    streams = streams_of("linear", 2, T, 9, torch.float32, device)
    h, reset = torch.randn(2, 9, device=device), torch.rand(2, T, device=device) < 0.1
    found = run(CELLS["linear"], h, streams, reset, parts=parts)
    for a, b in zip(found, run(CELLS["linear"], h, streams, reset, torch.float64), strict=True):
        assert relative_error(a, b) < 1e-5


def test_only_linear_and_narrow_recurrences_are_split():
    program = {
        name: cell.program(counts(streams_of(name, 1, 1, 1, torch.float32, "cpu"))) for name, cell in CELLS.items()
    }
    assert diagonal.parts_of(program["nonlinear"], 1, 2**15, 64) == 1
    assert diagonal.parts_of(program["linear"], 32, 512, 4096) == 1
    assert diagonal.parts_of(program["linear"], 1, 2**15, 1024) == 32
    assert diagonal.parts_of(program["linear"], 1, 100, 64) == 1


def test_the_operation_follows_the_rules_of_torch(device):
    streams = streams_of("nonlinear", 2, 9, 4, torch.float32, device)
    text = CELLS["nonlinear"].program(counts(streams)).text
    leaves = [x.detach().requires_grad_() for x in streams.inputs]
    ws = [w.requires_grad_() for w in (*streams.weights, *streams.biases)]
    h = torch.randn(2, 4, device=device, requires_grad=True)
    args = ("triton", text, h, leaves, ws, None, True, True, 1)
    torch.library.opcheck(diagonal._forward, args, test_utils=("test_schema", "test_faketensor"))


MODELS = {
    "e61": {}, "61b": {}, "61c": {}, "e62": {}, "62b": {}, "62c": {}, "e64": {}, "e65": {}, "e67": {}, "e68": {},
    "68i": {}, "e3": {}, "e2": {"form": "diagonal"}, "e74d": {}, "mingru": {}, "minlstm": {},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_diagonal_model_has_the_kernel(name):
    ref, fields = registry().find_model(name)
    model = ref.load()
    layer = model(model.Config(dim=8, **fields, **MODELS[name]))
    assert layer.backends == {}
    layer(torch.randn(1, 3, 8))
    choice = layer.backends["recurrence"]
    assert choice.backend == "diagonal" or "cell" not in dict(choice.refused)["diagonal"]


def test_a_dense_cell_says_why_it_has_none():
    layer = registry().models["e1"].load()
    layer = layer(layer.Config(dim=8))
    layer(torch.randn(1, 3, 8))
    assert RECURRENCE.backends[0].refuses(layer._cell, torch.zeros(1, 8), Streams((torch.zeros(1, 1, 8),)))


def test_the_tutorials_cell_is_fused():
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec = spec_from_file_location("leaky", Path(__file__).parents[2] / "docs/examples/leaky.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    layer = module.Model(module.Config(dim=8))
    program = layer._gated.program((1, 1, 0, 0, 0))
    assert not isinstance(program, str) and program.factor is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer.to(device)(torch.randn(1, 3, 8, device=device))
    assert layer.backends["recurrence"].backend == "diagonal"


def test_words_of_two_are_read_only_where_every_row_begins_with_one():
    from rnn_lab.kernels.diagonal.engine_triton import _paired

    x = torch.zeros(2, 3, 8, dtype=torch.bfloat16)
    assert _paired(x) and _paired(x[..., 2:6])
    assert not _paired(x.float())
    assert not _paired(x[..., :5])  # an odd number of channels
    assert not _paired(x[..., 1:7])  # begins with the upper half
    assert not _paired(torch.zeros(2, 3, 9, dtype=torch.bfloat16)[..., :8])  # odd strides


def test_a_mix_of_two_needs_one_product():
    mixes = [
        lambda a, x, y: a * x + (1 - a) * y,
        lambda a, x, y: y * (1 - a) + x * a,
        lambda a, x, y: torch.lerp(y, x, a),
        lambda a, x, y: torch.lerp(y, end=x, weight=a),
    ]
    for mix in mixes:
        (node,) = trace(mix, "a", "x", "y")
        assert [n.op for n in ordered([node]) if n.op != "var"] == ["sub", "mul", "add"]
