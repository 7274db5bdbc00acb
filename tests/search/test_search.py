"""A search finds, counts, survives what kills it, and never mixes with another."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from datetime import datetime
from pathlib import Path

import pytest
import rnn_lab.search.run as search_run
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.search import study
from rnn_lab.search.confirm import confirm, paired_gain
from rnn_lab.search.run import run_search, summary
from rnn_lab.search.study import TrialLock, make_pruner, open_storage, open_study, shown_storage
from rnn_lab.search.trials import best_of, default_of, read_trials

LR = "lr=1e-4:1e-1:log"


def outcomes(rows):
    return [row.outcome for row in rows]


def calls(folder, name):
    return (folder / "runs" / name / "calls").read_text().split()


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_a_search_improves_on_its_default(plan, worker, sampler):
    made = plan(LR, sampler=sampler)
    rows = run_search(made, worker(), 14)
    assert outcomes(rows) == ["ok"] * 14
    default, best = default_of(rows), best_of(rows)
    assert default.number == 0 and default.config["optimizer"]["lr"] == 3e-4
    assert best.value < default.value - 0.5, "the fake's best rate is 1e-2"
    told = summary(made, rows)
    assert told["gain"] == pytest.approx(default.value - best.value)
    assert told["largest_deviation"] <= 0.005


def test_the_same_seed_proposes_the_same_and_no_number_twice(plan, worker, tmp_path):
    made = plan(LR)
    first = [row.point for row in run_search(made, worker(), 3)]
    more = [row.point for row in run_search(made, worker(), 6)]
    assert more[:3] == first
    assert len({point["optimizer.lr"] for point in more}) == 6, "a restart does not begin with the first numbers again"
    again = worker(out=tmp_path / "again", storage=str(tmp_path / "again" / "journal.log"))
    assert [row.point for row in run_search(made, again, 6)] == more


def test_all_trials_see_the_same_data(plan, worker, tmp_path):
    import tomllib

    run_search(plan(LR, "shape"), worker(), 4)
    configs = [tomllib.loads(path.read_text()) for path in sorted((tmp_path / "search" / "configs").glob("*.toml"))]
    assert len(configs) == 4
    assert len({json.dumps([config["data"], config["train"]], sort_keys=True) for config in configs}) == 1


@pytest.mark.parametrize(("mode", "outcome"), [("nan", "diverged"), ("oom", "oom")])
def test_what_a_configuration_does_is_a_result(plan, worker, monkeypatch, mode, outcome):
    monkeypatch.setenv("FAKE", mode)
    rows = run_search(plan(LR), worker(), 5)
    assert outcomes(rows) == [outcome] * 5
    assert best_of(rows) is None and rows[0].reason


def test_three_failures_in_a_row_stop_the_search(plan, worker, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE", "crash")
    with pytest.raises(RnnLabError, match=r"3 trials in a row failed.*something broke.*trial-0002.log"):
        run_search(plan(LR), worker(), 9)
    _, rows = read_trials(tmp_path / "search")
    assert outcomes(rows) == ["failed"] * 3


def test_a_hanging_trial_is_a_timeout(plan, worker, monkeypatch):
    monkeypatch.setenv("FAKE", "hang")
    began = time.monotonic()
    rows = run_search(plan(LR), worker(timeout=1.0), 1)
    assert outcomes(rows) == ["timeout"] and time.monotonic() - began < 30


def test_infeasible_proposals_are_recorded_and_not_trained(plan, worker, tmp_path):
    made = plan("depth=2,3,4", "expansion=1.0,1.5,2.0")
    rows = run_search(made, worker(), 3)
    trained = [row for row in rows if row.outcome == "ok"]
    refused = [row for row in rows if row.outcome == "infeasible"]
    assert len(trained) == 3 and refused
    assert all("no shape within 0.5 %" in row.reason and row.run is None for row in refused)
    assert len(list((tmp_path / "search" / "runs").iterdir())) == 3


def test_bad_trials_are_pruned_and_the_default_never(plan, worker, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE", "tail")  # its last line stays a while, so that the pruner can act
    made = plan("lr=1e-9:1e-1:log", pruner="median", train={"steps": 20})
    rows = run_search(made, worker(), 12)
    assert "pruned" in outcomes(rows) and rows[0].outcome == "ok"
    pruned = next(row for row in rows if row.outcome == "pruned")
    assert pruned.value is None and pruned.last_reported > best_of(rows).value
    result = json.loads((tmp_path / "search" / "runs" / pruned.run / "result.json").read_text())
    assert result["status"] == "interrupted", "an ordinary run, which `resume` can go on with"
    steps = [int(step) for step in rows[0].reported]
    assert steps == list(range(1, 21)), "losses are reported at equal steps"


def test_reported_losses_are_means_over_equal_steps(plan, worker):
    rows = run_search(plan(LR, report_every=5), worker(), 1)
    base = rows[0].value
    expected = [base + sum(1 / step for step in range(first, first + 5)) / 5 for first in (1, 6, 11, 16)]
    assert list(rows[0].reported.values()) == pytest.approx(expected)


def test_another_search_is_refused_by_what_differs(plan, worker, tmp_path):
    run_search(plan(LR), worker(), 1)
    with pytest.raises(ConfigError, match=r"another search: sampler_seed was 0 and is 1"):
        run_search(plan(LR, seed=1), worker(), 2)
    with pytest.raises(ConfigError, match=r"another search: config.train.seed"):
        run_search(plan(LR, train={"seed": 7}), worker(), 2)
    (tmp_path / "search" / "search.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        run_search(plan(LR), worker(), 2)
    other = tmp_path / "full"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"^--out .* is not empty and holds no search"):
        run_search(plan(LR), worker(out=other), 1)


SEARCH = """
import sys
sys.argv = ["rnn-lab"]
sys.path.insert(0, {here!r})
from pathlib import Path
from rnn_lab_cli.main import main
from rnn_lab_cli.commands import search
import rnn_lab.search.run as run
real = run.Worker
run.Worker = lambda **options: real(**{{**options, "program": (sys.executable, {fake!r})}})
sys.exit(main({args!r}))
"""


def start(tmp_path, corpus, trials, *, fake="", storage=None):
    """`rnn-lab search` in a process of its own, which trains by the fake."""
    args = ["search", "e61", "--target", "99K", "-s", LR, "--trials", str(trials), "--steps", "20", "--data",
            str(corpus), "--seq-len", "16", "--batch-size", "2", "--out", str(tmp_path / "search"), "--device", "cpu",
            *(["--storage", storage] if storage else [])]  # fmt: skip
    code = SEARCH.format(here=str(Path(__file__).parent), fake=str(tmp_path / "fake.py"), args=args)
    return subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "FAKE": fake},
    )  # fmt: skip


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def training(tmp_path, name="trial-0000"):
    file = tmp_path / "search" / "runs" / name / "metrics.jsonl"
    return file.exists() and file.stat().st_size > 0


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(plan, worker, tmp_path, corpus):
    worker()  # writes the fake
    process = start(tmp_path, corpus, 2, fake="slow")
    wait_for(lambda: training(tmp_path))
    process.kill()
    process.communicate()
    assert not TrialLock(tmp_path / "search" / "locks", 0).free(), "the orphan still trains, and holds the trial"
    wait_for(lambda: TrialLock(tmp_path / "search" / "locks", 0).free())
    done = start(tmp_path, corpus, 2)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert "its values are queued again" in err
    _, rows = read_trials(tmp_path / "search")
    assert outcomes(rows) == ["ok", "ok"]
    assert rows[0].run == "trial-0000" and rows[0].default
    assert calls(tmp_path / "search", "trial-0000") == ["fit"], "the orphan had finished: nothing is trained again"


@pytest.mark.slow
def test_an_interrupted_trial_is_resumed(worker, tmp_path, corpus):
    worker()
    process = start(tmp_path, corpus, 2, fake="slow")
    wait_for(lambda: training(tmp_path))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (
        json.loads((tmp_path / "search" / "runs" / "trial-0000" / "result.json").read_text())["status"] == "interrupted"
    )
    done = start(tmp_path, corpus, 2)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert calls(tmp_path / "search", "trial-0000") == ["fit", "resume"]
    _, rows = read_trials(tmp_path / "search")
    assert outcomes(rows) == ["ok", "ok"]


@pytest.mark.slow
@pytest.mark.parametrize("storage", [None, "trials.db"])
def test_two_workers_share_the_trials(worker, tmp_path, corpus, storage):
    worker()
    where = storage and str(tmp_path / storage)
    processes = [start(tmp_path, corpus, 8, fake="tail", storage=where) for _ in range(2)]
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    _, rows = read_trials(tmp_path / "search")
    assert 8 <= len(rows) <= 9 and set(outcomes(rows)) <= {"ok", "pruned"}
    assert sum(row.default for row in rows) == 1
    assert len({row.run for row in rows}) == len(rows)
    assert all("trial" in text for text in errors), "both worked"


def test_sqlite_and_journal_give_the_same_trials(plan, worker, tmp_path):
    made = plan(LR)
    journal = run_search(made, worker(), 4)
    other = tmp_path / "sqlite"
    sqlite = run_search(made, worker(out=other, storage=str(other / "trials.db")), 4)
    assert [(row.point, row.value) for row in sqlite] == [(row.point, row.value) for row in journal]


def test_a_journal_whose_last_line_was_cut_goes_on(plan, worker, tmp_path):
    made = plan(LR)
    run_search(made, worker(), 2)
    with (tmp_path / "search" / "journal.log").open("ab") as file:
        file.write(b'{"op_code": 5, "worker')
    assert outcomes(run_search(made, worker(), 3)) == ["ok"] * 3


def test_storages_that_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    for where, message in [
        (str(tmp_path / "file" / "x.db"), "cannot be opened"),
        ("nosuch://user:secret@host/db", "cannot be opened|driver"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            open_storage(where)
        assert "secret" not in str(caught.value)
    assert shown_storage("postgresql://me:secret@host:1/db") == "postgresql://me:***@host:1/db"
    assert shown_storage("runs/journal.log") == "runs/journal.log"


def test_a_trial_is_not_tried_for_ever(plan, worker, tmp_path):
    from rnn_lab.search.study import recover

    study = open_study(str(tmp_path / "j.log"), "s", "random", make_pruner("none", 1), 0)
    notes = []
    study.enqueue_trial({"x": 0.5})
    while any(trial.state.name == "WAITING" for trial in study.trials):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("host", "here")
        lock = TrialLock(tmp_path / "locks", trial.number)
        lock.acquire()
        recover(study, tmp_path / "locks", "here", notes.append)
        assert study.trials[-1].state.name == "RUNNING", "its worker lives"
        lock.release()
        recover(study, tmp_path / "locks", "elsewhere", notes.append)
        assert study.trials[-1].state.name == "RUNNING", "only its own machine can know"
        recover(study, tmp_path / "locks", "here", notes.append)
        recover(study, tmp_path / "locks", "here", notes.append)
    assert "died 3 times" in notes[-1]
    assert [trial.params["x"] for trial in study.trials] == [0.5] * 3


def test_two_workers_may_begin_at_once(plan, worker, monkeypatch):
    made, write, other = plan(LR), search_run.write_text_atomic, []

    def slowly(path, text):
        (path.parent / ".half-written").write_text("")
        if not other:
            other.append(threading.Thread(target=search_run._claim, args=(made, worker())))
            other[0].start()
            other[0].join(0.3)
        write(path, text)
        (path.parent / ".half-written").unlink()

    failed = []
    monkeypatch.setattr(search_run, "write_text_atomic", slowly)
    monkeypatch.setattr(threading, "excepthook", lambda args: failed.append(args.exc_value))
    search_run._claim(made, worker())
    other[0].join(60)
    assert not failed and not other[0].is_alive()


def test_a_trial_that_ends_while_others_look_is_nobodys_loss(tmp_path, monkeypatch):
    from rnn_lab.search.study import recover

    study = open_study(str(tmp_path / "j.log"), "s", "random", make_pruner("none", 1), 0)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("host", "here")

    def free(lock):
        study.tell(trial.number, 1.0)  # by its worker, after the look at the study and before the look at the lock
        return True

    monkeypatch.setattr(TrialLock, "free", free)
    recover(study, tmp_path / "locks", "here", pytest.fail)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_a_trial_is_held_until_the_study_knows_how_it_ended(plan, worker, tmp_path, monkeypatch):
    made, told, release = plan(LR), [], TrialLock.release

    def spy(lock):
        study = open_study(worker().storage, made.name, "random", make_pruner("none", 1), 0)
        told.extend(trial.state.name for trial in study.trials)
        release(lock)

    monkeypatch.setattr(TrialLock, "release", spy)
    run_search(made, worker(), 1)
    assert told == ["COMPLETE"]


def test_only_the_best_keeps_its_checkpoints(plan, worker, tmp_path):
    made = plan(LR)
    rows = run_search(made, worker(), 2)
    for row in rows:
        (tmp_path / "search" / "runs" / row.run / "checkpoints").mkdir()
    rows = run_search(made, worker(), 3)
    kept = [row.run for row in rows if (tmp_path / "search" / "runs" / row.run / "checkpoints").exists()]
    assert kept in ([best_of(rows).run], []), "the third had none"


def test_the_winner_is_confirmed_on_fresh_seeds(plan, worker, tmp_path):
    made = plan(LR)
    rows = run_search(made, worker(), 8)
    table = confirm(made, worker(), rows, 3)
    assert table["seeds"] == [43, 44, 45]
    fresh = sum(43e-4 + i * 1e-4 for i in range(3)) / 3 - 42e-4
    assert table["mean"]["best"] == pytest.approx(best_of(rows).value + fresh)
    assert table["gain"]["mean"] == pytest.approx(default_of(rows).value - best_of(rows).value)
    assert json.loads((tmp_path / "search" / "confirm.json").read_text()) == table
    again = confirm(made, worker(), rows, 4)
    assert len(again["seeds"]) == 4
    assert (tmp_path / "search" / "confirm" / "best-seed-43" / "calls").read_text() == "fit\n", "finished runs are kept"


def test_the_interval_of_a_gain_is_students():
    gain = paired_gain([2.0, 2.2, 2.4], [1.9, 2.0, 2.1])
    # differences 0.1, 0.2, 0.3: sd 0.1, t(0.975, 2) = 4.302653
    assert gain["mean"] == pytest.approx(0.2)
    assert gain["high"] - gain["mean"] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert paired_gain([2.0], [1.0]) == {"mean": 1.0, "low": None, "high": None, "n": 1}


@pytest.mark.slow
def test_a_real_trial_is_an_ordinary_run_on_target(plan, worker, tmp_path):
    from rnn_lab.comparison.records import read_runs

    rows = run_search(plan("shape", "optimizer"), worker(real=True), 2)
    assert outcomes(rows) == ["ok", "ok"], [row.reason for row in rows]
    runs = read_runs(tmp_path / "search" / "runs")
    assert [run.name for run in runs] == ["trial-0000", "trial-0001"]
    for run, row in zip(runs, rows, strict=True):
        assert run.status == "ok" and run.result["val_loss"] == row.value
        assert run.params == row.params and abs(run.result["certificate"]["deviation"]) <= 0.005
    assert runs[0].chain == runs[1].chain, "the same batches"


def test_a_worker_that_stays_takes_over_what_a_dead_machine_left(plan, worker, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "HEARTBEAT", 1)
    monkeypatch.setattr("rnn_lab.search.run._WAIT_SECONDS", 0.2)
    made, storage = plan("lr=1e-4:1e-1:log"), f"sqlite:///{tmp_path / 'shared.db'}"
    with study.stable(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a heartbeat without a worker is what this is about
        shared = study.open_study(storage, made.name, made.sampler, study.make_pruner("none", 1), made.seed)
        shared.enqueue_trial(made.default_point(), user_attrs={"default": True})
        theirs = shared.ask()
        theirs.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
        theirs.set_user_attr("host", "elsewhere")
        shared._storage.record_heartbeat(theirs._trial_id)
    assert [row.outcome for row in run_search(made, worker(storage=storage), 2)] == ["running", "ok"]
    rows = run_search(made, worker(storage=storage, wait=True), 2)
    assert [row.outcome for row in rows] == ["ok", "ok"] and sum(row.default for row in rows) == 1
    assert any("its worker is gone; its values are queued again" in text for text in worker.notes)


def test_a_new_trial_of_a_machine_in_another_time_zone_is_left_alone(tmp_path, monkeypatch):
    class Trial:
        number, user_attrs, datetime_start = 7, {}, datetime(2000, 1, 1)

    now = [100.0]
    monkeypatch.setattr(study.time, "monotonic", lambda: now[0])
    assert not study._lost(Trial, tmp_path, "here")
    now[0] += study.HEARTBEAT + 1
    assert study._lost(Trial, tmp_path, "here")
