"""The step as a CUDA graph: same losses as eager steps, late news handled, fallbacks that leave a sane device."""

import copy
import itertools
import json

import pytest
import torch
from rnn_lab.config import Layer
from rnn_lab.cuda_graphs import capture
from rnn_lab.data.batches import ContiguousStreams
from rnn_lab.data.corpus import open_split
from rnn_lab.errors import Diverged, GraphUnavailable
from rnn_lab.registry import registry
from rnn_lab.tensors import relative_error
from rnn_lab.train import graph
from rnn_lab.train import run as runs
from rnn_lab.train.checkpoint import load_checkpoint
from rnn_lab.train.metrics import read_metrics
from rnn_lab.train.resume import resume_run
from rnn_lab.train.run import plan_run, start_run
from rnn_lab.wavefront import Wavefront

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class Notes:
    def __init__(self):
        self.notes = []

    def step(self, line, fraction):
        pass

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def make(tmp_path):
    data = tmp_path / "bytes.bin"
    data.write_bytes(b"the quick brown fox \x1e jumps over the lazy dog " * 1000)

    def plan(mode="on", name="e61", steps=20, model=None, optimizer=None, sections=None, **train):
        values = {
            "model": {"name": name, "dim": 64, "depth": 2, **(model or {})},
            "data": {"path": str(data)},
            "train": {"batch_size": 8, "seq_len": 32, "device": "cuda", "dtype": "fp32", "graph": mode, "steps": steps}
            | train,
            "optimizer": {"lr": 3e-3, "warmup_steps": 5, **(optimizer or {})},
            "eval": {"tokens": 512, "every": 7},
            "log": {"trackers": []},
            **(sections or {}),
        }
        return plan_run([Layer("test", values)], registry())

    return plan


def start(plan, path, notes=None):
    return start_run(plan, path, registry(), notes or Notes())


def figures(path, names=("loss", "grad_norm", "lr", "val_loss")):
    return [line.get(name) or 0.0 for line in read_metrics(path / "metrics.jsonl") for name in names]


AHEAD = {
    "objective": {
        "use_mtp": True, "mtp_variant": "layer", "use_collider": True, "collider_min_dim": 0,
        "collider_scorer": "random", "collider_start_step": 8, "entropy_weight": 0.01,
    },
    "schedule": {"type": "wsd", "warmup": 5},
}  # fmt: skip
CASES = [
    {"name": "e61"},
    {"name": "llama"},
    {"name": "e61", "carry_state": True, "grad_accum": 2, "model": {"use_conv": True}},
    {"name": "e61", "optimizer": {"name": "adamw"}},
    {"name": "e61", "optimizer": {"name": "muon"}},
    {"name": "e61", "optimizer": {"name": "muon8bit", "aux_8bit": True}},
    {"name": "e1", "dtype": "bf16", "model": {"dim": 128, "expansion": 1.0}},
    {"name": "e61", "optimizer": {"decay": "matrices", "betas": (0.9, 0.95)}, "clip": 0.1},
    {"name": "e61", "optimizer": {"name": "adamw", "warmup_steps": 0}, "sections": AHEAD, "dtype": "bf16"},
    {"name": "e61", "sections": {"objective": AHEAD["objective"]}, "carry_state": True, "grad_accum": 2},
    {"name": "e61", "checkpoint_every": 1, "checkpoint_chunk": 16},
]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case['name']}" for i, case in enumerate(CASES)])
def test_a_graph_trains_as_eager_steps_do(make, tmp_path, case):
    eager = start(make("off", **case), tmp_path / "eager")
    result = start(make("on", **case), tmp_path / "graph")
    assert result["graph"] == {"used": True, "reason": None} and eager["graph"]["used"] is False
    assert result["data_chain"] == eager["data_chain"]
    assert figures(tmp_path / "graph") == pytest.approx(figures(tmp_path / "eager"), rel=2e-3)
    buckets = result["clock"]["buckets"]
    assert sum(buckets.values()) == pytest.approx(result["clock"]["total"]) and buckets["train"] > 0


def test_layers_on_several_chunks_at_once_train_as_one_after_the_other(make, tmp_path):
    case = {"model": {"depth": 6}, "seq_len": 128, "steps": 30, "carry_state": True, "grad_accum": 2}
    start(make("on", **case), tmp_path / "plain")
    result = start(make("on", **case, wavefront=4), tmp_path / "waves")
    assert result["graph"]["used"] is True
    assert figures(tmp_path / "waves") == pytest.approx(figures(tmp_path / "plain"), rel=2e-3)


@pytest.mark.parametrize(("name", "fields", "dtype"), [
    ("e61", {"dim": 256}, "bf16"), ("e1", {"dim": 256, "expansion": 1.0}, "bf16"),
    ("e74", {"dim": 128, "n_state": 32}, "bf16"), ("e61", {"dim": 256}, "fp32"),
    ("e74", {"dim": 128, "n_state": 32}, "fp32"),
])  # fmt: skip
def test_gradients_by_layers_on_several_chunks_at_once(make, name, fields, dtype):
    """As far from fp64 as the plain pass, whose curves part by rounding, and the same at every replay."""
    torch.manual_seed(0)
    model = make(name=name, model={**fields, "depth": 6}).spec.build().cuda()
    model.prepare()
    windows = torch.randint(97, 123, (16, 257), dtype=torch.uint8, device="cuda")

    def backward():
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bf16"):
            loss, _ = model.loss(windows)
        loss.backward()

    def found(walk):
        model.walk = walk
        backward()  # certifies and compiles
        graph = capture(backward)
        seen = []
        for _ in range(5):
            graph.replay()
            seen.append([p.grad.clone() for p in model.parameters()])
        for other in seen[1:]:
            for (path, _), a, b in zip(model.named_parameters(), seen[0], other, strict=True):
                assert torch.equal(a, b), path
        return seen[0]

    plain, waves = found(None), found(Wavefront(4))
    exact = copy.deepcopy(model).double()
    exact.walk = None
    loss, _ = exact.loss(windows)
    loss.backward()
    for (path, p), a, b in zip(exact.named_parameters(), plain, waves, strict=True):
        print(f"{name} {path}: plain {relative_error(a, p.grad):.1e}, waves {relative_error(b, p.grad):.1e}")
        assert relative_error(b, p.grad) < 1.5 * relative_error(a, p.grad) + (2e-3 if dtype == "bf16" else 1e-5), path


def test_a_layer_that_replays_graphs_of_its_own_keeps_the_step_out_of_one(make, tmp_path):
    result = start(make("auto", name="e1"), tmp_path / "run")
    used = [row["backend"] for row in result["backends"] if row["op"] == "recurrence"]
    assert used == ["graph"], result["backends"]
    assert result["graph"] == {"used": False, "reason": "recurrence runs by graph, which cannot be captured"}


@pytest.mark.parametrize("name", ["schedulefree", "adamw"])
def test_a_run_in_parts_is_the_whole_run(make, tmp_path, name):
    case = {"optimizer": {"name": name}, "carry_state": True}
    start(make(steps=20, **case), tmp_path / "whole")
    start(make(steps=9, **case), tmp_path / "parts")
    resume_run(tmp_path / "parts", {"steps": 20}, registry(), Notes())
    assert figures(tmp_path / "parts") == pytest.approx(figures(tmp_path / "whole"), rel=2e-3)


def test_bf16_with_gradient_accumulation(make, tmp_path):
    eager = start(make("off", dtype="bf16", grad_accum=4, steps=60), tmp_path / "eager")
    result = start(make("on", dtype="bf16", grad_accum=4, steps=60), tmp_path / "graph")
    assert result["loss"] == pytest.approx(eager["loss"], rel=0.05) and result["loss"] < 2.5


@pytest.fixture
def spoil(monkeypatch):
    """Register a forward hook on the embedding of every model that is built; keeps the model."""
    kept = {}
    real = runs.build

    def with_hook(hook):
        def build(plan, found):
            kept["model"], optimizer = real(plan, found)
            kept["model"].embedding.register_forward_hook(hook)
            return kept["model"], optimizer

        monkeypatch.setattr(runs, "build", build)
        return kept

    return with_hook


def test_divergence_found_late_leaves_the_step_before(make, tmp_path, spoil):
    plan = make(steps=30, carry_state=True)
    split = open_split(plan.resolved.config.data.path, seq_len=32)
    bad = ContiguousStreams(split.train, 42, 8, 32).batch(12).bytes_BT1[:, :-1]
    bad_tokens = torch.from_numpy(bad).cuda().long()

    def hook(module, args, out):
        if args[0].shape != bad_tokens.shape:  # validation
            return out
        return out * torch.where((args[0] == bad_tokens).all(), torch.nan, 1.0)

    kept = spoil(hook)
    start(make(steps=11, carry_state=True), tmp_path / "eleven")
    with pytest.raises(Diverged, match=r"step 12: loss nan, .*first not finite: output of embedding\."):
        start(plan, tmp_path / "r")
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert (result["status"], result["steps"], result["graph"]["used"]) == ("diverged", 11, True)
    saved = load_checkpoint(tmp_path / "eleven" / "checkpoints" / "step_11").tensors["model"]
    for name, p in kept["model"].named_parameters():
        torch.testing.assert_close(p.detach().cpu(), saved[name], rtol=1e-3, atol=1e-5)


def test_an_operation_that_waits_for_the_device_means_eager_steps(make, tmp_path, spoil):
    def hook(module, args, out):
        return out * (1.0 if out.detach().sum().item() < 1e9 else 2.0)

    spoil(hook)
    seen = Notes()
    result = start(make("auto"), tmp_path / "r", seen)
    assert result["status"] == "ok" and result["steps"] == 20
    assert result["graph"]["used"] is False and "the capture failed" in result["graph"]["reason"]
    assert [note for note in seen.notes if "graph" in note] == [f"no CUDA graph: {result['graph']['reason']}"]
    torch.cuda.empty_cache()
    torch.rand(3, device="cuda")
    with pytest.raises(GraphUnavailable):
        start(make("on"), tmp_path / "on")


def test_a_capture_works_after_one_that_failed(make, tmp_path, monkeypatch):
    real = graph.CapturedStep._body

    def body(self):
        real(self)
        torch.ones((), device="cuda").item()

    with monkeypatch.context() as patch:
        patch.setattr(graph.CapturedStep, "_body", body)
        assert start(make("auto"), tmp_path / "failed")["graph"]["used"] is False
    assert start(make("on"), tmp_path / "works")["graph"]["used"] is True
    assert figures(tmp_path / "works") == pytest.approx(figures(tmp_path / "failed"), rel=2e-3)


@pytest.mark.parametrize("shared", [False, True])
def test_a_capture_that_fails_leaves_random_numbers_and_memory_as_they_were(shared):
    def waits():
        torch.rand(3, device="cuda").sum().item()

    def draw():
        torch.manual_seed(0)
        return torch.rand(3, device="cuda")

    draw()
    want = torch.rand(5, device="cuda")
    draw()
    with pytest.raises(Exception, match="captur"):
        capture(waits, shared=shared)
    assert torch.equal(torch.rand(5, device="cuda"), want)
    torch.cuda.empty_cache()
    for found in [capture(lambda: torch.rand(2, device="cuda"), shared=shared) for _ in range(2)]:
        found.replay()
    torch.cuda.synchronize()


def test_a_growing_state_is_not_captured(make, tmp_path):
    result = start(make("auto", name="llama", carry_state=True, steps=6), tmp_path / "r")
    assert result["graph"] == {"used": False, "reason": "the carried state grows from step to step"}


def test_the_queue_never_waits_within_its_depth(make, tmp_path, monkeypatch):
    ahead = []
    real = graph.CapturedStep.submit

    def submit(self, *step):
        real(self, *step)
        ahead.append(len(self.reader))

    monkeypatch.setattr(graph.CapturedStep, "submit", submit)
    start(make(steps=40, model={"dim": 512, "depth": 8}, seq_len=256, batch_size=32), tmp_path / "r")
    assert 1 < max(ahead) <= graph.DEPTH + 1


def test_a_time_budget_is_overrun_by_a_step_at_most(make, tmp_path):
    plan = make(steps=None, minutes=0.02, model={"dim": 256, "depth": 4})
    result = start(plan, tmp_path / "r")
    lines = list(read_metrics(tmp_path / "r" / "metrics.jsonl"))
    slowest = max(b["seconds"] - a["seconds"] for a, b in itertools.pairwise(lines))
    assert 1.2 <= result["clock"]["buckets"]["train"] <= 1.2 + 3 * slowest
