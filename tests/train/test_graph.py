"""The queue of a captured step, with a capture that runs its body: same run, late news, nothing lost."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from rnn_lab.errors import ConfigError, Diverged, GraphUnavailable, OutOfMemory
from rnn_lab.kernels import recurrence
from rnn_lab.kernels.dispatch import Backend, Choice
from rnn_lab.parallel import sharing
from rnn_lab.train import graph
from rnn_lab.train import run as runs
from rnn_lab.train.rundir import list_checkpoints

from .conftest import Recorder, resume, run
from .fake_queue import FakeQueue, FakeReplay
from .test_resume import assert_same_run, facts, weights

pytestmark = pytest.mark.usefixtures("fused_on_the_cpu")
ADAMW = {"name": "adamw", "warmup_steps": 4}


def eager(plan):
    train = plan.resolved.config.train.model_copy(update={"graph": "off"})
    config = plan.resolved.config.model_copy(update={"train": train})
    return replace(plan, resolved=replace(plan.resolved, config=config))


CASES = [
    {"model": {"name": "e1"}},
    {"model": {"name": "e61", "use_conv": True}, "train": {"carry_state": True, "grad_accum": 2}},
    {"train": {"grad_accum": 4, "clip": 0.0}},
]


@pytest.mark.parametrize("case", CASES, ids=["e1-spectral", "e61-carried-state", "no-clip"])
def test_the_run_is_the_eager_run(tiny, tmp_path, queue, case):
    def plan():
        train = {**case.get("train", {}), "steps": 14}
        return tiny(**{**case, "train": train}, optimizer=ADAMW, eval={"tokens": 256, "every": 5})

    whole = run(eager(plan()), tmp_path / "eager")
    seen = Recorder()
    result = run(plan(), tmp_path / "graph", seen)
    assert whole["graph"] == {"used": False, "reason": "train.graph = off"}
    assert result["graph"] == {"used": True, "reason": None} and seen.notes == []
    assert queue.captured[0].replays == 14 - sharing.WARMUP
    assert_same_run(tmp_path / "eager", tmp_path / "graph", 14)


def test_backends_are_recorded_from_the_steps_that_are_replayed_and_no_validation(tiny, tmp_path, queue, monkeypatch):
    def refuses(cell, h, streams, reset_BT=None):
        return "it has no resets" if reset_BT is not None else None

    real = FakeReplay.replay

    def replay(self):
        """As on a GPU: what the layers noted before, in a validation, stays."""
        layers = self.body.__self__.step.model.layers
        before = [dict(layer.backends) for layer in layers]
        real(self)
        for layer, noted in zip(layers, before, strict=True):
            layer.backends.update(noted)

    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recurrence.RECURRENCE, "backends", [Backend("whole", recurrence.reference, refuses)])
    monkeypatch.setattr(FakeReplay, "replay", replay)
    plan = tiny(train={"steps": 8, "carry_state": True}, optimizer=ADAMW, eval={"tokens": 256, "every": 3})
    result = run(plan, tmp_path / "r")
    assert result["graph"]["used"] is True
    (row,) = [row for row in result["backends"] if row["op"] == "recurrence"]
    assert row["backend"] == "reference" and row["refused"] == {"whole": "it has no resets"}


def test_the_host_runs_ahead_by_the_depth_and_no_further(tiny, tmp_path, queue, monkeypatch):
    ahead = []
    real = graph.CapturedStep.submit

    def submit(self, k, seconds):
        real(self, k, seconds)
        ahead.append(len(self.reader))

    monkeypatch.setattr(graph.CapturedStep, "submit", submit)
    seen = Recorder()
    run(tiny(train={"steps": 20}, optimizer=ADAMW), tmp_path / "r", seen)
    assert max(ahead) == graph.DEPTH + 1
    assert [line["step"] for line in seen.lines] == list(range(1, 21))


def test_checkpoints_hold_the_step_they_name(tiny, tmp_path, queue):
    def plan(steps):
        return tiny(train={"steps": steps, "carry_state": True}, optimizer=ADAMW, checkpoint={"every": 5, "keep": 9})

    run(eager(plan(20)), tmp_path / "whole")
    run(plan(12), tmp_path / "parts")
    one, two = weights(tmp_path / "whole", 5), weights(tmp_path / "parts", 5)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    resume(tmp_path / "parts", steps=20)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 20)


@pytest.fixture
def poisoned(tiny, monkeypatch):
    """Plan whose step 6 goes non-finite, by its bytes, whenever they are seen; the model ends in `kept`."""
    kept = {}
    real = runs.build

    def build(plan, found):
        kept["model"], optimizer = real(plan, found)
        model = kept["model"]

        def bad(module, args, out):
            return out * torch.where((args[0] == kept["tokens"]).all(), torch.nan, 1.0)

        if "tokens" in kept:
            model.embedding.register_forward_hook(bad)
        return model, optimizer

    def plan():
        made = tiny(train={"steps": 20, "carry_state": True}, optimizer=ADAMW, checkpoint={"every": 100})
        from rnn_lab.data.batches import ContiguousStreams
        from rnn_lab.data.corpus import open_split

        split = open_split(made.resolved.config.data.path, seq_len=16)
        kept["tokens"] = torch.from_numpy(ContiguousStreams(split.train, 42, 4, 16).batch(6).bytes_BT1[:, :-1]).long()
        return made

    monkeypatch.setattr(runs, "build", build)
    return plan, kept


def test_divergence_found_late_stops_at_the_step_and_before_its_update(tiny, tmp_path, queue, poisoned):
    plan, kept = poisoned
    run(tiny(train={"steps": 5, "carry_state": True}, optimizer=ADAMW), tmp_path / "five")
    seen = Recorder()
    with pytest.raises(Diverged, match=r"step 6: loss nan, gradient norm nan; first not finite: output of embedding\."):
        run(plan(), tmp_path / "r", seen)
    assert queue.captured[-1].replays > 6 - sharing.WARMUP, "the host was not ahead"
    assert not queue.captured[-1].alive
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert (result["status"], result["steps"], seen.lines[-1]["step"]) == ("diverged", 5, 5)
    saved = weights(tmp_path / "five", 5)
    assert all(torch.equal(p, saved[f"model.{n}"]) for n, p in kept["model"].named_parameters())
    assert facts(tmp_path / "r") == facts(tmp_path / "five")


def test_a_time_budget_ends_after_the_step_that_spends_it(tiny, tmp_path, monkeypatch):
    queue = FakeQueue(milliseconds=1.0)
    monkeypatch.setattr(graph, "queue_of", lambda device: queue)
    monkeypatch.setattr(graph.ScalarReader, "idle", False)
    result = run(tiny(train={"minutes": 0.0105 / 60}, optimizer=ADAMW), tmp_path / "r")
    assert result["clock"]["buckets"]["train"] == pytest.approx(0.011)
    assert result["steps"] == sharing.WARMUP + 11
    assert result["tokens_per_s"] == pytest.approx(64 / 0.001)
    assert sum(result["clock"]["buckets"].values()) == pytest.approx(result["clock"]["total"])


def test_a_batch_that_a_device_waits_for_is_training(tiny, tmp_path, monkeypatch):
    queue = FakeQueue(lag=0, milliseconds=0.001)
    monkeypatch.setattr(graph, "queue_of", lambda device: queue)
    monkeypatch.setattr(graph.ScalarReader, "idle", True)
    result = run(tiny(train={"steps": 12}, optimizer=ADAMW), tmp_path / "r")
    assert result["clock"]["buckets"]["train"] > 10 * 2e-6


def test_a_signal_drains_the_queue(tiny, tmp_path, queue):
    def stop(step):
        if step == 7:
            signal.raise_signal(signal.SIGTERM)

    result = run(tiny(train={"steps": 100}, optimizer=ADAMW), tmp_path / "r", Recorder(stop))
    steps = result["steps"]
    assert result["status"] == "interrupted" and 7 <= steps <= 8 + graph.DEPTH
    assert list_checkpoints(tmp_path / "r" / "checkpoints")[-1][0] == steps
    run(eager(tiny(train={"steps": steps}, optimizer=ADAMW)), tmp_path / "whole")
    assert facts(tmp_path / "r") == facts(tmp_path / "whole")


def test_running_out_of_memory_keeps_its_status(tiny, tmp_path, queue, monkeypatch):
    def replay(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FakeReplay, "replay", replay)
    with pytest.raises(OutOfMemory, match="use --grad-accum 2"):
        run(tiny(train={"steps": 9}, optimizer=ADAMW), tmp_path / "r")
    assert json.loads((tmp_path / "r" / "result.json").read_text())["status"] == "oom"


def fail_to_capture(monkeypatch, queue):
    def capture(body):
        try:
            raise ValueError("operation not permitted when stream is capturing\nmore")
        except ValueError:
            raise RuntimeError("the capture was invalidated")  # noqa: B904

    monkeypatch.setattr(queue, "capture", capture)


def declare_uncapturable(monkeypatch, queue):
    made = Choice.__init__
    monkeypatch.setattr(Choice, "__init__", lambda self, *args, **kwargs: made(self, *args[:3], capturable=False))


@pytest.mark.parametrize(
    ("spoil", "change", "reason"),
    [
        (fail_to_capture, {}, "the capture failed: ValueError: operation not permitted when stream is capturing"),
        (declare_uncapturable, {}, "recurrence runs by reference, which cannot be captured"),
        (None, {"optimizer": {"name": "schedulefree"}}, "the optimizer AdamWScheduleFree keeps its counters on the"),
        (None, {"model": {"name": "llama"}, "train": {"steps": 6, "carry_state": True}}, "the carried state grows"),
    ],
    ids=["capture", "backend", "optimizer", "growing-state"],
)
def test_a_fallback_is_eager_and_says_why(tiny, tmp_path, queue, monkeypatch, spoil, change, reason):
    if spoil is not None:
        spoil(monkeypatch, queue)

    def plan():
        return tiny(**{"train": {"steps": 6}, "optimizer": ADAMW, **change})

    seen = Recorder()
    result = run(plan(), tmp_path / "r", seen)
    assert result["graph"]["used"] is False and reason in result["graph"]["reason"]
    assert len(seen.notes) == 1 and "no CUDA graph: " in seen.notes[0] and reason in seen.notes[0]
    run(eager(plan()), tmp_path / "eager")
    assert facts(tmp_path / "r") == facts(tmp_path / "eager")
    made = plan()
    train = made.resolved.config.train.model_copy(update={"graph": "on"})
    config = made.resolved.config.model_copy(update={"train": train})
    with pytest.raises(GraphUnavailable, match=r"train\.graph = on, but .*train\.graph=auto"):
        run(replace(made, resolved=replace(made.resolved, config=config)), tmp_path / "on")


def test_a_graph_may_be_asked_for_on_cuda_only(tiny):
    with pytest.raises(ConfigError, match=r"train\.graph = on needs a CUDA device"):
        tiny(train={"graph": "on"})


def test_a_short_run_says_that_it_never_came_to_a_capture(tiny, tmp_path, queue):
    result = run(tiny(train={"steps": 2}, optimizer=ADAMW), tmp_path / "r")
    assert result["graph"] == {"used": False, "reason": "no more than 2 warm-up steps were run"}


def test_the_reader_keeps_order_and_waits_only_when_asked():
    queue = FakeQueue(lag=100)
    reader = graph.ScalarReader(queue, slots=2, width=2)
    for tag in ("a", "b"):
        reader.push(tag, torch.tensor([1.0, float(ord(tag))], dtype=torch.float64), queue.mark())
    assert len(reader) == 2 and not reader.idle and reader.pop(wait=False) is None
    found = [reader.pop(wait=True) for _ in range(3)]
    assert [f and f[:2] for f in found] == [("a", [1.0, 97.0]), ("b", [1.0, 98.0]), None]
    assert reader.idle and all(f is None or np.isfinite(f[2]) for f in found)


def test_muon_is_replayed_and_galore_is_not(tiny, tmp_path, queue):
    def plan(**optimizer):
        return tiny(model={"dim": 64}, train={"steps": 7}, optimizer=optimizer)

    run(eager(plan(name="muon8bit", aux_8bit=True, warmup_steps=4)), tmp_path / "eager")
    result = run(plan(name="muon8bit", aux_8bit=True, warmup_steps=4), tmp_path / "graph")
    assert result["graph"] == {"used": True, "reason": None}
    assert_same_run(tmp_path / "eager", tmp_path / "graph", 7)
    result = run(plan(name="galore_muon", galore_force=True), tmp_path / "galore")
    assert result["graph"]["used"] is False and "counters on the host" in result["graph"]["reason"]
