"""Recurrences with resident matrices: the printed CUDA C++ as plain C++ on a CPU; on a GPU see tests/gpu/test_dense."""

import pytest
import torch
from rnn_lab.kernels import certificates, cuda_jit, recurrence_backends
from rnn_lab.kernels.beside import beside
from rnn_lab.kernels.certificates import LIMITS, evaluate
from rnn_lab.kernels.dense import engine as dense
from rnn_lab.kernels.dense import plan as dense_plan
from rnn_lab.kernels.dense.cuda import Form, source
from rnn_lab.kernels.dense.plan import Plan, Problem, choices, choose, plans, soonest
from rnn_lab.kernels.dense.source import parse
from rnn_lab.kernels.kept import _tapped
from rnn_lab.kernels.recurrence import Cell, Streams, reference
from rnn_lab.kernels.recurrence_backends import refuses_dense, run_dense
from rnn_lab.tensors import relative_error
from rnn_lab.testing.measure import nan_filled
from rnn_lab_e61_e68 import e63
from torch.nn import functional as F

from tests.kernels import emulation
from tests.kernels.dense_cells import CELLS, call

bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    """Kernels are plain C++, also where there is a GPU."""
    if not emulation.available():
        pytest.skip("needs g++")
    monkeypatch.setattr(dense, "Kernel", emulation.EmulatedKernel)
    dense.kernel.cache_clear()
    yield
    dense.kernel.cache_clear()


def program(cell, h, streams, *_):
    found = cell.dense(h, streams)
    assert not isinstance(found, str), found
    return found


def expect_reference(args, dtype=bf16):
    program(*args)
    with nan_filled():
        got = evaluate(run_dense, args)
    want = evaluate(reference, args, torch.float64)
    forward, backward = LIMITS[dtype]
    for a, b in zip(got[0], want[0], strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < forward, "differs"
    for i, (a, b) in enumerate(zip(got[1], want[1], strict=True)):
        assert a.shape == b.shape
        assert relative_error(a, b) < backward, f"gradient {i} differs"
    return got


def only(monkeypatch, cluster, rows, groups=1):
    """Every plan has this cluster and this many groups of this many sequences."""
    kept = {cluster: dense_plan.RESIDENT[cluster]}
    monkeypatch.setattr(dense_plan, "RESIDENT", kept)
    monkeypatch.setattr(dense_plan, "ROWS", (rows,))
    monkeypatch.setattr(dense_plan, "GROUPS", (groups,))
    forget()


def forget():
    for function in (plans, choose, choices):
        function.cache_clear()


@pytest.fixture(autouse=True)
def planned_afresh():
    yield
    forget()


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_equals_the_reference(name):
    """Seven steps, three sequences of the eight that a cluster has, documents that end."""
    expect_reference(call(name, 3, 7, 128, reset=True))


@pytest.mark.parametrize(("name", "B", "T", "d", "reset"), [
    ("e1", 1, 1, 128, False), ("lstm", 1, 1, 128, True), ("e63", 5, 19, 128, False), ("e1", 2, 5, 200, True),
    ("gru", 2, 3, 130, False), ("rates", 2, 4, 131, True), ("divided", 2, 4, 130, False),
])  # fmt: skip
def test_shapes(name, B, T, d, reset):
    """One step, one sequence; more steps than there are stages; widths that fill no whole blocks, or no whole items."""
    expect_reference(call(name, B, T, d, reset=reset))


@pytest.mark.parametrize(("name", "cluster", "rows", "B"), [
    ("e63", 16, 8, 3), ("e1", 8, 8, 19), ("e1", 8, 24, 21), ("heads", 8, 16, 18), ("gru", 8, 40, 33),
])  # fmt: skip
def test_clusters_of_sixteen_many_of_them_and_many_sequences(name, cluster, rows, B, monkeypatch):
    only(monkeypatch, cluster, rows)
    expect_reference(call(name, B, 3, 256 if cluster == 16 else 128, reset=True))


@pytest.mark.parametrize(("name", "cluster", "rows", "groups", "stages", "B"), [
    ("e1", 8, 8, 2, 4, 3), ("e63", 8, 8, 3, 4, 21), ("lstm", 8, 8, 4, 2, 29), ("gru", 8, 16, 2, 2, 27),
    ("e63", 16, 8, 2, 4, 17), ("rates", 8, 24, 2, 4, 30), ("e63", 8, 8, 3, 1, 24), ("rates", 8, 8, 4, 1, 27),
    ("gru", 8, 8, 5, 1, 33), ("e1", 16, 8, 5, 2, 39),
])  # fmt: skip
def test_groups_of_sequences_in_turn(name, cluster, rows, groups, stages, B, monkeypatch):
    """Whole groups, one that is empty, one that is not full; biases summed in each; inputs fetched late and early."""
    monkeypatch.setattr(dense_plan, "STAGES", (stages,))
    only(monkeypatch, cluster, rows, groups)
    expect_reference(call(name, B, 5, 256 if cluster == 16 else 128, reset=True))


@pytest.mark.parametrize(("held", "kept"), [(0, 0), (0, 2), (1, 0), (1, 2)])
def test_wherever_the_matrix_is(held, kept, monkeypatch):
    """In registers, in shared memory and in neither, with the steps of a warp's sum spread over all three."""
    filled = dense_plan.filled

    def spread(plan):
        plan = filled(plan)
        return plan and dense_plan.replace(plan, held=min(held, plan.steps), kept=min(kept, plan.steps - held))

    monkeypatch.setattr(dense_plan, "filled", spread)
    only(monkeypatch, 8, 8)
    args = call("e1", 2, 3, 640)
    plan = dense.planned(Form(program(*args), True, 640, (bf16, bf16), bf16, False, True), 2, 1, torch.device("cpu"))
    assert (plan.held, plan.kept) == (held, kept) and plan.far == plan.steps - held - kept
    expect_reference(args)


def test_streams_of_every_type():
    """fp16, and fp32 beside 16 bits."""
    cell, h, streams, _ = call("e63", 2, 5, 128, fp16)
    a, u = streams.inputs
    expect_reference((cell, h, streams._replace(inputs=(a, u.float())), None))


@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("length", [260, 262])
def test_pieces_of_wider_rows(first, length):
    """Where rows begin and how far apart they lie decide whether a thread's units can be copied at once."""
    cell, h, streams, _ = call("e63", 2, 5, 128, fp16)
    results = []
    for made in (lambda x: x, torch.Tensor.contiguous):
        wide = torch.randn(2, 5, length, generator=torch.Generator().manual_seed(0)).to(fp16).requires_grad_()
        piece = made(wide[..., first : first + 128])
        y, last = run_dense(cell, h, streams._replace(inputs=(streams.inputs[0], piece)), None)
        results.append((y, last, *torch.autograd.grad(y.float().sum() + last.sum(), wide)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_without_gradients_nothing_is_kept():
    args = call("lstm", 2, 4, 128, reset=True)
    y, last = evaluate(run_dense, args)[0]
    with torch.no_grad():
        again = run_dense(*args)
    assert torch.equal(again[0], y) and torch.equal(again[1], last)


def test_saves_states_in_bf16_and_its_inputs():
    cell, h, streams, _ = call("e1", 2, 16, 128)
    streams = Streams(*(tuple(x.requires_grad_() for x in part) for part in streams))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        run_dense(cell, h, streams)
    inputs = sum(x.nbytes for part in streams for x in part)
    assert sum(x.nbytes for x in saved) == inputs + 2 * 17 * 128 * 2


def test_the_order_of_threads_does_not_matter(monkeypatch):
    args = call("gru", 3, 5, 128, reset=True)
    first = evaluate(run_dense, args)
    monkeypatch.setattr(emulation.EmulatedKernel, "reversed", True)
    second = evaluate(run_dense, args)
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_a_group_hides_the_way_of_the_other():
    """Two groups take less than twice one, and no less than their work or one group's work and way."""
    problem = Problem(True, 1024, 1, 1, 0, 4, 6)
    one, two = ((dense_plan.filled(Plan(problem, 16, 8, 2, 4, groups))) for groups in (1, 2))
    assert (one.held, one.kept) == (two.held, two.kept)
    assert one.microseconds <= two.microseconds < 1.5 * one.microseconds
    assert two.sequences == 16 and two.rounds(32, 1) == one.rounds(16, 1)


def test_operation():
    cell, h, streams, _ = call("rates", 2, 3, 128)
    made = program(cell, h, streams)
    xs = [x[:, :, None].requires_grad_() for x in (*streams.inputs, *streams.gates)]
    ws = [torch.empty(0), torch.rand(1, 128, requires_grad=True), torch.rand(1, 128, requires_grad=True)]
    matrices = streams.weights[0][None, None].requires_grad_()
    args = (made.text, h[:, None, None].requires_grad_(), xs, ws, matrices, None, True, True, 1)
    torch.library.opcheck(dense._forward, args, test_utils=("test_schema", "test_faketensor"))


def test_is_traced_whole(monkeypatch):
    """Under torch.compile, from the certificate on: what the compiled layer gives is what the eager one does."""
    monkeypatch.setenv("RNN_LAB_KERNELS", "dense")
    monkeypatch.setattr(recurrence_backends, "_refuses_clusters", lambda *tensors: None)
    monkeypatch.setattr(certificates, "_measure", lambda *args: {"distrust": None})
    layer = e63.Model(e63.Config(dim=128, expansion=1.0))
    x = torch.randn(2, 5, 128)

    def through(layer):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=bf16):
            y, _ = layer(x)
        y.float().sum().backward()
        return y, [p.grad for p in layer.parameters()]

    want, gradients = through(layer)
    assert layer.backends["recurrence"].backend == "dense"
    gradients = [g.clone() for g in gradients]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    got, found = through(compiled)
    assert torch.equal(got, want)
    assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))


@pytest.mark.parametrize("name", ["e63", "lstm"])
def test_an_input_that_is_added_to_the_state(name):
    """As the token filter has it, in fp32."""
    cell, h, streams, reset = call(name, 2, 4, 128, reset=True)
    tapped = _tapped(cell, len(streams.inputs), len(streams.weights))
    tap = torch.randn(2, 4, *h.shape[1:])
    expect_reference((tapped, h, streams._replace(inputs=(*streams.inputs, tap)), reset))


@pytest.mark.parametrize("name", CELLS)
def test_a_program_survives_as_text(name):
    made = program(*call(name, 1, 1, 128))
    assert parse(made.text) == made


def reset_before_product(h, u, W):
    r = torch.sigmoid(h @ W.T)
    return torch.tanh((r * h) @ W.T + u)


@pytest.mark.parametrize(("update", "reason"), [
    (reset_before_product, "two exchanges per step"),
    (lambda h, u, W: torch.tanh(h @ W.T + h.tanh() @ W + u), "two functions of the state"),
    (lambda h, u, W: torch.tanh((h + u) @ W.T), "one function of the state alone"),
    (lambda h, u, W: torch.tanh(h + u), "no product"),
    (lambda h, u, W: torch.erf(h @ W.T + u), "erf"),
    (lambda h, u, W: torch.softmax(h @ W.T + u, -1), "softmax"),
    (lambda h, u, W: h[:, :64] @ W.T, "indexing"),
    (lambda h, u, W: torch.tanh(h @ (2 * W).T + u), "arithmetic with a matrix"),
    (lambda h, u, W: torch.tanh(h @ (-W).T + u), "arithmetic with a matrix"),
])  # fmt: skip
def test_refuses_cells_with_a_reason(update, reason):
    _, h, streams, _ = call("e0", 1, 2, 128)
    assert reason in Cell(update).dense(h, streams)


def test_refuses_calls_with_a_reason(monkeypatch):
    monkeypatch.setattr(cuda_jit, "refuses_cuda", lambda *tensors: None)
    monkeypatch.setattr(recurrence_backends, "capability", lambda index: (8, 9))
    assert "the GPU has 8.9" in refuses_dense(*call("e1", 2, 3, 128))
    monkeypatch.setattr(recurrence_backends, "capability", lambda index: (9, 0))
    assert refuses_dense(*call("e1", 2, 3, 128)) is None
    assert "fp32" in refuses_dense(*call("e1", 2, 3, 128, fp32))
    assert "no sequences" in refuses_dense(*call("e1", 0, 3, 128))
    assert "no steps" in refuses_dense(*call("e1", 2, 0, 128))
    assert "its state is 34 wide" in refuses_dense(*call("e1", 2, 3, 34))
    assert "64 wide" in refuses_dense(*call("e1", 2, 3, 64))
    assert "2064 wide" in refuses_dense(*call("e0", 1, 1, 2064))


WIDTHS = (128, 512, 768, 1000, 1024, 1280, 1536, 2048)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("forward", [True, False])
def test_plans_hold_together(width, forward):
    """Everything is somewhere, in whole tiles, within what a block has, for every batch."""
    problem = Problem(forward, width, 1, 1, 0, 4 if forward else 8, 6 if forward else 11)
    assert plans(problem)
    for plan in plans(problem):
        assert plan.padded % (16 * plan.cluster) == 0 and 0 <= plan.padded - width < 16 * plan.cluster
        assert plan.tiles * plan.across * 16 == plan.matrix_rows and plan.steps * plan.along * 16 == plan.message
        assert plan.held + plan.kept + plan.far == plan.steps and min(plan.held, plan.kept, plan.far) >= 0
        assert plan.shared <= dense_plan.SHARED and plan.registers + 4 * plan.held * plan.tiles <= dense_plan.REGISTERS
    for batch in (1, 5, 32, 100, 256, 1000):
        best, plan = choose(problem, batch, 1), soonest(choices(problem, 1), batch, 1)
        assert plan.rounds(batch, 1) * plan.microseconds <= 1.05 * best.rounds(batch, 1) * best.microseconds
        assert plan.rounds(batch, 1) * plan.sequences * dense_plan.RESIDENT[plan.cluster] >= batch


@pytest.mark.parametrize("width", WIDTHS)
def test_no_kernel_is_compiled_for_little(width):
    """Without any one of them some batch would lose more than is spared."""
    problem = Problem(True, width, 1, 1, 0, 4, 6)
    kept = choices(problem, 1)
    for out in kept[: len(kept) if len(kept) > 1 else 0]:
        rest = [plan for plan in kept if plan != out]
        took = [(soonest(menu, batch, 1), batch) for batch in range(1, 1024, 8) for menu in (rest, plans(problem))]
        times = [plan.rounds(batch, 1) * plan.microseconds for plan, batch in took]
        assert max(a / b for a, b in zip(times[::2], times[1::2], strict=True)) > 1.05


def test_the_plan_follows_the_batch():
    """Few sequences take many blocks each; more of them all clusters that there is room for, at once."""
    problem = Problem(True, 1024, 1, 1, 0, 4, 6)
    few, many = choose(problem, 32, 1), choose(problem, 256, 1)
    assert (few.cluster, few.rows, few.groups, few.far) == (16, 8, 1, 0)
    assert many.groups > 1 and many.sequences * dense_plan.RESIDENT[many.cluster] * many.rounds(256, 1) >= 256
    assert many.rounds(256, 8) == -(-8 * 256 // (many.sequences * dense_plan.RESIDENT[many.cluster]))
    whole = many.rounds(256, 1) * many.microseconds
    assert few.microseconds < whole < 8 * few.microseconds
    beside = soonest(choices(problem, 1), 32, 3)
    assert beside.rounds(32, 3) == 1 < few.rounds(32, 3)
    smaller = choose(problem, 256, 1, multiprocessors=66)
    assert smaller.rounds(256, 1, 66) * smaller.microseconds > whole


@pytest.mark.parametrize(("name", "d"), [("e1", 768), ("e1", 1024), ("e1", 1536), ("e63", 1024), ("gru", 512),
                                         ("lstm", 768), ("lstm-one-bias", 768), ("both-parts", 1024), ("gru", 384),
                                         ("gru", 1152), ("lstm-states", 640)])  # fmt: skip
@pytest.mark.parametrize("forward", [True, False])
def test_compiles_for_the_registers_there_are(name, d, forward):
    """Nothing spills, for any plan that a batch may get."""
    pytest.importorskip("cuda.bindings.nvrtc")
    made = program(*call(name, 1, 1, d))
    form = Form(made, forward, d, (bf16,) * len(made.streams), bf16, True, True)
    for plan in choices(form.problem, 1):
        ((_, found),) = cuda_jit.resources(source(form, plan), "sm_90a").items()
        assert (found.spilled, found.stack) == (0, 0), plan


@pytest.mark.parametrize("forward", [True, False])
def test_compiles_for_older_gpus(forward):
    """Where there are no clusters, the text is checked all the same."""
    pytest.importorskip("cuda.bindings.nvrtc")
    made = program(*call("gru", 1, 1, 128))
    form = Form(made, forward, 128, (bf16,) * 3, bf16, True, True)
    assert cuda_jit.resources(source(form, choose(form.problem, 1, 1)), "sm_80")


def test_matrices_of_each_head_stand_beside_one_for_all():
    def both(h, u, W, V):
        return torch.tanh(torch.bmm(h.transpose(0, 1), W).transpose(0, 1) + F.linear(h, V) + u)

    torch.manual_seed(0)
    h, u = 0.3 * torch.randn(2, 2, 128), torch.randn(2, 4, 2, 128).to(bf16)
    weights = 0.05 * torch.randn(2, 128, 128), 0.05 * torch.randn(128, 128)
    args = Cell(both), h, Streams((u,), weights), None
    got, got_gradients = evaluate(run_dense, args)
    want, want_gradients = evaluate(reference, args, torch.float64)
    assert max(map(relative_error, got, want)) < LIMITS[bf16][0]
    assert max(map(relative_error, got_gradients, want_gradients)) < LIMITS[bf16][1]


def test_calls_beside_each_other_share_the_gpu(monkeypatch):
    """As many clusters at once as there is room for, and the same numbers."""
    asked = []

    def noted(found, sequences, heads, multiprocessors):
        asked.append(heads)
        return soonest(found, sequences, heads, multiprocessors)

    monkeypatch.setattr(dense, "soonest", noted)
    args = call("e63", 17, 4, 256)
    alone = expect_reference(args)
    with beside(3):
        together = expect_reference(args)
    assert asked == [1, 1, 3, 3]
    assert relative_error(together[0][0], alone[0][0]) < 1e-3
