"""Layers at work on several chunks at once compute what they compute one after the other."""

from contextlib import contextmanager

import pytest
import torch
from rnn_lab import wavefront
from rnn_lab.errors import ConfigError
from rnn_lab.kernels.beside import beside, calls
from rnn_lab.kernels.dispatch import Choice
from rnn_lab.kernels.recurrence import RECURRENCE
from rnn_lab.remat import Remat
from rnn_lab.wavefront import Wavefront, _waves, leave_room, overlap, undo_overlap

from .conftest import Recorder, run
from .models import NAMES, assert_equal, carried, filtered, model_of, windows
from .test_resume import facts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunks", [2, 5, 40])
def test_gradients_are_the_same(name, chunks):
    """Of twelve bytes: chunks of equal length, of two lengths, of one byte each."""
    model = model_of(name, depth=3)
    plain = carried(model)
    model.walk = Wavefront(chunks)
    assert_equal(plain, carried(model), atol=1e-9)


@pytest.mark.parametrize(("depth", "chunks"), [(1, 4), (5, 2), (2, 5), (3, 3)])
def test_each_comes_behind_what_it_needs(depth, chunks):
    seen = list(_waves(depth, chunks))
    assert sorted(seen) == [(layer, c) for layer in range(depth) for c in range(chunks)]
    for at, (layer, c) in enumerate(seen):
        before = seen[:at]
        assert (layer == 0 or (layer - 1, c) in before) and (c == 0 or (layer, c - 1) in before)
    assert [layer + c for layer, c in seen] == sorted(layer + c for layer, c in seen)


class FakeStream:
    """Hears what a stream is told, in the order in which a host tells it."""

    told = None
    current = "main"

    def __init__(self, name):
        self.name = name

    def wait_stream(self, other):
        self.told.append((self.name, "waits for", other.name))

    def wait_event(self, event):
        self.told.append((self.name, "waits for", event.at))


class FakeEvent:
    def record(self, stream):
        self.at = (stream.name, sum(row[:2] == (stream.name, "ran") for row in FakeStream.told))


@contextmanager
def entered(stream):
    before, FakeStream.current = FakeStream.current, stream.name
    yield
    FakeStream.current = before


@pytest.fixture
def captured(monkeypatch):
    """Lanes on a machine without a GPU, as in a capture; what streams were told."""
    FakeStream.told = told = []
    main = FakeStream("main")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", entered)

    def lanes(n, device, real=wavefront._Lanes):
        made = real(n, device)
        made.streams = [FakeStream(c) for c in range(n)]
        return made

    monkeypatch.setattr(wavefront, "_Lanes", lanes)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: told.append((stream.name, "keeps")))
    return told


def test_lanes_wait_for_the_chunk_before_and_for_nothing_else(captured):
    model = model_of(depth=3)
    inner, cached, at_once = model.blocks, [], []

    def blocks(which, stream, y, states, reset):
        cached.append(torch.is_autocast_cache_enabled())
        at_once.append(calls())
        captured.append((FakeStream.current, "ran", which[0]))
        return inner(which, stream, y, states, reset)

    model.blocks = blocks
    model.walk = Wavefront(2)
    model.loss(windows(T=12))
    ran = [row for row in captured if row[1] == "ran"]
    assert ran == [(0, "ran", 0), (0, "ran", 1), (1, "ran", 0), (0, "ran", 2), (1, "ran", 1), (1, "ran", 2)]
    waits = [row for row in captured if row[1] == "waits for"]
    assert waits[:2] == [(0, "waits for", "main"), (1, "waits for", "main")]
    assert waits[2:-2] == [(1, "waits for", (0, 1)), (1, "waits for", (0, 2)), (1, "waits for", (0, 3))]
    assert waits[-2:] == [("main", "waits for", 0), ("main", "waits for", 1)]
    # Layers 1 and 2 have something to add to the stream, and the second chunk the states of the first.
    assert [sum(row[:2] == (c, "keeps") for row in captured) for c in (0, 1)] == [1 + 2 + 2, 2 + 3 + 3]
    assert set(cached) == {False} and torch.is_autocast_cache_enabled() and set(at_once) == {2} and calls() == 1


@pytest.mark.parametrize(("depth", "chunks", "most"), [(2, 3, 2), (3, 2, 2), (3, 9, 3)])
def test_no_more_run_at_once_than_there_are_layers_or_chunks(captured, depth, chunks, most):
    model, at_once = model_of(depth=depth), set()
    inner = model.blocks
    model.blocks = lambda *args: (at_once.add(calls()), inner(*args))[1]
    model.walk = Wavefront(chunks)
    model.loss(windows(T=12))
    assert at_once == {most}


@pytest.mark.parametrize("capturing", [False, True])
def test_lanes_have_streams_in_a_capture_alone(capturing, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(wavefront, "_streams", lambda n, device: [device] * n)
    assert len(wavefront._Lanes(3, torch.device("cuda")).streams) == 3 * capturing
    assert wavefront._Lanes(3, torch.device("cpu")).streams == []


def test_calls_beside_each_other():
    with beside(3):
        assert calls() == 3
    assert calls() == 1


@pytest.mark.parametrize(("name", "recurrent"), [("e61", "full"), ("e1", "kept")])
def test_a_filter_meets_its_positions(name, recurrent):
    plain = filtered(name, recurrent, None)
    assert_equal(plain, filtered(name, recurrent, Wavefront(3)), atol=1e-12)


def test_only_training_walks_in_waves(monkeypatch):
    model = model_of(depth=2)
    model.walk = Wavefront(2)
    monkeypatch.setattr(Wavefront, "of", lambda self, blocks: pytest.fail("walked in waves"))
    model.eval()
    model.loss(windows())
    model.train()
    with torch.no_grad():
        model.loss(windows())


def test_a_run_with_it_is_the_run_without(tiny, tmp_path):
    run(tiny(train={"steps": 3, "carry_state": True}), tmp_path / "a")
    seen = Recorder()
    run(tiny(train={"steps": 3, "carry_state": True, "wavefront": 3}), tmp_path / "b", seen)
    assert [note for note in seen.notes if "wavefront" in note] == [
        "no CUDA graph: the device is cpu; train.wavefront = 3 then only costs time"
    ]
    for one, other in zip(facts(tmp_path / "a"), facts(tmp_path / "b"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.parametrize(("train", "reason"), [
    ({"wavefront": 2, "checkpoint_every": 1}, "exclude each other"),
    ({"wavefront": 17, "seq_len": 16}, "without any"),
    ({"wavefront": 2, "graph": "off"}, "needs the step as one CUDA graph"),
])  # fmt: skip
def test_refused(tiny, train, reason):
    with pytest.raises(ConfigError, match=reason):
        tiny(train={"steps": 1, **train})
    tiny(train={"steps": 1, "wavefront": 16, "seq_len": 16})
    tiny(train={"steps": 1, "wavefront": 1, "checkpoint_every": 1, "graph": "off"})


def test_one_chunk_is_the_plain_pass_and_nothing_to_tell(tiny, tmp_path):
    seen = Recorder()
    run(tiny(train={"steps": 3, "wavefront": 1}), tmp_path / "one", seen)
    run(tiny(train={"steps": 3}), tmp_path / "none")
    assert seen.notes == [] and facts(tmp_path / "one") == facts(tmp_path / "none")


def told(model, *roomy):
    """What the last pass told of each layer."""
    for i, layer in enumerate(model.layers):
        layer.backends = {"recurrence": Choice("recurrence", "dense", leaves_room=i in roomy)}
    return model


@pytest.mark.parametrize(("T", "chunks"), [(512, 3), (1000, 3), (383, 2), (256, 2), (255, None), (1, None)])
def test_how_many_chunks_where_nobody_says(T, chunks):
    model = model_of("e1", depth=2)
    assert overlap(model, T) is (chunks is not None)
    assert model.walk == (chunks and Wavefront(chunks, unasked=True))
    undo_overlap(model)
    assert model.walk is None


@pytest.mark.parametrize("walk", [Wavefront(2), Remat(1)])
def test_what_was_asked_for_stays(walk):
    model = model_of("e1", depth=2)
    model.walk = walk
    assert not overlap(model, 512)
    undo_overlap(model)
    assert model.walk == walk


def test_every_layer_has_to_leave_room_and_none_does_alone():
    model = model_of("e1", depth=2)
    assert not leave_room(model) and not leave_room(told(model, 1)) and leave_room(told(model, 0, 1))
    assert not leave_room(told(model_of("e1", depth=1), 0))


def test_clusters_leave_room_and_what_fills_a_gpu_does_not():
    assert [backend.name for backend in RECURRENCE.backends if backend.leaves_room] == ["dense"]
