"""Steps that are not finite, skipped and rolled back: eager and replayed runs do the same."""

import json

import pytest
import torch
from rnn_lab.comparison.records import read_run
from rnn_lab.errors import Diverged
from rnn_lab.train import graph, optimizers, recovery
from rnn_lab.train.graph import CapturedStep
from rnn_lab.train.step import EagerExecutor

from .conftest import Recorder, resume, run
from .fake_queue import FakeQueue
from .test_resume import facts, weights

ADAMW = {"name": "adamw"}


@pytest.fixture
def poison(monkeypatch):
    """Make the loss of some submissions NaN: `poison({step: how often})`; steps come again after a roll-back."""
    left = {}
    bad = torch.zeros(())

    def spoil(kind):
        real = kind.submit

        def submit(self, k, *rest):
            bad.fill_(torch.nan if left.get(k, 0) > 0 else 0.0)
            left[k] = left.get(k, 0) - 1
            model = self.step.model
            if not hasattr(model, "spoiled"):
                model.spoiled = model.embedding.register_forward_hook(lambda m, a, out: out + bad)
            real(self, k, *rest)

        monkeypatch.setattr(kind, "submit", submit)

    spoil(EagerExecutor)
    spoil(CapturedStep)
    monkeypatch.setattr(optimizers, "WarmupAdamW", optimizers.FusedAdamW)
    return left.update


@pytest.fixture(params=["eager", "replayed"])
def mode(request, monkeypatch):
    if request.param == "replayed":
        monkeypatch.setattr(graph, "queue_of", lambda device: FakeQueue())
    return request.param


def rolled(tiny, **train):
    train = {"steps": 14, "on_nonfinite": "rollback", "carry_state": True, **train}
    loader = {"workers": 1}
    return tiny(train=train, optimizer=ADAMW, loader=loader, checkpoint={"every": 4, "keep": 9})


def test_one_bad_step_is_skipped_and_leaves_everything_as_it_was(tiny, tmp_path, poison, mode):
    poison({6: 1})
    seen = Recorder()
    result = run(rolled(tiny, steps=7), tmp_path / "r", seen)
    lines = seen.lines
    assert [line["step"] for line in lines] == list(range(1, 8)) and result["rollbacks"] == []
    assert lines[5]["skipped"] == 1 and lines[5]["loss"] is None and lines[5]["diag/D-NAN"] == 1
    assert "skipped" not in lines[6] and lines[6]["loss"] > 0
    (found,) = result["diagnostics"]
    assert (found["id"], found["severity"], found["count"], found["first_step"]) == ("D-NAN", "error", 1, 6)
    assert "optimizer.lr = " in found["suggestion"] and "D-NAN (error) at step 6" in seen.notes[-1]
    # Optimizer and carried state of step 5 met batch 7.
    record = read_run(tmp_path / "r")
    assert record.series("loss")[5] == record.series("loss")[4] and record.edited is None


def test_three_in_a_row_go_back_to_the_checkpoint_at_half_the_rate(tiny, tmp_path, poison, mode, monkeypatch):
    monkeypatch.setattr(recovery, "SLOW_STEPS", 3)
    run(rolled(tiny), tmp_path / "whole")
    poison(dict.fromkeys((6, 7, 8), 1))
    seen = Recorder()
    result = run(rolled(tiny), tmp_path / "r", seen)
    assert result["status"] == "ok" and result["steps"] == 14
    (row,) = result["rollbacks"]
    assert (row["at"], row["to"]) == (8, 4) and "embedding" in row["where"]
    assert any("back to step 4, at 0.5 times the rate until step 7" in note for note in seen.notes)
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 15))
    rates = [line["lr"] / 3e-4 for line in lines]
    assert rates == pytest.approx([1] * 4 + [0.5] * 3 + [1] * 7)
    # What went before, and the first loss after it, are those of a run without: all of the state came back.
    assert [line["loss"] for line in lines[:5]] == [line["loss"] for line in facts(tmp_path / "whole")[:5]]
    assert lines[6]["loss"] != facts(tmp_path / "whole")[6]["loss"]
    record = read_run(tmp_path / "r")
    assert record.edited is None and record.chain == read_run(tmp_path / "whole").chain


def test_a_second_time_ends_the_run(tiny, tmp_path, poison, mode):
    poison(dict.fromkeys((2, 3, 4), 2))
    with pytest.raises(
        Diverged, match=r"step 4 after 1 roll-back: loss nan.*not finite: output of embedding"
    ) as caught:
        run(rolled(tiny), tmp_path / "r")
    assert caught.value.exit_code == 3
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["status"] == "diverged" and [row["to"] for row in result["rollbacks"]] == [0]


def test_a_resumed_run_knows_of_its_roll_back(tiny, tmp_path, poison):
    poison(dict.fromkeys((6, 7, 8), 1))
    run(rolled(tiny), tmp_path / "whole")
    poison({6: 1, 7: 1, 8: 1})
    stop = Recorder(lambda step: (_ for _ in ()).throw(KeyboardInterrupt) if step == 11 else None)
    run(rolled(tiny), tmp_path / "r", stop)
    result = resume(tmp_path / "r")
    assert [row["at"] for row in result["rollbacks"]] == [8]
    assert [row["count"] for row in result["diagnostics"]] == [3]
    one, two = weights(tmp_path / "whole", 14), weights(tmp_path / "r", 14)
    assert all(torch.equal(one[name], two[name]) for name in one)


class Killed(Recorder):
    """Ends the session as soon as it went back."""

    def note(self, text):
        if text.startswith("steps") and "back to step" in text:
            raise KeyboardInterrupt
        super().note(text)


def test_a_run_killed_right_after_its_roll_back_knows_of_it(tiny, tmp_path, poison, mode):
    poison(dict.fromkeys((6, 7, 8), 1))
    run(rolled(tiny, steps=9), tmp_path / "whole")
    poison(dict.fromkeys((6, 7, 8), 1))
    run(rolled(tiny, steps=9), tmp_path / "r", Killed())
    result = resume(tmp_path / "r", seen := Recorder())
    assert [(row["at"], row["to"]) for row in result["rollbacks"]] == [(8, 4)]
    assert [row["count"] for row in result["diagnostics"]] == [3]
    assert [line["lr"] for line in seen.lines] == [line["lr"] for line in facts(tmp_path / "whole")[4:]]
    one, two = weights(tmp_path / "whole", 9), weights(tmp_path / "r", 9)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_killed_right_after_its_roll_back_takes_no_second_one(tiny, tmp_path, poison):
    poison(dict.fromkeys((6, 7, 8), 2))
    run(rolled(tiny), tmp_path / "r", Killed())
    with pytest.raises(Diverged, match="step 8 after 1 roll-back") as caught:
        resume(tmp_path / "r")
    assert caught.value.exit_code == 3


def test_schedule_free_is_slowed_down_too(tiny, tmp_path, poison):
    poison(dict.fromkeys((2, 3, 4), 1))
    plan = tiny(train={"steps": 6, "on_nonfinite": "rollback"})
    result = run(plan, tmp_path / "r")
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert result["rollbacks"][0]["to"] == 0 and [line["lr"] for line in lines] == pytest.approx([1.5e-4] * 6)
