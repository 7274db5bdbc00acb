"""What a recurrence is certified on."""

import pytest
import torch
from rnn_lab.kernels import certificates
from rnn_lab.kernels.dispatch import Backend
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams, reference
from rnn_lab.kernels.recurrence_backends import run_diagonal


def test_every_form_of_a_kernel_is_seen_whatever_the_call():
    cell = Cell(torch.add)
    for B, T in ((1, 1), (3, 5), (4, 64)):
        streams = Streams((torch.randn(B, T, 3),), queries=(torch.randn(B, T, 2),))
        reset = torch.zeros(B, T, dtype=torch.bool)
        calls = RECURRENCE.probe(cell, torch.zeros(B, 3), streams, reset)
        assert [call[2].inputs[0].shape for call in calls] == [(2, 19, 3), (2, 16, 3)]
        assert all(call[3].shape == call[2].queries[0].shape[:2] for call in calls)
        assert all(call[1].abs().min() > 0 for call in calls)
        assert all(call[3][:, 8:].any(1).all() for call in calls)  # behind the first tile, though this call has none


@pytest.mark.parametrize(("first", "last"), [(0, 3), (3, 6), (5, 8)])
def test_rows_that_are_pieces_of_wider_ones_are_so_in_small(first, last):
    """As the two halves of one product are."""
    wide = torch.randn(4, 30, 8)
    x = wide[..., first:last]
    ((_, _, streams, _), _) = RECURRENCE.probe(Cell(torch.add), torch.zeros(4, 3), Streams((x,)))
    small = streams.inputs[0]
    assert small.stride()[1:] == (8, 1) and small.storage_offset() % 64 == x.storage_offset() % 64 == first
    assert torch.equal(small, x[:2, :19])
    one = RECURRENCE.probe(Cell(torch.add), torch.zeros(4, 3), Streams((wide[:, :1],)))[0][2].inputs[0]
    assert one.is_contiguous() and torch.equal(one, wide[:2, :1].expand(2, 19, 8))


def lerp(h, x, a):
    return torch.lerp(x, h, a)


def call(T=64, reset_at=None):
    torch.manual_seed(0)
    reset = None
    if reset_at is not None:
        reset = torch.zeros(2, T, dtype=torch.bool)
        reset[:, reset_at] = True
    return Cell(lerp), torch.randn(2, 4), Streams((torch.randn(2, T, 4),), (torch.full((4,), 0.9),)), reset


@pytest.fixture
def by(monkeypatch):
    """RECURRENCE with one backend, of which nothing is known."""

    def only(run):
        monkeypatch.setattr(RECURRENCE, "backends", [Backend("mine", run, lambda *args: None)])
        return RECURRENCE

    for name in ("_known", "_alike", "_wrong"):
        monkeypatch.setattr(certificates, name, {})
    return only


def test_a_kernel_that_ignores_resets_is_refused_though_the_first_steps_have_none(by):
    def ignores(cell, h, streams, reset_BT=None):
        return reference(cell, h, streams)

    assert by(ignores).select(*call())[1].backend == "mine"
    (_, reason), *_ = by(ignores).select(*call(reset_at=40))[1].refused
    assert "differs from the reference" in reason


def test_what_was_wrong_is_not_used_by_a_compiled_module_either(by):
    def doubled(cell, h, streams, reset_BT=None):
        y, last = reference(cell, h, streams, reset_BT)
        return 2 * y, last

    cell, h, streams, _ = call(T=5)
    op = by(doubled)

    class Layer(torch.nn.Module):
        def forward(self, x):
            record = {}
            y, _ = op(record, cell, h, streams._replace(inputs=(x,)))
            self.choice = record["recurrence"]
            return y

    x, eager, compiled = streams.inputs[0], Layer(), Layer()
    wanted = eager(x)
    assert eager.choice.backend == "reference"
    torch._dynamo.reset()
    found = torch.compile(compiled, backend="aot_eager", fullgraph=True)(x)
    assert compiled.choice.backend == "reference" and "differs" in dict(compiled.choice.refused)["mine"]
    assert torch.allclose(found, wanted)


def test_the_form_that_splits_time_is_seen(by, monkeypatch):
    """It runs for long narrow calls, which no small one is."""
    from rnn_lab.kernels.diagonal import engine_triton

    real = engine_triton._starts

    def halved(first, end, product, backward):
        return real(first, end, 0.5 * product, backward)

    monkeypatch.setattr(engine_triton, "_starts", halved)
    (_, reason), *_ = by(run_diagonal).select(*call())[1].refused
    assert "differs from the reference" in reason
    monkeypatch.setattr(engine_triton, "_starts", real)
    for name in ("_known", "_alike", "_wrong"):
        getattr(certificates, name).clear()
    for path in certificates.certificate_dir().glob("*.json"):
        path.unlink()
    assert by(run_diagonal).select(*call())[1].backend == "mine"
