"""Dense recurrences in clusters, on a GPU that has them: widths, batches, lengths and cells pairwise against fp64."""

from functools import partial

import pytest
import torch
from rnn_lab.kernels.certificates import LIMITS, evaluate
from rnn_lab.kernels.dense import plan as dense_plan
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams, reference
from rnn_lab.kernels.recurrence_backends import refuses_dense, run_dense
from rnn_lab.tensors import relative_error
from rnn_lab_e0_e5._elman import dense

from tests.kernels.dense_cells import CELLS, call

CLUSTERS = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CLUSTERS, reason="needs a GPU with compute capability 9")]

WIDTHS = (128, 512, 768, 1000, 1280, 1536, 2048)
BATCHES = (1, 5, 32, 100, 256)
LENGTHS = (1, 7, 512, 4096)
NAMES = ("e1", "e63", "gru", "lstm", "e66")
CASES = [
    (NAMES[(i + 2 * j) % 5], B, LENGTHS[(i + j) % 4], D) for i, D in enumerate(WIDTHS) for j, B in enumerate(BATCHES)
]
CASES += [(name, 5, T, 512) for name in NAMES for T in LENGTHS if (name, T) not in {(c[0], c[2]) for c in CASES}]
"""Every two of width, batch, length and cell meet."""
TOO_LARGE = {("gru", 2048), ("lstm", 1280), ("lstm", 1536), ("lstm", 2048)}
"""Gradients of three or four products at once are more than a block's shared memory: these run as a captured loop."""


TIMED = ("inputs", "queries", "gates")


def expect(args, run=run_dense):
    """The first two and the last two sequences, and gradients of a loss over those, which a loop in fp64 can follow."""
    cell, h, streams, reset = args
    B = h.shape[0]
    picked = torch.tensor(sorted({0, min(1, B - 1), max(0, B - 2), B - 1}), device=h.device)
    some = streams._replace(**{n: tuple(x[picked] for x in getattr(streams, n)) for n in TIMED})
    small = (cell, h[picked], some, None if reset is None else reset[picked])

    def among_all(cell, h_some, some, _):
        def whole(x, own):
            return x.index_copy(0, picked, own)

        parts = {n: tuple(map(whole, getattr(streams, n), getattr(some, n))) for n in TIMED}
        y, last = run(cell, whole(h, h_some), some._replace(**parts), reset)
        return y[picked], last[picked]

    want, want_gradients = evaluate(reference, small, torch.float64)
    got, got_gradients = evaluate(among_all, small)
    forward, backward = LIMITS[torch.bfloat16]
    errors = [relative_error(a, b) for a, b in zip(got, want, strict=True)]
    assert max(errors) < forward, errors
    errors = [relative_error(a, b) for a, b in zip(got_gradients, want_gradients, strict=True)]
    assert max(errors) < backward, errors


@pytest.mark.parametrize(("name", "B", "T", "D"), CASES)
def test_pairwise(name, B, T, D):
    args = call(name, B, T, D, reset=(B + T) % 2 == 1, device="cuda")
    if (name, D) in TOO_LARGE:
        assert "no room on the chip" in refuses_dense(*args)
        record = {}
        expect(args, partial(RECURRENCE, record))
        assert record["recurrence"].backend == "graph"
    else:
        assert refuses_dense(*args) is None
        expect(args)


@pytest.mark.parametrize("name", CELLS)
def test_every_cell(name):
    args = call(name, 33, 40, 256, reset=True, device="cuda")
    assert refuses_dense(*args) is None
    expect(args)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("cluster", "D"), [(8, 512), (16, 1024)])
def test_groups_of_sequences_in_turn(cluster, D, groups, monkeypatch):
    """As many as a cluster can walk, more clusters than one, a last group that is not full."""
    monkeypatch.setattr(dense_plan, "RESIDENT", {cluster: dense_plan.RESIDENT[cluster]})
    monkeypatch.setattr(dense_plan, "ROWS", (8,))
    monkeypatch.setattr(dense_plan, "GROUPS", (groups,))
    forget()
    args = call("e1", 16 * groups - 3, 33, D, reset=True, device="cuda")
    assert refuses_dense(*args) is None
    expect(args)
    forget()


def forget():
    for function in (dense_plan.plans, dense_plan.choose, dense_plan.choices):
        function.cache_clear()


def test_every_pair_is_there():
    columns = list(zip(*CASES, strict=True))
    for i, a in enumerate(columns):
        for b in columns[i + 1 :]:
            assert len(set(zip(a, b, strict=True))) == len(set(a)) * len(set(b))


@pytest.mark.parametrize(("name", "B", "D"), [("e1", 32, 1024), ("e1", 256, 1024), ("lstm", 32, 512)])
def test_the_bits_are_the_same_every_time(name, B, D):
    args = call(name, B, 128, D, reset=True, device="cuda")
    first = evaluate(run_dense, args)
    for _ in range(9):
        again = evaluate(run_dense, args)
        assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))


def test_inside_a_graph():
    args = call("gru", 32, 64, 512, device="cuda")
    want, _ = evaluate(run_dense, args)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y, _ = run_dense(*args)
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, want[0])


def test_is_certified_and_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path))
    record = {}
    RECURRENCE(record, *call("e1", 32, 64, 1024, device="cuda"))
    assert record["recurrence"].backend == "dense", record["recurrence"].refused


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_agrees_with_cudnn(kind):
    """The same weights in torch.nn in fp32; ours has products of inputs, matrices and what is exchanged in bf16."""
    B, T, D = 16, 64, 512
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(D, D, batch_first=True, device="cuda")
    x, h = torch.randn(B, T, D, device="cuda"), torch.zeros(B, D, device="cuda")
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        want, _ = theirs(x)
        u = (x @ theirs.weight_ih_l0.T + theirs.bias_ih_l0).bfloat16()
        weights = (theirs.weight_hh_l0, theirs.bias_hh_l0)
        if kind == "RNN":
            y, _ = run_dense(Cell(lambda h, u, W, b: dense(h, u + b, W)), h, Streams((u,), weights))
        elif kind == "GRU":
            y, _ = run_dense(CELLS["gru"][0], h, Streams((u,), weights))
        else:
            zero = torch.zeros(4 * D, device="cuda")
            y, _ = run_dense(CELLS["lstm"][0], h.repeat(1, 2).view(B, 2, D), Streams((u,), weights, (), (zero,)))
    assert relative_error(y, want) < 1e-2
