"""Loops by segments: with a capture that only remembers the work, the walk can be checked without a GPU."""

import warnings
from functools import partial

import pytest
import torch
from rnn_lab.kernels.captured import loops as graphed
from rnn_lab.kernels.captured import step_graphs
from rnn_lab.kernels.dispatch import Backend, Choice, Op
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams
from rnn_lab.registry import registry

CASES = {
    "e1": {}, "e5": {}, "e3": {"form": "low_rank", "rank": 4, "n_slots": 2}, "e63m": {}, "e74": {"n_state": 5},
    "e75": {"n_state": 8}, "e88": {"n_heads": 2, "n_state": 4}, "gru": {}, "lstm": {},
}  # fmt: skip


class Replay:
    """Runs eagerly what a graph would replay."""

    def __init__(self, work):
        self.work = work

    def replay(self):
        self.work()


@pytest.fixture
def captured(monkeypatch):
    monkeypatch.setattr(graphed.Loop, "_captured", lambda self, work: Replay(work))
    monkeypatch.setattr(graphed, "SEGMENT", 4)
    monkeypatch.setattr(graphed, "_loops", type(graphed._loops)())
    monkeypatch.setattr(graphed, "_steps", type(graphed._steps)())


def everything(layer, reset, run, monkeypatch):
    """Results and gradients of a layer whose operation runs by `run`."""
    monkeypatch.setattr(Op, "select", lambda self, *args: (run or self.reference, Choice(self.name, "chosen")))
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x = draw(3, 11, layer.cfg.dim).requires_grad_()
    state = {k: (0.3 * draw(*v.shape)).requires_grad_() for k, v in layer.init_state(3).items()}
    y, new = layer(x, state, reset)
    total = sum((t * draw(*t.shape)).sum() for t in (y, *new.values()))
    leaves = [x, *state.values(), *(p for p in layer.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [y, *new.values(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_segments_equal_the_loop(name, resets, captured, monkeypatch):
    torch.manual_seed(0)
    model = registry().models[name].load()
    layer = model(model.Config(dim=16, **CASES[name])).double()
    reset = torch.rand(3, 11) < 0.3 if resets else None
    found = everything(layer, reset, graphed.run, monkeypatch)
    wanted = everything(layer, reset, None, monkeypatch)
    assert len(graphed._loops) == 2  # segments of 4 steps and the last of 3
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_layers_that_step_alike_share_their_graphs(captured, monkeypatch):
    torch.manual_seed(0)
    model = registry().models["e74"].load()
    for _ in range(3):
        everything(model(model.Config(dim=16, n_state=5)).double(), None, graphed.run, monkeypatch)
    assert len(graphed._loops) == 2


def test_without_gradients_no_way_back_is_captured(captured, monkeypatch):
    torch.manual_seed(0)
    model = registry().models["e74"].load()
    layer = model(model.Config(dim=16, n_state=5))
    monkeypatch.setattr(Op, "select", lambda self, *args: (graphed.run, Choice(self.name, "chosen")))
    with torch.no_grad():
        layer(torch.randn(2, 4, 16))
    (loop,) = graphed._loops.values()
    assert loop.backward is None
    layer(torch.randn(2, 4, 16))
    assert loop.backward is not None


def test_a_second_derivative_is_an_error(captured):
    h, x = torch.randn(2, 3, requires_grad=True), torch.randn(2, 5, 3)
    y, _ = graphed.run(Cell(product), h, Streams((x,), (torch.eye(3),)))
    (dh,) = torch.autograd.grad(y.square().sum(), h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dh.sum().backward()
    assert not any(loop.h.requires_grad for loop in graphed._loops.values())


def product(h, x, w):
    return torch.tanh(x + h @ w)


def scaled(h, x, a):
    return torch.tanh(x + h * a).cumsum(-1)


def test_a_trained_tensor_that_is_no_argument_is_refused(captured, monkeypatch, tmp_path):
    """It would get no gradient, and nobody would be told."""
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(RECURRENCE, "backends", [Backend("graph", graphed.run, lambda *args: None)])
    args = torch.zeros(2, 3), Streams((torch.randn(2, 5, 3),))
    a = torch.nn.Parameter(torch.ones(3))
    for hidden in (a, 2 * a):
        _, choice = RECURRENCE.select(Cell(partial(scaled, a=hidden)), *args)
        assert choice.backend == "reference" and "that is none of its arguments" in choice.refused[0][1]
    assert RECURRENCE.select(Cell(partial(scaled, a=torch.ones(3))), *args)[1].backend == "graph"


def test_nor_may_a_read_out_use_one(captured):
    def update(S, x):
        return torch.tanh(S + x.unsqueeze(-1))

    a, streams = torch.nn.Parameter(torch.ones(4)), Streams((torch.randn(2, 5, 3),))
    with pytest.raises(ValueError, match="read uses a trained tensor"):
        graphed.run(Cell(update, lambda S: (S * a).sum(-1)), torch.zeros(2, 3, 4), streams)


def test_it_refuses_the_cpu():
    h = torch.zeros(1, 2)
    assert graphed.refuses(None, h, None) == "tensors are on cpu, not on cuda"


def operations(graph):
    """Names of what a graph computes, views and casts left out."""
    names = [n.target.__name__.split(".")[0] for n in graph.graph.nodes if n.op == "call_function"]
    return [n for n in names if n not in {"detach", "permute", "t"}]


def test_only_what_the_gradient_passes_through_is_walked_back(captured, monkeypatch):
    torch.manual_seed(0)
    model = registry().models["e1"].load()
    everything(model(model.Config(dim=16)).double(), None, graphed.run, monkeypatch)
    (step,) = graphed._steps.values()
    assert operations(step.forward) == ["addmm", "tanh"]
    assert operations(step.back) == ["add", "tanh_backward", "mm"]


@pytest.mark.parametrize(("name", "walked"), [("e1", 0), ("lstm", 0), ("e74", 4)])
def test_states_are_walked_again_only_where_they_are_large(name, walked, captured, monkeypatch):
    steps = []

    class Counted(Replay):
        def __init__(self, work):
            def replay():
                steps.clear()
                work()

            super().__init__(replay)

    torch.manual_seed(0)
    model = registry().models[name].load()
    layer = model(model.Config(dim=16, **CASES[name])).double()
    made = graphed.step_of

    def counting(*args):
        step = made(*args)

        def forward(*tensors):
            steps.append(1)
            return step.forward(*tensors)

        return step_graphs.Step(forward, step.back, step.shapes)

    monkeypatch.setattr(graphed, "step_of", counting)
    monkeypatch.setitem(globals(), "Replay", Counted)
    everything(layer, None, graphed.run, monkeypatch)  # the last replay is that of the first segment, backward
    assert len(steps) == walked


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["e1", "gru", "lstm"])
def test_steps_are_compiled_once_and_whole(name, captured, monkeypatch):
    torch.manual_seed(0)
    model = registry().models[name].load()
    layer, compiled, compiler = model(model.Config(dim=16)).double(), [], torch.compile

    def whole(graph, dynamic):
        compiled.append(graph)
        return compiler(graph, dynamic=dynamic, fullgraph=True, backend="aot_eager")

    wanted = everything(layer, None, None, monkeypatch)
    monkeypatch.setattr(graphed, "step_of", lambda *args: step_graphs.step_of(*args[:-1], True))
    monkeypatch.setattr(torch, "compile", whole)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = everything(layer, None, graphed.run, monkeypatch)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert len(compiled) == 2


@pytest.mark.parametrize("when", ["asked", "called"])
def test_where_nothing_can_be_compiled_the_graph_itself_runs(monkeypatch, when):
    def broken(*args):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: broken() if when == "asked" else broken)
    h = torch.ones(2, 3)
    with pytest.warns(UserWarning, match="run unfused: RuntimeError: no compiler"):
        step = step_graphs.step_of(torch.add, h, [h], [], [], True)
    assert torch.equal(step.forward(h, h), 2 * h)


def test_what_the_compiler_warns_of_when_it_is_imported_hinders_nothing(monkeypatch):
    def compiler(graph, dynamic):
        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
        return graph

    monkeypatch.setattr(torch, "compile", compiler)
    h = torch.ones(2, 3)
    step = step_graphs.step_of(torch.add, h, [h], [], [], True)
    assert torch.equal(step.forward(h, h), 2 * h)
