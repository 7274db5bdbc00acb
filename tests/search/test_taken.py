"""A worker that was stopped for so long that others took its trial over."""

import pytest
from rnn_lab.search import run as search_run
from rnn_lab.search.run import run_search
from rnn_lab.search.study import make_pruner, open_study, optuna

from search.test_search import LR


def fails_first(monkeypatch, plan, where):
    """Before the first trial's training, another worker fails it, as after four heartbeats that did not come."""
    train, calls = search_run.child.train, []

    def taken(*args, **kwargs):
        if not calls:
            other = open_study(where, plan.name, plan.sampler, make_pruner("none", 1), plan.seed)
            other.tell(0, state=optuna().trial.TrialState.FAIL)
        calls.append(args)
        return train(*args, **kwargs)

    monkeypatch.setattr(search_run.child, "train", taken)
    return calls


@pytest.mark.parametrize("storage", ["journal.log", "trials.db"])
def test_the_search_goes_on(plan, worker, tmp_path, monkeypatch, storage):
    made, notes, where = plan(LR), [], str(tmp_path / storage)
    calls = fails_first(monkeypatch, made, where)
    rows = run_search(made, worker(storage=where, note=notes.append), 3)
    assert [row.outcome for row in rows] == ["ok"] * 3 and len(calls) == 4
    lost = open_study(where, made.name, made.sampler, make_pruner("none", 1), made.seed).get_trials()[0]
    assert lost.state.name == "FAIL" and rows[0].number == 1
    assert [row.default for row in rows] == [True, False, False], "the lost trial's values were tried again"
    assert sum("took it over" in note for note in notes) == 1


def test_an_error_of_the_trial_itself_is_no_loss(plan, worker, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr(search_run.child, "train", broken)
    with pytest.raises(ValueError, match="a bug"):
        run_search(plan(LR), worker(), 2)


def test_an_error_of_the_study_is_no_loss(plan, worker, monkeypatch):
    made = plan(LR)
    tell = search_run.open_study

    def with_a_bug(*args):
        study = tell(*args)
        monkeypatch.setattr(study.sampler, "after_trial", lambda *args: 1 / 0)
        return study

    monkeypatch.setattr(search_run, "open_study", with_a_bug)
    with pytest.raises(ZeroDivisionError):
        run_search(made, worker(), 2)
