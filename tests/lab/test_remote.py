"""Tasks on workers that are reached by calls: results that travel, workers that vanish, differing installations."""

import io
import os
import signal
import sys
import tarfile
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.identity import Identity, difference, identity, identity_of
from rnn_lab.lab import runner as runner_module
from rnn_lab.lab.archive import PIECE_BYTES, pieces, unpack
from rnn_lab.lab.executor import Setting
from rnn_lab.lab.remote import RemoteExecutor, Terms, WorkerGone
from rnn_lab.lab.runner import Runner

from .conftest import FAKE, Recorder

HERE = Identity("head", {"core": "rnn-lab-core 0.1.0, code aa"})


class InProcess:
    """A worker without a machine; `vanish` is what the death of its machine looks like."""

    def __init__(self, answers=True):
        self.runner, self.gone, self.answers = Runner(), False, answers
        self.calls = ThreadPoolExecutor(1)
        self.asked = []

    def ask(self, method, *args):
        answer = Future()
        self.asked.append(method)
        if self.gone:
            answer.set_exception(WorkerGone("its machine died"))
        elif self.answers:
            self.calls.submit(self._answer, answer, method, args)
        return answer

    def _answer(self, answer, method, args):
        try:
            given = getattr(self.runner, method)(*args)
        except Exception as error:
            answer.set_exception(error)
        else:
            answer.set_exception(WorkerGone("its machine died")) if self.gone else answer.set_result(given)

    def vanish(self):
        self.gone = True
        self.calls.shutdown()
        if (process := self.runner._process) is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.stdin.close()
            process.wait()

    dismiss = vanish


class Pool:
    def __init__(self, count, answers=True):
        self.count, self.answers, self.hired, self.closed = count, answers, [], False

    def slots(self):
        return self.count

    def lack(self):
        return "no machine has a place"

    def hire(self):
        self.hired.append(InProcess(self.answers))
        return self.hired[-1]

    def close(self):
        self.closed = True
        for worker in self.hired:
            worker.vanish()

    def runs(self, name):
        """The worker that runs the job."""
        return next(worker for worker in self.hired if worker.runner.order.task.name == f"{name}-s42")


@pytest.fixture
def remote(lab, monkeypatch, tmp_path):
    """`remote(pool, shared=...)` is the executor of the lab's series."""
    monkeypatch.setattr(runner_module, "identity_of", lambda *_: HERE)
    monkeypatch.setattr("rnn_lab.lab.remote.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("rnn_lab.lab.remote._TICK", 0.05)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    pools = []

    def make(pool, **options):
        pools.append(pool)
        options = {"shared": False, "grace": 5.0, **options}
        return RemoteExecutor(pool, Terms(lab.path, tuple(FAKE[1:]), ("--device", "cpu"), HERE, **options))

    yield make
    for pool in pools:
        pool.close()


def scratch_files(tmp_path):
    return [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]


def test_results_travel_and_are_judged_as_here(lab, remote, tmp_path):
    pool = Pool(2)
    series = lab.begin(a="ok", b="nan", c="oom ok", d="crash", e="kill ok")
    scheduler = lab.run(series, executor=remote(pool))
    assert lab.states() == {"a": "done", "b": "diverged", "c": "done", "d": "failed", "e": "failed"}
    assert lab.record("c")["attempts"][1]["changes"] == {"train.grad_accum": [1, 2]}
    assert [lab.starts(name) for name in "abcde"] == [["fit"], ["fit"], ["fit", "fit"], ["fit"], ["fit"]]
    assert (lab.path / "runs/a-s42/result.json").is_file() and "planted" in (lab.path / "logs/d-s42.1.log").read_text()
    assert (lab.path / "runs/e-s42/checkpoints/step_3/state").is_file(), "what is not finished keeps its checkpoints"
    assert len(pool.hired) <= 3, "workers take one task after the other; a killed run is no fault of theirs"
    assert scratch_files(tmp_path) == [] and not (lab.path / ".mark").exists()
    assert pool.closed and not scheduler.interrupted
    lab.resume(executor=remote(Pool(2)))
    assert lab.states()["e"] == "done" and lab.starts("e") == ["fit", "resume"] and lab.starts("a") == ["fit"]
    assert not (lab.path / "runs/e-s42/checkpoints").exists(), "those of a finished run stay away"


@pytest.mark.parametrize("shared", [False, True])
def test_a_worker_that_vanishes_costs_no_run(lab, remote, shared):
    pool = Pool(2)

    def kill(rows):
        if rows[0].attempt == 1 and rows[0].line.get("step") and not pool.runs("a").gone:
            pool.runs("a").vanish()

    lab.run(lab.begin(a="keep ok", b="ok", c="ok"), Recorder(kill), executor=remote(pool, shared=shared))
    assert set(lab.states().values()) == {"done"}
    first, second = lab.record("a")["attempts"]
    assert first["lost"].endswith("vanished: its machine died") and first["exit_code"] is None
    assert second["lost"] is None
    assert lab.starts("a") == ["fit", "resume" if shared else "fit"], "its checkpoint is where others see it, or gone"
    assert lab.starts("b") == lab.starts("c") == ["fit"]


def test_a_run_below_which_workers_keep_vanishing_is_blamed(lab, remote):
    pool = Pool(1)

    def kill(rows):
        if rows[0].line.get("step") and rows[0].state == "running" and not pool.hired[-1].gone:
            pool.hired[-1].vanish()

    lab.run(lab.begin(a="slow"), Recorder(kill), executor=remote(pool))
    assert lab.states() == {"a": "failed"} and len(lab.record("a")["attempts"]) == 2
    assert all(attempt["lost"] for attempt in lab.record("a")["attempts"])


def test_a_kept_worker_that_vanished_meanwhile_is_no_loss(lab, remote):
    pool = Pool(1)
    executor = remote(pool)
    lab.run(lab.begin(a="ok"), executor=executor)  # closes the pool, and with it the worker that was kept
    lab.acts(a="ok", b="ok")
    executor.submit(task := executor_task(lab, "b"))
    while (status := executor.poll(task.name)).state != "ended":
        pass
    assert (status.exit_code, status.lost) == (0, None) and len(pool.hired) == 2


def executor_task(lab, name):
    from rnn_lab.lab.executor import Task

    args = ("fit", "-o", "train.seed=42")
    return Task(f"{name}-s42", args, lab.path / f"runs/{name}-s42", lab.path / f"logs/{name}-s42.1.log")


def test_an_interrupt_brings_checkpoints_back_and_resume_runs_what_is_missing(lab, remote):
    def stop(rows):
        if rows[0].state == "running" and rows[0].line.get("step"):
            os.kill(os.getpid(), signal.SIGINT)

    scheduler = lab.run(lab.begin(a="slow ok", b="ok"), Recorder(stop), executor=remote(Pool(1)))
    assert scheduler.interrupted and lab.record("a")["state"] == "pending"
    assert (lab.path / "runs/a-s42/checkpoints/step_5/state").is_file()
    lab.resume(executor=remote(Pool(1)))
    assert lab.states() == {"a": "done", "b": "done"}
    assert (lab.starts("a"), lab.starts("b")) == (["fit", "resume"], ["fit"])


def test_a_task_that_waits_for_a_machine_ends_at_once(lab, remote):
    pool = Pool(1, answers=False)

    def stop(rows):
        if pool.hired and not pool.hired[0].gone:
            os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    assert lab.run(lab.begin(a="ok"), Recorder(stop), executor=remote(pool, grace=60.0)).interrupted
    assert lab.states() == {"a": "pending"} and lab.starts("a") == [] and pool.hired[0].gone
    assert time.monotonic() - began < 30.0, "nothing runs that could need its grace"


def test_a_hung_run_is_ended_though_it_ignores_sigterm(lab, remote):
    lab.run(lab.begin(a="hang", b="ok"), stall=2.0, executor=remote(Pool(2), grace=0.3))
    assert lab.states() == {"a": "timeout", "b": "done"} and lab.record("a")["attempts"][0]["exit_code"] == 137


def test_a_machine_that_falls_silent_is_given_up(lab, remote, monkeypatch):
    monkeypatch.setattr("rnn_lab.lab.remote.MARGIN_SECONDS", 0.1)
    pool = Pool(1)

    def silence(rows):
        if rows[0].line.get("step"):
            pool.hired[0].answers = False

    lab.run(lab.begin(a="slow"), Recorder(silence), stall=0.5, executor=remote(pool, grace=0.2))
    assert lab.states() == {"a": "timeout"} and pool.hired[0].gone


def test_a_worker_with_another_rnn_lab_is_refused_by_name(lab, remote, monkeypatch):
    other = Identity("node7", {"core": "rnn-lab-core 0.2.0, code bb", "plugin mine": "mine 1.0, code cc"})
    monkeypatch.setattr(runner_module, "identity_of", lambda *_: other)
    lab.run(lab.begin(a="ok"), executor=remote(Pool(1)))
    reason = lab.record("a")["reason"]
    assert lab.states() == {"a": "failed"} and lab.starts("a") == []
    assert "core: rnn-lab-core 0.2.0, code bb on node7, rnn-lab-core 0.1.0, code aa on head" in reason
    assert "plugin mine: mine 1.0, code cc on node7, not there on head" in reason


def test_no_place_at_all(lab, remote):
    with pytest.raises(RnnLabError, match="no machine has a place"):
        lab.run(lab.begin(a="ok"), executor=remote(Pool(0)))


def test_identity_tells_installations_apart(tmp_path):
    (tmp_path / "cell.py").write_text("x = 1\n")
    mine = identity_of(sys.executable, os.environ, str(tmp_path))
    assert mine == identity(str(tmp_path)) and mine.parts["core"].startswith("rnn-lab-core 0.")
    (tmp_path / "cell.py").write_text("x = 2\n")
    changed = identity(str(tmp_path))
    assert f"plugin {tmp_path}: code " in difference(mine, changed) and difference(mine, mine) is None
    with pytest.raises(RnnLabError, match=r"cannot be used by .* there: .*no such folder"):
        identity_of(sys.executable, os.environ, str(tmp_path / "nowhere"))


def test_an_archive_is_read_back_in_pieces(tmp_path):
    big = os.urandom(PIECE_BYTES + 1000)
    (tmp_path / "big").write_bytes(big)
    (tmp_path / "empty").touch()
    sent = list(pieces([("run/deep/big", tmp_path / "big"), ("log", tmp_path / "empty")]))
    assert max(map(len, sent)) <= PIECE_BYTES
    left = iter(sent)
    unpack(lambda: next(left, b""), tmp_path / "out")
    assert (tmp_path / "out/run/deep/big").read_bytes() == big and (tmp_path / "out/log").read_bytes() == b""
    cut = iter(sent[:2])
    with pytest.raises(tarfile.TarError):
        unpack(lambda: next(cut, b""), tmp_path / "cut")
    file = io.BytesIO(b"".join(pieces([("../outside", tmp_path / "empty")])))
    with pytest.raises(tarfile.TarError):
        unpack(lambda: file.read(100), tmp_path / "evil")


def test_options_of_executors_are_checked(tmp_path):
    from rnn_lab.lab.local import LOCAL
    from rnn_lab.lab.on_ray import RAY

    def setting(**options):
        return Setting(tmp_path, (), options=options)

    with pytest.raises(ConfigError, match=r"-x addres: unknown key. Did you mean 'address'"):
        RAY.open(setting(addres="local"))
    with pytest.raises(ConfigError, match="-x cpus: unknown key"):
        LOCAL.open(setting(cpus=2))
    with pytest.raises(ConfigError, match="--gpus 0,1: Ray chooses the GPUs"):
        RAY.open(Setting(tmp_path, (), gpus="0,1"))
