"""Folded factors of a recurrent matrix: the same results and gradients, and where they are folded."""

import pytest
import torch
from rnn_lab.kernels import recurrence_backends
from rnn_lab.kernels.captured import loops as graphed
from rnn_lab.kernels.captured import low_rank
from rnn_lab.kernels.certificates import evaluate
from rnn_lab.kernels.linear.costs import COSTS
from rnn_lab.kernels.recurrence import Streams, reference
from rnn_lab.registry import registry

GPU = COSTS["cuda", False]
CASES = {
    "e3": {"form": "low_rank", "rank": 4, "n_slots": 2}, "e4": {}, "e5": {}, "e66": {}, "e67": {"form": "low_rank"},
}  # fmt: skip


def call(name):
    """The cell of a layer on random streams."""
    torch.manual_seed(0)
    model = registry().models[name].load()
    layer = model(model.Config(dim=16, **CASES[name])).double()
    cell = layer._cell
    slots = (2,) if name == "e3" else ()
    h = torch.randn(3, *slots, layer.state_shapes(layer.cfg)["h"][-1]).double()
    U, V = layer.weights() if hasattr(layer, "weights") else (layer.U_h, layer.V_h)
    count = {"e66": 2, "e67": 2}.get(name, 1)
    x = [torch.randn(3, 9, *(1,) * len(slots), h.shape[-1]).double() for _ in range(count)]
    biases = tuple(torch.randn(h.shape[-1]).double() for _ in range(count)) if cell.before is not None else ()
    gates = (x[0],) if cell.after is not None else ()
    return cell, h, Streams(tuple(x), (U, V), biases=biases, gates=gates), None


@pytest.mark.parametrize("name", CASES)
def test_folded_is_the_same_recurrence(name):
    cell, h, streams, reset = call(name)

    def run(cell, h, streams, reset):
        return reference(cell, h, low_rank.fold(cell, streams), reset)

    found, wanted = (evaluate(f, (cell, h, streams, reset)) for f in (run, reference))
    assert all(g.abs().max() > 0 for g in wanted[1])
    for a, b in zip([*found[0], *found[1]], [*wanted[0], *wanted[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("gain", [True, False])
def test_the_captured_loop_folds_where_it_gains(gain, monkeypatch):
    cell, h, streams, reset = call("e5")
    walked = []
    monkeypatch.setattr(low_rank, "folds", lambda B, T, U, cost: gain and (B, T, U.shape) == (3, 9, (16, 16)))
    monkeypatch.setattr(graphed, "run", lambda *args: walked.append(len(args[2].weights)) or reference(*args))
    y, _ = recurrence_backends.run_graph(cell, h, streams, reset)
    assert walked == [1 if gain else 2]
    torch.testing.assert_close(y, reference(cell, h, streams, reset)[0])


@pytest.mark.parametrize(
    ("B", "T", "D", "r", "folds"),
    [
        (32, 512, 768, 96, True),  # both wait for their launches: one is half of two
        (32, 512, 768, 539, True),  # fewer products, too
        (32, 512, 1536, 270, False),  # one is no sooner done than two
        (256, 512, 1536, 270, False),  # 2.8 times the products
        (32, 1, 768, 96, False),  # a fold for one step
    ],
)
def test_by_launches_and_by_products(B, T, D, r, folds):
    U = torch.empty(D, r, device="meta")
    assert low_rank.folds(B, T, U, GPU) == folds
    assert low_rank.folds(B, T, U.mT, GPU) == folds


def test_slots_count_as_products():
    U = torch.empty(8, 1024, 64, device="meta")
    assert low_rank.folds(8, 512, U[0], GPU)
    assert not low_rank.folds(8, 512, U, GPU)
