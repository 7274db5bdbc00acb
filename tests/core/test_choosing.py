"""What RNN_LAB_KERNELS may be, and what a machine without a GPU says of a cell."""

import re
from pathlib import Path

import pytest
import torch
from rnn_lab.errors import ConfigError
from rnn_lab.kernels import dispatch, operations
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams

VECTOR, MATRIX = torch.zeros(2, 4), torch.zeros(2, 4, 4)


def write(S, x):
    """A step of a matrix whose rows never meet."""
    return S + x.unsqueeze(-1) * x.unsqueeze(-2)


def retrieve(S, q):
    """What a row of it is read as."""
    return (S @ q.unsqueeze(-1)).squeeze(-1)


def refused(cell, h, x):
    """Why no kernel takes the cell, by backend; it runs by the reference all the same."""
    record = {}
    RECURRENCE(record, cell, h, Streams((x,), queries=() if cell.read is None else (x,)))
    assert record["recurrence"].backend == "reference"
    return dict(record["recurrence"].refused)


@pytest.mark.parametrize("value", ["", " ", "auto ", " reference"])
def test_spaces_and_nothing_mean_nothing(monkeypatch, value):
    monkeypatch.setenv("RNN_LAB_KERNELS", value)
    assert dispatch.setting() == operations.check_setting() == (value.strip() or "auto")


def test_a_name_that_no_backend_has_is_an_error_and_that_of_a_plugin_is_not(monkeypatch):
    cell = Cell(lambda h, x: h + x)
    for name in ("mamba-ssm", "sdpa"):  # backends of other operations
        monkeypatch.setenv("RNN_LAB_KERNELS", name)
        refused(cell, VECTOR, torch.ones(2, 3, 4))
    monkeypatch.setenv("RNN_LAB_KERNELS", "sdpaa")
    with pytest.raises(ConfigError, match=r"known are auto, .*sdpa.* Did you mean 'sdpa'"):
        refused(cell, VECTOR, torch.ones(2, 3, 4))


@pytest.mark.parametrize(("capturable", "leaves_room"), [(True, False), (False, True)])
def test_a_choice_says_of_its_backend_what_a_capture_asks(monkeypatch, capturable, leaves_room):
    made = dispatch.Backend("own", lambda x: x, lambda x: None, False, capturable, leaves_room)
    monkeypatch.setattr(dispatch, "made", dict(dispatch.made))
    _, choice = dispatch.Op("passed on", lambda x: x, [made]).select(VECTOR)
    assert (choice.backend, choice.capturable, choice.leaves_room) == ("own", capturable, leaves_room)


def test_every_operation_of_the_core_is_listed():
    kernels = Path(dispatch.__file__).parent
    files = {".".join(f.relative_to(kernels).with_suffix("").parts): f for f in kernels.rglob("*.py")}
    making = {
        name for name, f in files.items() if re.search(r"^[A-Z_]+(: .*)? = (Op|Recurrence)\(", f.read_text(), re.M)
    }
    assert making == set(operations.OWN)


def test_the_cell_is_judged_before_the_device():
    x = torch.ones(2, 3, 4)
    found = refused(Cell(lambda h, x: torch.tanh(h + x)), VECTOR, x)
    assert "on cpu" in found["diagonal"] and "on cpu" in found["diagonal-cuda"] and "no matrix" in found["matrix"]
    found = refused(Cell(lambda h, x: torch.erf(h + x)), VECTOR, x)
    assert found["diagonal"].startswith("the cell uses erf") and found["diagonal-cuda"] == found["diagonal"]
    found = refused(Cell(write, retrieve), MATRIX, x)
    assert "cell uses" in found["diagonal"] and "on cpu" in found["matrix"]
    found = refused(Cell(lambda S, x: write(S, x) / S.norm().add(1), retrieve), MATRIX, x)
    assert "cell uses" in found["matrix"] and "on cpu" in found["graph"]


def surprised(h, x):
    """A step that tensors take and symbols do not, in a way that nobody expects."""
    if not torch.is_tensor(h):
        raise KeyError("what\nis this")
    return h + x


def endless(h, x):
    """A step whose loop ends by a value."""
    while (h > 1).all():
        h = h / 2
    return h + x


def drawn(h, x):
    """A step of its own chance."""
    return h + x * torch.rand(())


@pytest.mark.parametrize("update", [surprised, endless, drawn])
def test_whatever_a_cell_raises_on_symbols_is_a_reason(update):
    torch.manual_seed(0)
    cell, before, streams = Cell(update), torch.random.get_rng_state(), Streams((torch.ones(2, 3, 4),))
    for h in (VECTOR, MATRIX):
        reasons = [backend.refuses(cell, h, streams) for backend in RECURRENCE.backends]
        assert "cell" in reasons[0] and all(reasons)
        assert len(reasons[0].splitlines()) == 1
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_cell_is_traced_once():
    calls = []

    def update(h, x):
        calls.append(type(h))
        return write(h, x)

    cell, x, made = Cell(update, retrieve), torch.ones(2, 3, 4), []
    for _ in range(3):
        assert [backend.refuses(cell, MATRIX, Streams((x,), queries=(x,))) for backend in RECURRENCE.backends]
        made.append(len(calls))
    assert made[0] == made[1] == made[2] > 1  # by every engine, in every way that it knows


@pytest.mark.parametrize("masked", [lambda h, x: h * ((x != 0) * 1.0) + x, lambda h, x: torch.where(x == 0, h, h + x)])
def test_an_equality_of_values_is_refused_by_every_engine(masked):
    """Python's own would be a constant, and the mask would be gone."""
    found = refused(Cell(masked), VECTOR, torch.ones(2, 3, 4))
    assert "equality" in found["diagonal"] and "equality" in found["diagonal-cuda"]
    assert "equality" in Cell(lambda S, x: S * ((x != 0) * 1.0)[:, None]).matrix(
        MATRIX, Streams((torch.ones(2, 3, 4),))
    )
    W, x = torch.eye(128), torch.ones(2, 3, 128)
    cell = Cell(lambda h, x, W: torch.tanh(h @ W) * ((x != 0) * 1.0))
    assert "equality" in cell.dense(torch.ones(2, 128), Streams((x,), (W,)))
    cell = Cell(lambda h, u, W: u if (h == 0) else h @ W + u)
    assert "equality" in cell.linear((1, 1, 0, 0, 0))
