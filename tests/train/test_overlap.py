"""Layers of a captured step that share the GPU unasked, with a capture that runs its body: when, and what is told."""

import json
from types import SimpleNamespace

import pytest
import torch
from rnn_lab import wavefront
from rnn_lab.bench import step as bench_step
from rnn_lab.kernels.dispatch import Choice
from rnn_lab.train import graph

from .conftest import Recorder, run
from .models import model_of, windows
from .test_graph import ADAMW, eager, fail_to_capture
from .test_resume import assert_same_run, facts

pytestmark = pytest.mark.usefixtures("fused_on_the_cpu")


@pytest.fixture
def roomy(monkeypatch):
    """As where every recurrence leaves most of a GPU idle; short sequences may be cut."""
    made = Choice.__init__
    monkeypatch.setattr(Choice, "__init__", lambda self, *args, **kwargs: made(self, *args[:3], leaves_room=True))
    monkeypatch.setattr(wavefront, "SHORTEST", 4)


def test_layers_share_a_gpu_that_they_leave_idle(tiny, tmp_path, queue, roomy):
    def plan(**train):
        return tiny(train={"steps": 7, **train}, optimizer=ADAMW)

    run(plan(wavefront=1), tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "result.json").read_text())["graph"] == {"used": True, "reason": None}
    result = run(plan(), tmp_path / "waves")
    assert result["graph"] == {"used": True, "reason": None, "wavefront": 3}
    for one, other in zip(facts(tmp_path / "plain"), facts(tmp_path / "waves"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_chunks_that_would_slow_a_filter_down_are_not_taken_unasked(tiny, tmp_path, queue, roomy):
    objective = {"use_collider": True, "collider_min_dim": 0, "collider_start_step": 0}
    result = run(tiny(train={"steps": 7}, optimizer=ADAMW, objective=objective), tmp_path / "r")
    assert result["graph"] == {"used": True, "reason": None}


def test_a_capture_of_several_chunks_that_fails_is_tried_without(tiny, tmp_path, queue, roomy, monkeypatch):
    real, tried = queue.capture, []

    def capture(body):
        tried.append(body)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(body)

    monkeypatch.setattr(queue, "capture", capture)
    seen = Recorder()
    result = run(tiny(train={"steps": 7}, optimizer=ADAMW), tmp_path / "r", seen)
    assert result["graph"] == {"used": True, "reason": None} and len(tried) == 2
    assert seen.notes == ["layers do not share the GPU: the capture failed: OutOfMemoryError: CUDA out of memory"]
    run(eager(tiny(train={"steps": 7}, optimizer=ADAMW)), tmp_path / "eager")
    assert_same_run(tmp_path / "eager", tmp_path / "r", 7)


@pytest.mark.parametrize(
    ("ranks", "wavefront", "may"), [(1, None, True), (2, None, False), (1, 1, False), (1, 4, False)]
)
def test_time_is_cut_unasked_for_one_process_alone(ranks, wavefront, may):
    executor = graph.GraphExecutor.__new__(graph.GraphExecutor)
    executor._room = True
    train, world = SimpleNamespace(wavefront=wavefront), SimpleNamespace(size=ranks)
    executor.step = SimpleNamespace(train=train, sharing=SimpleNamespace(world=world), objective=None)
    assert executor._may_overlap() is may


def test_a_capture_that_fails_is_tried_once_and_tells_of_no_chunks(tiny, tmp_path, queue, monkeypatch):
    tried = []

    def capture(body):
        tried.append(body)
        raise ValueError("not permitted")

    monkeypatch.setattr(queue, "capture", capture)
    result = run(tiny(train={"steps": 6, "wavefront": 3}, optimizer=ADAMW), tmp_path / "r")
    assert len(tried) == 1 and result["graph"].keys() == {"used", "reason"} and not result["graph"]["used"]


@pytest.mark.parametrize(
    ("captures", "wavefront", "chunks"), [(True, None, 3), (True, 1, 1), (True, 2, 2), (False, None, 1)]
)
def test_measured_steps_are_cut_as_those_of_a_run(roomy, monkeypatch, captures, wavefront, chunks):
    monkeypatch.setattr(bench_step, "captured", lambda calls: SimpleNamespace(replay=calls[0]))
    model = model_of("e61").float()
    optimizer = torch.optim.AdamW(model.parameters())
    bytes_BT1 = windows(B=2, T=12)
    step = bench_step.make_step(model, optimizer, torch.float32, bytes_BT1, captures, wavefront)
    assert step(bytes_BT1) > 0 and getattr(model.walk, "chunks", 1) == chunks


def test_chunks_that_run_by_other_kernels_are_not_taken(tiny, tmp_path, queue, roomy, monkeypatch):
    """As where a kernel refuses so few steps: what a chunk runs by is known when it was captured."""
    real, seen = graph.leave_room, Recorder()
    monkeypatch.setattr(graph, "leave_room", lambda model: real(model) and model.walk is None)
    result = run(tiny(train={"steps": 7, "carry_state": True}, optimizer=ADAMW), tmp_path / "r", seen)
    assert result["graph"] == {"used": True, "reason": None}
    assert seen.notes == ["layers do not share the GPU: chunks of their time run by kernels that fill it"]
    run(eager(tiny(train={"steps": 7, "carry_state": True}, optimizer=ADAMW)), tmp_path / "eager")
    assert_same_run(tmp_path / "eager", tmp_path / "r", 7)


def test_a_capture_that_fails_with_chunks_and_without_leaves_the_plain_pass(tiny, tmp_path, queue, roomy, monkeypatch):
    fail_to_capture(monkeypatch, queue)
    result = run(tiny(train={"steps": 6}, optimizer=ADAMW), tmp_path / "r")
    assert not result["graph"]["used"]
    run(eager(tiny(train={"steps": 6}, optimizer=ADAMW)), tmp_path / "eager")
    assert facts(tmp_path / "r") == facts(tmp_path / "eager")


def test_a_validation_does_not_say_what_training_leaves(tiny, tmp_path, queue, roomy, monkeypatch):
    """Without gradients other kernels may run; validated behind every step, the last one before a capture too."""
    monkeypatch.setattr(graph, "leave_room", lambda model: model.training)
    result = run(tiny(train={"steps": 7}, optimizer=ADAMW, eval={"tokens": 64, "every": 1}), tmp_path / "r")
    assert result["graph"]["wavefront"] == 3


def test_an_executor_that_takes_over_begins_without_chunks_nobody_asked_for(tiny, tmp_path, queue, roomy):
    model = model_of("e61")
    step = SimpleNamespace(model=model, sharing=SimpleNamespace(warmup=2))
    wavefront.overlap(model, 512)
    graph.GraphExecutor.__init__(executor := graph.GraphExecutor.__new__(graph.GraphExecutor), step, *[None] * 5)
    assert model.walk is None and not executor._room


@pytest.mark.parametrize("wavefront", [None, 2])
def test_measured_steps_that_do_not_fit_in_chunks_are_measured_without(roomy, monkeypatch, wavefront):
    tried = []

    def captured(calls):
        tried.append(calls)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return SimpleNamespace(replay=calls[0])

    monkeypatch.setattr(bench_step, "captured", captured)
    model, bytes_BT1 = model_of("e61").float(), windows(B=2, T=12)
    args = model, torch.optim.AdamW(model.parameters()), torch.float32, bytes_BT1, True, wavefront
    if wavefront:
        with pytest.raises(torch.OutOfMemoryError):
            bench_step.make_step(*args)
    else:
        bench_step.make_step(*args)
        assert model.walk is None and len(tried) == 2
