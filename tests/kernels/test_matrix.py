"""Recurrences of independent rows: on a CPU the printed CUDA C++ as plain C++, on a GPU as it is."""

from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from rnn_lab.bench.calls import bind
from rnn_lab.bench.timing import captured
from rnn_lab.kernels import certificates, cuda_jit
from rnn_lab.kernels.certificates import LIMITS, copies, evaluate
from rnn_lab.kernels.matrix import engine as matrix
from rnn_lab.kernels.matrix.cuda import source
from rnn_lab.kernels.matrix.layout import Form
from rnn_lab.kernels.recurrence import Cell, Streams, reference
from rnn_lab.kernels.recurrence_backends import refuses_matrix, run_matrix
from rnn_lab.kernels.triton_support import constant, trying
from rnn_lab.layers import normalise, retrieve, self_gate, write
from rnn_lab.tensors import relative_error
from rnn_lab_e74_e88 import e63m, e71, e72, e73, e75, e88
from rnn_lab_e74_e88._updates import NONLINEARITIES, UPDATES, step
from torch.nn import functional as F

from tests.kernels import emulation

bf16, fp32 = torch.bfloat16, torch.float32
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    """Without a GPU, kernels are plain C++."""
    if not CUDA:
        if not emulation.available():
            pytest.skip("needs a GPU or g++")
        monkeypatch.setattr(matrix, "Kernel", emulation.EmulatedKernel)
        matrix.kernel.cache_clear()


def e74(update, nonlinearity="tanh", projection="no_z", gate="output"):
    cfg = SimpleNamespace(projection=projection, gate=gate)
    return partial(step, UPDATES[update], NONLINEARITIES[nonlinearity], cfg)


def of_length_one(k, v, *rest):
    return normalise(k), v, *rest


def gated(o, z):
    return o * F.silu(z)


def third_party(S, k, v, a, w, b):
    """What no model of ours does: norms and products inside the step, a weight per head, another library's notation."""
    strength = k.square().mean(-1, keepdim=True) + torch.linalg.vector_norm(k, dim=-1, keepdim=True)
    energy = S.square().mean(-1)
    error = torch.where(v > 0, v - torch.einsum("bhij,bhj->bhi", S, k) * strength, F.softplus(b * energy))
    return torch.tanh(a[..., None, None] * S + torch.einsum("bhi,bhj->bhij", error, w * k)) * torch.exp(-0.1 * S * S)


E88 = Cell(e88.tanh_update, partial(e88.read, True, True), partial(e88.before, True, True))
# Cell; kinds of inputs, weights, queries, biases and gates: k column, v row, s decay per head, g its logarithm, l logit
# per head, 1 one number.
CELLS = {
    "e71": (Cell(e71.Model.update, retrieve, None, self_gate), "kvv", "v", "k", "", ""),
    "e72": (Cell(e72.standard, retrieve), "kvv", "vv", "k", "", ""),
    "e72i": (Cell(e72.inverse, retrieve), "kvv", "vv", "k", "", ""),
    "e73": (Cell(e73.column, retrieve), "kvk", "", "k", "", ""),
    "e73r": (Cell(e73.row, retrieve), "kvv", "", "k", "", ""),
    "e73f": (Cell(e73.full, retrieve), "kvv", "", "k", "", ""),
    "e74": (Cell(e74("delta"), retrieve, of_length_one, self_gate), "kv", "", "k", "", ""),
    "e74-linear": (Cell(e74("delta", "linear"), retrieve, of_length_one), "kv", "", "k", "", ""),
    "e74-full-retain": (Cell(e74("delta", projection="full", gate="retain"), retrieve, of_length_one), "kvk", "vv",
                        "k", "", ""),
    "e74-simple": (Cell(e74("simple"), retrieve), "kv", "1", "k", "", ""),
    "e74-ema": (Cell(e74("ema"), retrieve), "kvv", "", "k", "", ""),
    "e74-residual": (Cell(e74("residual"), retrieve), "kv", "v", "k", "", ""),
    "e74-ntm": (Cell(e74("ntm"), retrieve), "kvkv", "", "k", "", ""),
    "e75": (Cell(partial(e75.gated_delta, torch.tanh), retrieve, of_length_one, self_gate), "kvv", "", "k", "", ""),
    "e88": (E88, "kvg", "", "k", "", ""),
    "e88-gates": (replace(E88, after=gated), "kvgl", "", "k", "", "v"),
    "third-party": (Cell(third_party, lambda S, q: torch.einsum("bhij,bhj->bhi", S, q)), "kvs", "kv", "k", "", ""),
}  # fmt: skip


def call(name, B, T, heads, rows, columns, dtype=fp32, reset=False, scale=1.0):
    cell, inputs, weights, queries, biases, gates = CELLS[name]
    torch.manual_seed(0)
    sizes = {"k": (*heads, columns), "v": (*heads, rows), "l": heads, "1": ()}

    def stream(kind):
        if kind in "sg":
            decay = (0.5 + 0.5 * torch.rand(B, T, *heads)).to(DEVICE)
            return decay if kind == "s" else decay.log()
        x = torch.randn(B, T, *sizes[kind]) * scale
        return (F.normalize(x, dim=-1) * scale if kind == "k" else x).to(DEVICE, dtype)

    def weight(kind):
        return (0.5 * torch.randn(sizes[kind])).to(DEVICE)

    shape = (columns, rows) if name.startswith("e88") else (rows, columns)
    h = (0.3 * torch.randn(B, *heads, *shape)).to(DEVICE)
    parts = [tuple(map(stream, inputs)), tuple(map(weight, weights)), tuple(map(stream, queries)),
             tuple(map(weight, biases)), tuple(map(stream, gates))]  # fmt: skip
    reset_BT = (torch.rand(B, T) < 0.2).to(DEVICE) if reset else None
    return cell, h, Streams(*parts), reset_BT


def program(*args):
    found = args[0].matrix(args[1], args[2])
    assert not isinstance(found, str), found
    return found


def expect_reference(args, dtype, index):
    with trying(index):
        got = evaluate(run_matrix, args)
    want = evaluate(reference, args, torch.float64)
    forward, backward = LIMITS[dtype]
    assert max(map(relative_error, got[0], want[0])) < forward
    assert max(map(relative_error, got[1], want[1])) < backward


SHAPES = {  # sequences, steps, heads, rows, columns
    "e71": (2, 16, (), 24, 24),
    "e74": (2, 19, (), 24, 24),
    "e74-full-retain": (1, 8, (), 12, 12),
    "e88-gates": (2, 10, (3,), 40, 8),
    "e73f": (1, 1, (), 9, 9),
    "e75": (1, 16, (2,), 8, 8),
    "third-party": (2, 9, (2,), 40, 6),
}
SOME = [("e74", bf16, False, 1), ("e74-full-retain", fp32, True, 1), ("e88-gates", fp32, True, 1),
        ("third-party", fp32, True, 1), ("e73f", bf16, False, 1), ("e75", bf16, False, 1),
        ("e71", fp32, True, 0)]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype", "reset", "index"), SOME)
def test_equals_the_reference(name, dtype, reset, index):
    """Rows of e73f are not aligned. The last two have nothing but whole tiles: of one segment each, and of two."""
    expect_reference(call(name, *SHAPES[name], dtype, reset), dtype, index)


@pytest.mark.parametrize("heads", [(2,), (2, 3)])
def test_weights_per_head_and_of_one_number(heads):
    def update(S, k, v, a, w):
        return torch.tanh(a[..., None, None] * write(S, v - w * retrieve(S, k), k))

    _, h, streams, _ = call("e74", 2, 5, heads, 6, 6)
    weights = torch.rand(heads).to(DEVICE), torch.rand(()).to(DEVICE)
    args = (Cell(update, retrieve), h, streams._replace(weights=weights), None)
    expect_reference(args, fp32, 1)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_way_to_spread_a_matrix(index):
    """More rows than a block has, so that two blocks share a matrix in one of the ways."""
    expect_reference(call("e74-full-retain", 1, 5, (), 40, 40, bf16), bf16, index)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_blocks_that_share_a_matrix_share_its_weights(index):
    """A weight along columns gets its gradient from each of them."""

    cell = Cell(lambda S, k, v, w: torch.tanh(write(S, v, w * k)), retrieve)
    _, h, streams, _ = call("e74", 1, 5, (), 40, 40)
    expect_reference((cell, h, streams._replace(weights=(torch.rand(40).to(DEVICE),)), None), fp32, index)


@pytest.mark.parametrize("first", [0, 1, 2, 4])
def test_rows_may_begin_between_two_words(first):
    """Pieces of wider rows, which are aligned themselves."""
    cell, h, streams, reset = call("e74", 2, 19, (), 24, 24, bf16)
    wide = [F.pad(x, (first, 8 - first))[..., first : first + 24] for x in streams.inputs]
    expect_reference((cell, h, streams._replace(inputs=tuple(wide)), reset), bf16, 1)


def test_the_order_of_threads_does_not_matter(monkeypatch):
    if CUDA:
        pytest.skip("the GPU chooses")
    args = call("e88-gates", *SHAPES["e88-gates"], reset=True)
    with trying(1):
        first = evaluate(run_matrix, args)
        monkeypatch.setattr(emulation.EmulatedKernel, "reversed", True)
        second = evaluate(run_matrix, args)
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(
    ("good", "bad", "noticed"),
    [
        ("arrived<0>();", "", "not a number"),
        ("valid ? source : from, valid", "source, true", "a copy from outside"),
        ("if (p.has_row(r)) y_at", "y_at", "wrote outside"),
    ],
)
def test_the_emulation_notices(good, bad, noticed, monkeypatch):
    """Copies nobody waits for, and what is outside the tensors: mistakes that plain C++ would forgive."""
    if CUDA:
        pytest.skip("the GPU forgives them too")
    monkeypatch.setattr(matrix, "source", lambda *args: source(*args).replace(good, bad))
    with trying(1), pytest.raises(AssertionError, match=noticed):
        y, _ = run_matrix(*call("e73f", *SHAPES["e73f"]))
        assert y.isfinite().all(), "not a number"


def test_is_traced_whole(monkeypatch):
    """Under torch.compile, from the certificate on: what the compiled layer gives is what the eager one does."""
    monkeypatch.setenv("RNN_LAB_KERNELS", "matrix")
    if not CUDA:
        monkeypatch.setattr(cuda_jit, "refuses_gpu", lambda *tensors: None)
        monkeypatch.setattr(certificates, "_measure", lambda *args: {"distrust": None})
        if cuda_jit.missing():
            monkeypatch.setattr(cuda_jit, "missing", constant(lambda: None))
    layer = e75.Model(e75.Config(dim=8, expansion=1.0, n_state=8, n_heads=2)).to(DEVICE)
    x = torch.randn(2, 8, 8, device=DEVICE)
    want, _ = layer(x)
    assert layer.backends["recurrence"].backend == "matrix"
    got, _ = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(got, want)
    got.sum().backward()
    found = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    want.sum().backward()
    for a, p in zip(found, layer.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_saturates():
    """States at their bounds for pre-activations beyond 1e4 and a first state beyond fp16, and finite gradients."""
    for name, dtype in product(("e88", "e74") if CUDA else ("e88",), (fp32, bf16)):
        cell, h, streams, _ = call(name, 1, 8, (1,) if name == "e88" else (), 8, 8, dtype)
        k, v, *rest = streams.inputs
        args = (cell, 1e6 * h, streams._replace(inputs=(k, 1e5 * v, *rest)), None)
        results, gradients = evaluate(run_matrix, args)
        assert all(x.isfinite().all() for x in (*results, *gradients))
        assert results[1].abs().max() == 1


def test_operation():
    cell, h, streams, _ = call("e88", 1, 8, (1,), 8, 8)
    made = program(cell, h, streams)
    xs = [x.requires_grad_() for x in (*streams.inputs, *streams.queries)]
    torch.library.opcheck(matrix._forward, (made.text, h.requires_grad_(), xs, [], None, False, True))


def test_saved_bytes():
    """Autograd keeps the inputs and what the plan says: for E88 with n = 32, 512 B per head and token in bf16."""
    made = program(*call("e88", 1, 1, (2,), 32, 32))
    tiling = matrix.tilings(made.text)[0]
    assert matrix.saved_bytes(made, tiling, narrow=True) == 512
    assert matrix.saved_bytes(made, tiling, narrow=False) == 1024
    args, leaves = copies(call("e74", 2, 16, (), 24, 24, bf16))
    made, saved = program(*args), []
    with trying(0), torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        run_matrix(*args)
    marks = 2 * 16 * matrix.saved_bytes(made, matrix.tilings(made.text)[0], narrow=True)
    assert sum(x.nbytes for x in saved) == sum(x.nbytes for x in leaves[1:]) + marks


@pytest.mark.parametrize(
    ("name", "dtype", "marks"),
    [("e88", bf16, torch.float16), ("e88", fp32, fp32), ("e74-linear", bf16, fp32), ("third-party", bf16, fp32)],
)
def test_only_bounded_states_have_marks_of_little_range(name, dtype, marks):
    args = call(name, 1, 1, (2,), 6, 6, dtype)
    assert matrix.mark_type(program(*args), list(args[2].queries)) == marks


def test_few_matrices_are_spread_wider():
    text = program(*call("e88", 1, 1, (2,), 64, 64)).text
    found = matrix.tilings(text)
    picked = [found[matrix.choose(found, n)] for n in (1, 16, 1024)]
    assert picked[0].split == 4
    assert picked[0].warps == 4
    assert picked[2].split == 1
    assert matrix._bytes(program(*call("e88", 1, 1, (2,), 64, 64)), matrix.tilings(text, 99 * 1024)[0]) <= 99 * 1024


@pytest.mark.parametrize("name", CELLS)
def test_is_recognised(name):
    program(*call(name, 1, 1, (2,) if set("sg") & set(CELLS[name][1]) else (), 6, 6))


def meets(S, k, v):
    error = v - retrieve(S, k)
    return write(S, torch.sigmoid(error.square().mean(-1, keepdim=True)) * error, k)


@pytest.mark.parametrize(
    ("update", "read", "weights", "reason"),
    [
        (meets, retrieve, (), "rows meet"),
        (e74("delta", "frobnorm"), retrieve, (), "rows meet"),
        (e63m.update, e63m.read, ((5, 5),), "weight"),
        (lambda S, k, v: S @ S, retrieve, (), "product of two matrices"),
        (lambda S, k, v: torch.erf(write(S, v, k)), retrieve, (), "erf"),
        (lambda S, k, v: write(S, v, k / torch.linalg.vector_norm(k, 1, -1, True)), retrieve, (), "norm of order 1"),
        (lambda S, k, v: write(S, v, k), None, (), "read-out"),
    ],
)
def test_refuses_with_a_reason(update, read, weights, reason, monkeypatch):
    monkeypatch.setattr(cuda_jit, "refuses_cuda", lambda *tensors: None)
    x = torch.randn(1, 2, 5)
    streams = Streams((x, x, x)[: 3 if weights else 2], tuple(torch.randn(w) for w in weights), (x,) if read else ())
    assert reason in (refuses_matrix(Cell(update, read), torch.zeros(1, 5, 5), streams) or "")


def test_refuses_a_row_of_one_number():
    cell, h, streams, _ = call("e75", 1, 2, (), 1, 1)
    assert "one row or column" in cell.matrix(h, streams)


@pytest.mark.parametrize(
    ("name", "dtype", "arch", "even"),
    [("e88", bf16, "sm_90a", True), ("e74", bf16, "sm_90a", False), ("e88-gates", fp32, "sm_80", True)],
)
@pytest.mark.parametrize("forward", [True, False])
def test_compiles_for_the_registers_there_are(name, dtype, arch, even, forward):
    """More blocks per multiprocessor are worth a few spilled numbers, where that was measured; nothing else spills."""
    pytest.importorskip("cuda.bindings.nvrtc")
    made = program(*call(name, 1, 1, (2,) if name.startswith("e88") else (), 32, 32))
    n = len(made.uses) + (not forward)
    tiling = matrix.tilings(made.text)[0]  # the one with the largest tiles
    form = Form(forward, tiling, (dtype,) * n, (4,) * n, dtype, even, True, True, dtype == fp32)
    ((_, found),) = cuda_jit.resources(source(made, form), arch).items()
    assert form.resident == (8 if even and dtype == bf16 else 1)
    assert found.spilled <= (256 if form.resident > 1 and not forward else 0)
    assert found.registers * tiling.threads * form.resident <= matrix.FILE


SIZES = [8, 16, 24, 32, 40, 48, 64, 96, 128]
PLACES = [(3, 33, 1, False), (1, 17, 2, True), (2, 32, 3, False), (1, 5, 877, True), (1, 1, 5, False)]
"""Sequences, steps, heads, whether documents end; five, so that nine sizes and seventeen cells meet all of them."""


class TestOnAGPU:
    pytestmark = on_gpu

    @pytest.mark.parametrize("dtype", [fp32, bf16, torch.float16])
    @pytest.mark.parametrize("name", CELLS)
    def test_every_cell(self, name, dtype):
        heads = (3,) if set("sg") & set(CELLS[name][1]) else ()
        for index in range(3):
            expect_reference(call(name, 2, 37, heads, 32, 32, dtype, True), dtype, index)

    @pytest.mark.parametrize("dtype", [fp32, bf16])
    @pytest.mark.parametrize("n", SIZES)
    @pytest.mark.parametrize("name", CELLS)
    def test_every_size(self, name, n, dtype):
        """Every cell and every size with odd T, whole tiles, one sequence, one head and 877; by every tiling."""
        B, T, H, reset = PLACES[(list(CELLS).index(name) + SIZES.index(n)) % len(PLACES)]
        heads = (H,) if H > 1 or set("sg") & set(CELLS[name][1]) else ()
        for index in range(3):
            expect_reference(call(name, B, T, heads, n, n, dtype, reset), dtype, index)

    @pytest.mark.parametrize("dtype", [fp32, bf16])
    @pytest.mark.parametrize(
        ("B", "T", "heads", "rows", "columns"),
        [
            (1, 1, (1,), 32, 32),
            (1, 63, (877,), 16, 16),
            (2, 21, (5,), 7, 33),
            (3, 40, (2,), 130, 20),
            (2, 16, (2,), 9, 256),
        ],
    )
    def test_shapes(self, B, T, heads, rows, columns, dtype):
        for name in ("e88", "e75"):
            expect_reference(call(name, B, T, heads, rows, columns, dtype, True), dtype, 0)

    def test_identical_bits(self):
        args = call("e88-gates", 4, 100, (33,), 48, 48, bf16, True)
        first = evaluate(run_matrix, args)
        for _ in range(10):
            again = evaluate(run_matrix, args)
            assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))

    def test_inside_a_graph(self):
        """Both directions, over memory that is overwritten in between."""
        bound = bind(run_matrix, call("e88", 2, 16, (3,), 32, 32))
        found = []

        def run():
            results, gradients = bound.forward_backward()
            found[:] = [x.detach() for x in (*results, *gradients)]

        run()
        want = [x.clone() for x in found]
        graph = captured([run])
        for x in found:
            x.fill_(float("nan"))
        graph.replay()
        assert all(map(torch.equal, found, want))
