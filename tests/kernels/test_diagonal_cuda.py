"""Element-wise recurrences as CUDA C++: printing and compiling need no GPU, the results do."""

import pytest
import torch
from rnn_lab.kernels import cuda_jit
from rnn_lab.kernels.certificates import evaluate
from rnn_lab.kernels.diagonal import cuda as diagonal_cuda
from rnn_lab.kernels.diagonal import engine as diagonal
from rnn_lab.kernels.diagonal.cuda import Form
from rnn_lab.kernels.recurrence import Cell, Streams, reference
from rnn_lab.kernels.recurrence_backends import refuses_diagonal_cuda, run_diagonal_cuda
from rnn_lab.kernels.triton_support import trying
from rnn_lab.tensors import relative_error
from torch.nn import functional as F

pytest.importorskip("cuda.bindings.nvrtc")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
bf16, fp32 = torch.bfloat16, torch.float32


def self_gate(o, *z):
    return o * F.silu(o)


def gates(x, v, b):
    return torch.sigmoid(x + b), v


def linear(h, a, v):
    return a * h + (1 - a) * v


def nonlinear(h, x, v, d):
    return torch.lerp(torch.tanh(v + d * h), h, torch.sigmoid(x))


def piecewise(h, x, v, d):
    return torch.where(x > 0, F.softplus(h * d) - h.abs().clamp(max=2), torch.exp(-h * h) / (2 + v * v))


def seen(h, q):
    return torch.maximum(h, q) * torch.sqrt(1 + h * h) + torch.sign(q) * torch.log(2 + h * h)


# Cell, and how many weights and biases it has.
CELLS = {
    "linear": (Cell(linear, None, gates, self_gate), 0, 1),
    "nonlinear": (Cell(nonlinear, None, None, self_gate), 1, 0),
    "everything": (Cell(piecewise, seen), 1, 0),
}


def call(name, B, T, C, dtype=fp32, reset=False, device="cuda"):
    cell, weights, biases = CELLS[name]
    torch.manual_seed(0)

    def streams(n):
        return tuple(torch.randn(B, T, C * n, device=device).to(dtype).chunk(n, -1)) if n else ()

    def vectors(n):
        return tuple(torch.randn(C, device=device) for _ in range(n))

    reset_BT = torch.rand(B, T, device=device) < 0.2 if reset else None
    h_BC = torch.randn(B, C, device=device)
    queries = streams(1 if cell.read else 0)
    return cell, h_BC, Streams(streams(2), vectors(weights), queries, vectors(biases)), reset_BT


def program(name):
    cell, _, streams, _ = call(name, 1, 1, 2, device="cpu")
    found = cell.program(tuple(map(len, streams)))
    assert not isinstance(found, str)
    return found


@pytest.mark.parametrize(
    ("name", "arch", "dtype", "channels", "unit", "even"),
    [
        ("linear", "sm_80", bf16, 1, 16, True),
        ("linear", "sm_90a", torch.float16, 2, 4, True),
        ("nonlinear", "sm_90a", bf16, 2, 16, False),
        ("everything", "sm_90a", fp32, 2, 0, True),
    ],
)
@pytest.mark.parametrize("forward", [True, False])
def test_compiles_without_a_spill(name, arch, dtype, channels, unit, even, forward):
    made = program(name)
    form = Form(forward, (dtype,) * made.n_x + (fp32,), channels, unit, even, True, True)
    ((_, found),) = cuda_jit.resources(diagonal_cuda.source(made, form), arch).items()
    assert found.spilled == 0
    assert found.stack == 0


def test_refuses_what_it_cannot(monkeypatch):
    long = call("linear", 1, 1024, 8, device="cpu")
    assert "cpu" in (refuses_diagonal_cuda(*long) or "")
    monkeypatch.setattr(cuda_jit, "refuses_cuda", lambda *tensors: None)
    assert "parts of time" in (refuses_diagonal_cuda(*long) or "")
    assert refuses_diagonal_cuda(*call("nonlinear", 1, 1024, 8, device="cpu")) is None


class TestOnAGPU:
    pytestmark = needs_gpu

    @pytest.mark.parametrize("index", [0, 1])
    @pytest.mark.parametrize("dtype", [fp32, bf16, torch.float16])
    @pytest.mark.parametrize(
        ("name", "B", "T", "C", "reset"),
        [
            ("linear", 3, 64, 256, False),
            ("linear", 2, 19, 37, True),
            ("nonlinear", 2, 41, 66, True),
            ("nonlinear", 1, 1, 3, False),
            ("everything", 2, 24, 40, True),
        ],
    )
    def test_equals_the_reference(self, name, B, T, C, reset, dtype, index):
        args = call(name, B, T, C, dtype, reset)
        with trying(index):
            got = evaluate(run_diagonal_cuda, args)
        want = evaluate(reference, args, torch.float64)
        forward, backward = (1e-5, 1e-4) if dtype == fp32 else (5e-3, 1e-2)
        assert max(map(relative_error, got[0], want[0])) < forward
        assert max(map(relative_error, got[1], want[1])) < backward

    def test_operation(self):
        made = program("nonlinear")
        xs = [torch.randn(2, 9, 4, device="cuda", requires_grad=True) for _ in range(2)]
        h, w = torch.randn(2, 4, device="cuda", requires_grad=True), torch.randn(4, device="cuda", requires_grad=True)
        torch.library.opcheck(diagonal._forward, ("cuda", made.text, h, xs, [w], None, True, True, 1))

    def test_inside_a_graph(self):
        args = call("nonlinear", 2, 16, 64)
        want = run_diagonal_cuda(*args)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = run_diagonal_cuda(*args)
        for y in got:
            y.fill_(float("nan"))
        graph.replay()
        assert all(map(torch.equal, got, want))
