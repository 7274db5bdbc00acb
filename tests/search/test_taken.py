"""A worker that was stopped for so long that others took its trial over."""

import pytest
from rnn_lab.search import run as search_run
from rnn_lab.search.run import run_search
from rnn_lab.search.study import make_pruner, open_study, optuna

from search.test_search import LR


def failed_by_another(plan, where):
    """What another worker does after four heartbeats that did not come."""
    other = open_study(where, plan.name, plan.sampler, make_pruner("none", 1), plan.seed)
    other.tell(0, state=optuna().trial.TrialState.FAIL)


def taken_before_training(monkeypatch, plan, where, error=None):
    train, calls = search_run.child.train, []

    def taken(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            failed_by_another(plan, where)
            if error is not None:
                raise error
        return train(*args, **kwargs)

    monkeypatch.setattr(search_run.child, "train", taken)


def taken_after_its_last_word(monkeypatch, plan, where):
    train = search_run._Objective._train

    def taken(self, trial, descriptor):
        value = train(self, trial, descriptor)
        if trial.number == 0:
            failed_by_another(plan, where)
        return value

    monkeypatch.setattr(search_run._Objective, "_train", taken)


@pytest.mark.parametrize("storage", ["journal.log", "trials.db"])
@pytest.mark.parametrize("taken", [taken_before_training, taken_after_its_last_word])
def test_the_search_goes_on(plan, worker, tmp_path, monkeypatch, storage, taken):
    made, notes, where = plan(LR), [], str(tmp_path / storage)
    taken(monkeypatch, made, where)
    rows = run_search(made, worker(storage=where, note=notes.append), 3)
    assert [row.outcome for row in rows] == ["ok"] * 3 and rows[0].number == 1
    assert [row.default for row in rows] == [True, False, False], "the lost trial's values were tried again"
    assert sum("took it over" in note for note in notes) == 1


def test_an_error_in_a_trial_that_was_taken_is_still_told(plan, worker, tmp_path, monkeypatch):
    made, where = plan(LR), str(tmp_path / "trials.db")
    taken_before_training(monkeypatch, made, where, OSError(28, "no space left"))
    with pytest.raises(OSError, match="no space left"):
        run_search(made, worker(storage=where), 2)


def test_an_error_of_the_trial_itself_is_no_loss(plan, worker, monkeypatch):
    raised = [KeyboardInterrupt(), ValueError("a bug")]

    def broken(*args, **kwargs):
        raise raised.pop()

    monkeypatch.setattr(search_run.child, "train", broken)
    with pytest.raises(ValueError, match="a bug"):
        run_search(plan(LR), worker(), 2)


@pytest.mark.parametrize("fake", ["", "crash"])
def test_an_error_of_the_study_is_no_loss(plan, worker, monkeypatch, fake):
    opened, broken = search_run.open_study, [ZeroDivisionError()]

    def with_a_bug(*args):
        study = opened(*args)

        def after_trial(*args):
            if broken:
                raise broken.pop()

        monkeypatch.setattr(study.sampler, "after_trial", after_trial)
        return study

    monkeypatch.setattr(search_run, "open_study", with_a_bug)
    monkeypatch.setenv("FAKE", fake)
    with pytest.raises(ZeroDivisionError):
        run_search(plan(LR), worker(), 2)
