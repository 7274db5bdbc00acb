"""A run that cannot go on says where and why, and leaves its last state intact."""

import json

import pytest
import torch
from rnn_lab.errors import Diverged, OutOfMemory
from rnn_lab.registry import registry
from rnn_lab.train import diagnose
from rnn_lab.train import run as runs
from rnn_lab.train.checkpoint import load_latest
from rnn_lab.train.step import EagerExecutor

from .conftest import resume, run


def poison(monkeypatch, name: str, at_step: int, value: float = float("nan")):
    """Multiply a parameter's gradient or a module's output by `value` in one step."""
    real = EagerExecutor.submit

    def step(self, k):
        if k == at_step:
            module, _, kind = name.rpartition(":")
            target = self.step.model.get_submodule(module) if kind == "output" else None
            if target is not None:
                target.register_forward_hook(lambda m, a, out: out * value)
            else:
                self.step.model.get_parameter(module).register_hook(lambda grad: grad * value)
        return real(self, k)

    monkeypatch.setattr(EagerExecutor, "submit", step)


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("layers.1.in_proj:output", float("nan"), r"loss nan.*first not finite: output of layers\.1\.in_proj\."),
        ("layers.0.value.weight:grad", float("inf"), r"gradient norm inf.*gradient of layers\.0\.value\.weight\."),
    ],
)
def test_the_step_is_not_applied_and_the_offender_is_named(tiny, tmp_path, monkeypatch, where, value, says):
    plan = tiny(train={"steps": 6}, checkpoint={"every": 3})
    run(plan, tmp_path / "whole")
    with monkeypatch.context() as patch:
        poison(patch, where, 4, value)
        with pytest.raises(Diverged, match=f"step 4: .*{says}") as caught:
            run(tiny(train={"steps": 6}, checkpoint={"every": 3}), tmp_path / "r")
    assert "Batch 4 of seed 42 starts at bytes" in str(caught.value) and caught.value.exit_code == 3
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("diverged", 3) and "layers" in result["error"]
    assert resume(tmp_path / "r")["loss"] == json.loads((tmp_path / "whole" / "result.json").read_text())["loss"]


def test_a_configuration_that_declares_it_is_told_so(tiny, tmp_path):
    model = {"name": "e74-d-tiedkvq-l", "dim": 64}
    with pytest.raises(Diverged) as caught:
        run(tiny(model=model, train={"steps": 60, "batch_size": 8, "seq_len": 128}), tmp_path / "r")
    text = str(caught.value)
    assert "diverges by its own mathematics: S is multiplied by 1 - k^2" in text and "--lr" not in text
    assert json.loads((tmp_path / "r" / "result.json").read_text())["status"] == "diverged"


def test_what_declares_nothing_is_told_to_learn_slower():
    layer_cls = registry().models["e61"].load()
    assert "Try a lower --lr" in diagnose.advice(layer_cls, layer_cls.Config())


def test_parameters_stay_finite_after_divergence(tiny, tmp_path, monkeypatch):
    kept = {}
    real = runs.build

    def spy(plan, found):
        kept["model"], optimizer = real(plan, found)
        return kept["model"], optimizer

    monkeypatch.setattr(runs, "build", spy)
    poison(monkeypatch, "layers.0.value.weight:grad", 2)
    with pytest.raises(Diverged):
        run(tiny(train={"steps": 3}, checkpoint={"every": 1}), tmp_path / "r")
    saved = load_latest(tmp_path / "r" / "checkpoints", print)
    assert all(torch.equal(p, saved.tensors["model"][n]) for n, p in kept["model"].named_parameters())


@pytest.mark.parametrize(("pieces", "advice"), [(1, "use --grad-accum 2 "), (4, r"once: lower --seq-len")])
def test_out_of_memory_says_what_to_change(tiny, tmp_path, monkeypatch, pieces, advice):
    def step(self, k):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(EagerExecutor, "submit", step)
    with pytest.raises(OutOfMemory, match=rf"with {4 // pieces} x 16 bytes at .*{advice}"):
        run(tiny(train={"steps": 3, "grad_accum": pieces}), tmp_path / "r")
    assert json.loads((tmp_path / "r" / "result.json").read_text())["status"] == "oom"


def test_a_bug_in_a_model_is_a_failed_run_with_its_error_on_record(tiny, tmp_path, monkeypatch):
    def step(self, k):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(EagerExecutor, "submit", step)
    with pytest.raises(ZeroDivisionError):
        run(tiny(train={"steps": 3}), tmp_path / "r")
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["status"] == "failed" and result["error"] == "ZeroDivisionError: boom"
