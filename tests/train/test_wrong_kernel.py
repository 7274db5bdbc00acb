"""A kernel whose backward is wrong does not train anything."""

import torch
from rnn_lab.kernels import recurrence
from rnn_lab.kernels.dispatch import Backend

from .conftest import run


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return 0.5 * g


def wrong(cell, h, streams, reset_BT=None):
    y, last = recurrence.reference(cell, h, streams, reset_BT)
    return Halved.apply(y), last


def test_it_is_caught_before_training_and_the_run_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path / "cache"))
    right = run(tiny(train={"steps": 3}), tmp_path / "right")
    monkeypatch.setattr(recurrence.RECURRENCE, "backends", [Backend("wrong", wrong, lambda *args: None)])
    result = run(tiny(train={"steps": 3}), tmp_path / "run")
    (row,) = [row for row in result["backends"] if row["op"] == "recurrence"]
    assert row["backend"] == "reference" and "in gradients" in row["refused"]["wrong"]
    assert result["loss"] == right["loss"]


def test_a_backend_that_only_validation_may_use_is_not_recorded(tiny, tmp_path, monkeypatch):
    def refuses(cell, h, streams, reset_BT=None):
        return "it has no resets" if reset_BT is not None else None

    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path / "cache"))
    backends = [Backend("whole", recurrence.reference, refuses)]
    monkeypatch.setattr(recurrence.RECURRENCE, "backends", backends)
    result = run(tiny(train={"steps": 3, "carry_state": True}), tmp_path / "run")
    (row,) = [row for row in result["backends"] if row["op"] == "recurrence"]
    assert row["backend"] == "reference" and row["refused"] == {"whole": "it has no resets"}
