"""The search itself: trials one after the other, each an ordinary run in a process of its own.

    DIR/search.json           what all workers of the search have in common
    DIR/journal.log           Optuna's storage, unless another is named
    DIR/trials.json           every trial as a row (trials.py)
    DIR/runs/trial-NNNN/      the runs
    DIR/configs/, logs/       what each was started with, and what it printed
    DIR/confirm/, confirm.json  the winner and the default again, with fresh seeds (confirm.py)

Several workers may run the same command on one folder, or on many machines with one database. A worker that is
killed loses nothing: the next one takes its trial up from its last checkpoint.
"""

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.search import child
from rnn_lab.search.plan import Candidate, SearchPlan
from rnn_lab.search.shapes import Infeasible
from rnn_lab.search.study import TrialLock, make_pruner, open_study, optuna, recover, shown_storage, stable
from rnn_lab.search.trials import SPENT, TrialRow, best_of, default_of, outcome_of, rows_of, write_trials
from rnn_lab.system.atomic import write_text_atomic

_WAIT_SECONDS = 2.0
_MAX_FAILURES = 3
_MAX_INFEASIBLE = 100


class TrialFailed(RnnLabError):
    """A trial ended with an error that is no property of its configuration; the search goes on."""


@dataclass(frozen=True)
class Worker:
    """What one call of `rnn-lab search` brings besides the plan.

    Attributes:
        out: folder of the search.
        storage: see `study.open_storage`.
        program: command of rnn-lab for the runs.
        timeout: seconds that a run may take; None for no limit.
        checkpoints: whether to keep those of all trials, or of the best only.
        note: who is told what happened.
        ended: who is told of every trial that ended, with the best so far.
        wait: whether to stay while trials of other workers run, and take up those whose worker dies.
    """

    out: Path
    storage: str
    program: tuple[str, ...]
    timeout: float | None
    checkpoints: Literal["best", "all"]
    note: Callable[[str], None]
    ended: Callable[[TrialRow, TrialRow | None], None]
    wait: bool = False


def run_search(plan: SearchPlan, worker: Worker, trials: int) -> list[TrialRow]:
    """Run trials until the study holds `trials` of them, those of other workers counted; the rows of all.

    Raises:
        ConfigError: the folder is another search's, or the storage cannot be used.
        RnnLabError: three trials in a row failed, or a hundred in a row were infeasible.
    """
    optuna()  # before anything is written
    _claim(plan, worker)
    warmup = plan.report_every * 4 if plan.pruner == "median" else plan.report_every
    study = open_study(worker.storage, plan.name, plan.sampler, make_pruner(plan.pruner, warmup), plan.seed)
    host = socket.gethostname()
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(plan.default_point(), user_attrs={"default": True}, skip_if_exists=True)
    while True:
        recover(study, worker.out / "locks", host, worker.note)
        rows = rows_of(study)
        write_trials(worker.out, plan.identity, rows)
        if sum(row.outcome in SPENT or row.outcome == "running" for row in rows) >= trials:
            if not worker.wait or all(row.outcome != "running" for row in rows):
                return rows
            time.sleep(_WAIT_SECONDS)
            continue
        _stop_if_hopeless(rows, worker.out)
        objective = _Objective(plan, worker, host)
        try:
            with stable():
                study.optimize(objective, n_trials=1, catch=(TrialFailed,))
        except Exception as error:
            if error is objective.error or not _taken(study, objective.number):
                raise
            if objective.error is not None:  # its own, which the study did not take either
                raise objective.error from error
            worker.note(f"trial {objective.number}: this worker was not heard of for so long that others took it over")
            continue
        finally:
            objective.release()
        rows = rows_of(study)
        write_trials(worker.out, plan.identity, rows)
        _tidy(rows, worker)
        worker.ended(next(row for row in rows if row.number == objective.number), best_of(rows))


def _taken(study: Any, number: int) -> bool:
    """Whether another worker has taken this one for gone, and failed its trial: the study takes nothing of it then."""
    trial = next((t for t in study.get_trials(deepcopy=False) if t.number == number), None)
    return trial is not None and trial.state.name == "FAIL" and outcome_of(trial) is None


def _is_default(trial: Any) -> bool:
    """Whether the default is tried. Of workers that begin at one moment each queues it: the first counts."""
    if not trial.user_attrs.get("default"):
        return False
    others = trial.study.get_trials(deepcopy=False)
    queued = (t.number for t in others if t.user_attrs.get("default") and t.state.name != "FAIL")  # lost: queued again
    first = bool(trial.number == min(queued))
    if not first:
        trial.set_user_attr("default", False)
    return first


class _Objective:
    """What Optuna calls: trains one trial and gives its metric."""

    def __init__(self, plan: SearchPlan, worker: Worker, host: str) -> None:
        self.plan, self.worker, self.host = plan, worker, host
        self.number = -1
        self.error: Exception | None = None
        """What broke in the trial itself: neither how it ended nor the study's refusal of one that others failed."""
        self._lock: TrialLock | None = None

    def release(self) -> None:
        """Let go of the trial, once the study knows how it ended: until then others would take its worker for gone."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __call__(self, trial: Any) -> float:
        """Value of the trial.

        Raises:
            TrialPruned: it was stopped early, diverged, ran out of memory, or is infeasible.
            TrialFailed: it ended with an error.
        """
        self.number = trial.number
        self._lock = TrialLock(self.worker.out / "locks", trial.number)
        descriptor = self._lock.acquire()
        try:
            trial.set_user_attr("host", self.host)
            return self._train(trial, descriptor)
        except (TrialFailed, optuna().TrialPruned, optuna().exceptions.UpdateFinishedTrialError):
            raise
        except Exception as error:
            self.error = error
            raise

    def _train(self, trial: Any, descriptor: int) -> float:
        plan, worker = self.plan, self.worker
        point = {dimension.key: dimension.suggest(trial) for dimension in plan.space}
        is_default = _is_default(trial)
        try:
            candidate = plan.default_candidate() if is_default else plan.candidate(point)
        except Infeasible as error:
            raise self._pruned(trial, "infeasible", str(error)) from error
        name = str(trial.user_attrs.get("run", f"trial-{trial.number:04d}"))
        trial.set_user_attr("run", name)
        trial.set_user_attr("config", {key: candidate.tables[key] for key in ("model", "optimizer")})
        _record_size(trial, candidate.params, plan.target)
        ended = child.train(
            worker.program,
            write_config(worker.out, name, candidate),
            worker.out / "runs" / name,
            worker.out / "logs" / f"{name}.log",
            on_step=_Reporter(trial, plan.report_every, never_prune=is_default),
            timeout=worker.timeout,
            keep_open=(descriptor,),
        )
        if (counted := ended.result.get("params")) is not None:
            _record_size(trial, int(counted), plan.target)
        if ended.outcome == "stopped":
            raise self._pruned(trial, "pruned", None)
        if ended.outcome in ("diverged", "oom"):
            raise self._pruned(trial, ended.outcome, ended.reason)
        value = ended.result.get(plan.metric)
        if ended.outcome != "ok" or value is None:
            outcome = "failed" if ended.outcome == "ok" else ended.outcome
            reason = ended.reason or f"the run has no {plan.metric}"
            trial.set_user_attr("reason", reason)
            trial.set_user_attr("outcome", outcome)
            raise TrialFailed(reason)
        trial.set_user_attr("outcome", "ok")
        return float(value)

    def _pruned(self, trial: Any, outcome: str, reason: str | None) -> Exception:
        """Record how it ended; the exception that tells Optuna."""
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("outcome", outcome)
        pruned: Exception = optuna().TrialPruned(reason or outcome)
        return pruned


class _Reporter:
    """Reports the mean training loss of every `every` steps; True once the pruner gives the trial up.

    All trials see the same batches, so that means over equal steps compare without the noise of different data.
    """

    def __init__(self, trial: Any, every: int, *, never_prune: bool) -> None:
        self._trial, self._every, self._never_prune = trial, every, never_prune
        self._sum, self._last = 0.0, 0.0

    def __call__(self, line: dict[str, Any]) -> bool:
        self._last = self._last if line["loss"] is None else float(line["loss"])  # None: the step was skipped
        self._sum += self._last
        if line["step"] % self._every:
            return False
        self._trial.report(self._sum / self._every, line["step"])
        self._sum = 0.0
        return not self._never_prune and bool(self._trial.should_prune())


def write_config(out: Path, name: str, candidate: Candidate) -> Path:
    """The TOML that a run is started from; its path."""
    path = out / "configs" / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, tomli_w.dumps(candidate.tables))
    return path


def summary(plan: SearchPlan, rows: Sequence[TrialRow]) -> dict[str, Any]:
    """What `search --json` prints: counts of outcomes, the best trial and the default."""
    best, default = best_of(rows), default_of(rows)
    outcomes = {name: sum(row.outcome == name for row in rows) for name in (*SPENT, "infeasible", "running")}
    gain = None
    if best is not None and default is not None and default.value is not None and best.value is not None:
        gain = default.value - best.value
    return {
        "study": plan.name,
        "metric": plan.metric,
        "trials": sum(outcomes[name] for name in SPENT),
        "outcomes": outcomes,
        "best": None if best is None else _row(best),
        "default": None if default is None else _row(default),
        "gain": gain,
        "largest_deviation": max((abs(row.deviation) for row in rows if row.deviation is not None), default=None),
    }


def _row(row: TrialRow) -> dict[str, Any]:
    shown = ("number", "value", "params", "deviation", "point", "config", "run", "host")
    return {name: getattr(row, name) for name in shown}


def _claim(plan: SearchPlan, worker: Worker) -> None:
    """Begin the search in its folder, or make sure that the folder holds this one.

    Raises:
        ConfigError: it holds another search, something else, or cannot be written.
    """
    file = worker.out / "search.json"
    mine = {"study": plan.name, "storage": shown_storage(worker.storage), **plan.identity}
    try:
        worker.out.mkdir(parents=True, exist_ok=True)
        with _alone_in(worker.out):  # or a folder where another worker is about to begin looks like somebody's
            if not file.exists():
                if any(worker.out.iterdir()):
                    raise ConfigError(f"--out {worker.out} is not empty and holds no search: choose another folder")
                write_text_atomic(file, json.dumps(mine, indent=1) + "\n")
                return
        before = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--out {worker.out}: cannot write there: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is damaged ({error}): restore it, or choose another --out") from error
    changed = _differences(before, json.loads(json.dumps(mine)))
    if changed:
        raise ConfigError(
            f"{worker.out} holds another search: {changed[0]}"
            + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
            + "; give the same options to go on with it, or another --out"
        )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder's own lock, which leaves nothing in it; a file system without such locks is used as it is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            line for key in keys for line in _differences(before.get(key), now.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if before == now else [f"{path} was {before!r:.80} and is {now!r:.80}"]


def _stop_if_hopeless(rows: Sequence[TrialRow], out: Path) -> None:
    ended = [row for row in rows if row.outcome not in ("running", "waiting")]
    tail = ended[-_MAX_FAILURES:]
    if len(tail) == _MAX_FAILURES and all(row.outcome in ("failed", "timeout") for row in tail):
        log = out / "logs" / f"{tail[-1].run}.log"
        raise RnnLabError(
            f"{_MAX_FAILURES} trials in a row failed, the last one with: {tail[-1].reason} (its output: {log}). "
            "Mend the cause; the same command with a larger --trials goes on"
        )
    tail = ended[-_MAX_INFEASIBLE:]
    if len(tail) == _MAX_INFEASIBLE and all(row.outcome == "infeasible" for row in tail):
        raise RnnLabError(
            f"{_MAX_INFEASIBLE} proposals in a row have no shape on target, the last one because: {tail[-1].reason}. "
            "Search fewer exact values (a range of a solved field follows the target), or choose another --target"
        )


def _record_size(trial: Any, params: int, target: int) -> None:
    trial.set_user_attr("params", params)
    trial.set_user_attr("deviation", (params - target) / target)


def _tidy(rows: Sequence[TrialRow], worker: Worker) -> None:
    """Remove the checkpoints of trials that have ended and are not the best: 64 of them fill a disk."""
    best = best_of(rows)
    if worker.checkpoints == "all":
        return
    for row in rows:
        if row.run and row.outcome in SPENT and row is not best:
            shutil.rmtree(worker.out / "runs" / row.run / "checkpoints", ignore_errors=True)
