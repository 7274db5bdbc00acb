"""The scan of a linear recurrence against the plain loop in fp64: states, carried state, every gradient."""

import itertools

import pytest
import torch
from rnn_lab.kernels.cell import Cell, Streams, counts
from rnn_lab.kernels.certificates import evaluate
from rnn_lab.kernels.linear import dense_scan as chunked
from rnn_lab.kernels.linear.costs import Cost
from rnn_lab.kernels.recurrence import RECURRENCE, reference
from rnn_lab.kernels.recurrence_backends import refuses_chunked, run_chunked
from rnn_lab.registry import registry
from rnn_lab.tensors import relative_error
from rnn_lab.testing.measure import nan_filled
from torch import nn
from torch.nn import functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMITS = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 1e-4), torch.bfloat16: (5e-3, 1e-2)}
RADIUS = 0.999


def update(h, u, W):
    return torch.addmm(u, h, W.T)


def self_gate(o):
    return o * F.silu(o)


CELL = Cell(update, after=self_gate)


def matrix(D):
    """Of spectral norm 0.999 with half of its singular values there: what it holds fades as slowly as it may."""
    U, V = (torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0] for _ in range(2))
    return U @ torch.diag(torch.linspace(2 * RADIUS, 0, D).clamp(max=RADIUS).double()) @ V


def call(B, T, D, resets=False, dtype=torch.float32, cell=CELL):
    torch.manual_seed(B * T + D)
    u, h = torch.randn(B, T, D, dtype=torch.float64), torch.randn(B, D, dtype=torch.float64)
    wide = torch.promote_types(dtype, torch.float32)
    reset = (torch.rand(B, T) < 0.2).to(DEVICE) if resets else None
    streams = Streams((u.to(DEVICE, dtype),), (matrix(D).to(DEVICE, wide),))
    return cell, h.to(DEVICE, wide), streams, reset


def scanned(n):
    def run(cell, h, streams, reset):
        return chunked.run(cell.linear(counts(streams)), cell, h, streams, reset, n)

    return run


def errors(got, want):
    return [max(map(relative_error, mine, theirs)) for mine, theirs in zip(got, want, strict=True)]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("resets", [False, True], ids=["carried", "resets"])
@pytest.mark.parametrize(("T", "n"), [(1, 0), (2, 1), (7, 0), (7, 2), (13, 3), (16, 4), (37, 2), (64, 3), (133, 5)])
def test_as_the_loop(T, n, resets, dtype):
    args = call(3, T, 24, resets, dtype)
    with nan_filled():
        got = evaluate(scanned(n), args)
    allowed = LIMITS[dtype]
    found = errors(got, evaluate(reference, args, torch.float64))
    assert found[0] < allowed[0] and found[1] < allowed[1], found


def test_parts_hold_what_one_product_of_16_bits_drops():
    """The answer to a change of the state by 2^-11, behind products of many rows."""
    cell, h, streams, _ = call(chunked.WIDE_ROWS, 16, 32, dtype=torch.bfloat16, cell=Cell(update))
    rotation = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0]  # what it holds does not fade
    streams = streams._replace(weights=(rotation.to(h),))
    exact = Streams(*(tuple(x.double() for x in part) for part in streams))

    def answer(run, h, streams):
        return run(cell, h * (1 + 2.0**-11), streams, None)[1] - run(cell, h, streams, None)[1]

    want = answer(reference, h.double(), exact)
    assert relative_error(answer(scanned(2), h, streams), want) < 0.05


def test_long_blocks_are_as_accurate_as_the_loop():
    """At the radius that layers have, fp32, each state beside fp64."""
    args = call(2, 512, 64)
    want = evaluate(reference, args, torch.float64)
    loop, scan = (errors(evaluate(run, args), want) for run in (reference, scanned(8)))
    assert scan[0] < 2 * loop[0] and scan[1] < 2 * loop[1], (loop, scan)


@pytest.mark.parametrize(
    ("step", "weight", "transposed"),
    [
        (lambda h, u, W: torch.addmm(u, h, W.T), 0, True),
        (lambda h, u, W: h @ W + u, 0, False),
        (lambda h, u, W: F.linear(h, W, u), 0, True),
        (lambda h, u, W: u + torch.mm(h, W.mT.t()), 0, False),
        (lambda h, u, v, W: torch.addmm(u, h, W) + v, 0, False),
    ],
)
def test_linear_steps_are_found(step, weight, transposed):
    inputs = step.__code__.co_argcount - 2
    found = Cell(step).linear((inputs, 1, 0, 0, 0))
    assert (found.weight, found.transposed, found.inputs) == (weight, transposed, tuple(range(inputs)))
    _, h, streams, reset = call(2, 9, 8, dtype=torch.float64)
    args = (Cell(step), h, streams._replace(inputs=streams.inputs * inputs), reset)
    assert max(errors(evaluate(scanned(2), args), evaluate(reference, args))) < 1e-12


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda h, u, W: torch.addmm(u, h, W.T).tanh(), "tanh"),
        (lambda h, u, W: h + u, "one product"),
        (lambda h, u, W: h @ W + h, "one product"),
        (lambda h, u, W: (h @ W) @ W + u, "other than the state"),
        (lambda h, u, W: h @ W + u * u, "element-wise product"),
        (lambda h, u, W: u @ W + h, "other than the state"),
        (lambda h, u, W: h @ W + u + 1, "no input"),
        (lambda h, u, W: h @ W.T + W, "no input"),
    ],
)
def test_others_are_refused_with_what_they_use(step, reason):
    assert reason in Cell(step).linear((1, 1, 0, 0, 0))


def test_e42_is_one():
    model = registry().models["e42"].load()
    layer = model(model.Config(dim=8))
    assert layer._gated.linear((1, 1, 0, 0, 0)).text == "Step(weight=0, transposed=True, inputs=(0,))"


def test_what_before_makes_and_read_takes():
    def before(u, b):
        return torch.tanh(u + b), u

    def step(h, v, u, W):
        return torch.addmm(v, h, W) + u

    def read(h, q):
        return h * q

    cell, h, streams, reset = call(2, 11, 8, True, cell=Cell(step, read, before, self_gate))
    q, b = torch.randn(2, 11, 8, device=DEVICE), torch.randn(8, device=DEVICE)
    args = (cell, h, streams._replace(queries=(q,), biases=(b,)), reset)
    found = errors(evaluate(scanned(2), args), evaluate(reference, args, torch.float64))
    assert found[0] < 1e-5 and found[1] < 1e-4


def test_the_operation():
    _, h, streams, reset = call(2, 7, 6, True)
    tensors = [t.requires_grad_() for t in (streams.inputs[0], h, streams.weights[0])]
    torch.library.opcheck(chunked.scan, (*tensors, reset, 2, False))


def test_the_plain_loop_is_left_where_nothing_is_gained():
    cost = Cost(1e12, 1e12, 1e12, 1e-6)
    chosen = {
        (B, T, D): chunked.doublings(B, T, D, cost) for B, T, D in itertools.product((1, 4096), (1, 8, 512), (64, 256))
    }
    assert all(1 << n <= T for (_, T, _), n in chosen.items())
    assert chosen[1, 512, 64] > chosen[1, 512, 256] > 0
    assert chosen[4096, 512, 64] == chosen[4096, 8, 256] == 0


def test_a_short_call_is_of_the_kind_of_long_ones(monkeypatch):
    """A certificate is made of 19 steps of 2 sequences, where doubling would not pay."""
    monkeypatch.setattr(chunked, "doublings", lambda B, T, D, cost: 0)
    made = []
    real = chunked._squares
    monkeypatch.setattr(chunked, "_squares", lambda W, n, narrow: made.append((n, narrow)) or real(W, n, narrow))
    for T in (19, 1):
        run_chunked(*call(2, T, 8, dtype=torch.bfloat16))
    assert made == [(1, True), (0, True)]


def test_refusals():
    cell, h, streams, _ = call(2, 8, 8)

    class OnGPU:
        is_cuda, dtype, device = True, torch.bfloat16, torch.device("cuda")

        def __init__(self, *shape):
            self.shape = shape

    assert "cpu" in chunked.refuses(streams.inputs[0].cpu(), 8)
    assert chunked.refuses(OnGPU(32, 512, 1536), 1536) is None
    assert chunked.refuses(OnGPU(32, 1, 1536), 1536) is None
    assert "one after the other" in chunked.refuses(OnGPU(32, 2, 1536), 1536)
    assert "vector" in refuses_chunked(cell, h[:, None], streams)
    assert "tanh" in refuses_chunked(Cell(lambda h, u, W: torch.addmm(u, h, W.T).tanh()), h, streams)


def test_dispatch_certifies_it(monkeypatch):
    monkeypatch.setattr(chunked, "refuses", lambda x, D: None)
    args = call(2, 24, 16, True)
    record = {}
    y, _ = RECURRENCE(record, *args)
    assert record["recurrence"].backend == "chunked"
    assert relative_error(y, reference(*args)[0]) < 1e-5


def test_a_wrong_power_gets_no_certificate(monkeypatch):
    monkeypatch.setattr(chunked, "refuses", lambda x, D: None)
    real = chunked._squares
    monkeypatch.setattr(chunked, "_squares", lambda W, n, narrow: 0.99 * real(W, n, narrow))
    record = {}
    RECURRENCE(record, *call(2, 24, 12))
    assert "differs from the reference" in dict(record["recurrence"].refused)["chunked"]


def test_torch_compile():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.h, self.streams, self.reset = call(2, 8, 6)

        def forward(self, u):
            return scanned(2)(self.cell, self.h, self.streams._replace(inputs=(u,)), None)[0]

    layer = Layer()
    u = layer.streams.inputs[0]
    layer(u)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(u), layer(u))
