"""Optuna's side of a search: storage, sampler, pruner, and trials whose worker died."""

import fcntl
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from rnn_lab.data.streams import require
from rnn_lab.errors import ConfigError
from rnn_lab.search.trials import outcome_of

Sampler = Literal["tpe", "cmaes", "random"]
Pruner = Literal["median", "halving", "none"]
SAMPLERS: tuple[Sampler, ...] = ("tpe", "cmaes", "random")
PRUNERS: tuple[Pruner, ...] = ("median", "halving", "none")
HEARTBEAT = 30
"""Seconds between signs of life of a trial in a database; after four without one, the trial counts as lost."""
MAX_ATTEMPTS = 3
_OPENINGS = 4
_NAMELESS: dict[tuple[datetime, int], float] = {}
"""When a trial was first seen here that no worker has put its name to."""
_SQLITE = (".db", ".sqlite", ".sqlite3")


def optuna() -> Any:
    """The library, with its own log lines turned off: the search prints its own.

    Raises:
        ConfigError: it is not installed.
    """
    library = require("optuna", "rnn-lab search (the extra rnn-lab-core[search])")
    library.logging.set_verbosity(library.logging.ERROR)
    return library


@contextmanager
def stable() -> Iterator[None]:
    """Within it Optuna does not warn that a feature is experimental; the versions that we support have them all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna().exceptions.ExperimentalWarning)
        yield


def open_storage(where: str) -> Any:
    """A journal file, SQLite (`*.db`, `*.sqlite`, `sqlite:///…`) or a database server's URL.

    A journal and SQLite serve the workers of one machine; a server serves many.

    Raises:
        ConfigError: the place cannot be written, the driver is missing, or the server does not answer.
    """
    library = optuna()
    is_url = "://" in where
    url = where if is_url else f"sqlite:///{where}" if where.endswith(_SQLITE) else None
    try:
        if url is None:
            Path(where).parent.mkdir(parents=True, exist_ok=True)
            journal = library.storages.journal
            lock = journal.JournalFileSymlinkLock(where)
            _drop_torn_line(Path(where), lock)
            return library.storages.JournalStorage(journal.JournalFileBackend(where, lock_obj=lock))
        if not is_url:
            Path(where).parent.mkdir(parents=True, exist_ok=True)
        return _database(url)
    except ImportError as error:
        raise ConfigError(f"--storage {shown_storage(where)}: {error}; install the database's driver") from error
    except Exception as error:  # SQLAlchemy, a driver or the file system, each with errors of its own
        if isinstance(error, ConfigError):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"--storage {shown_storage(where)}: cannot be opened: {reason}") from error


def _database(url: str) -> Any:
    """A database, its tables made by whichever worker comes first; the others fail over that once, and try again."""
    # SQLite answers a second writer with an error after five seconds, which a busy machine needs.
    engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else None
    for attempt in range(1, _OPENINGS + 1):
        try:
            with stable():
                return optuna().storages.RDBStorage(
                    url, engine_kwargs=engine, heartbeat_interval=HEARTBEAT, grace_period=4 * HEARTBEAT
                )
        except ImportError:
            raise
        except Exception:
            if attempt == _OPENINGS:
                raise
            time.sleep(attempt)
    raise AssertionError("unreachable")


def _drop_torn_line(journal: Path, lock: Any) -> None:
    """Cut off a last line that a full disk or a crash left incomplete: what follows it could not be read."""
    if not journal.exists() or journal.stat().st_size == 0:
        return
    lock.acquire()
    try:
        with journal.open("rb+") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)
    finally:
        lock.release()


def shown_storage(where: str) -> str:
    """The storage as a person may see it: a URL without its password."""
    scheme, split, rest = where.partition("://")
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}://{user}:***@{place}" if split and at and colon else where


def open_study(where: str, name: str, sampler: Sampler, pruner: Any, seed: int) -> Any:
    """The study `name` in a storage, made if it is new.

    Raises:
        ConfigError: the storage cannot be opened.
    """
    library = optuna()
    return library.create_study(
        storage=open_storage(where),
        study_name=name,
        sampler=_per_trial(sampler, seed),
        pruner=pruner,
        direction="minimize",
        load_if_exists=True,
    )


def make_pruner(kind: Pruner, warmup_steps: int) -> Any:
    """Stops trials by their losses at equal optimizer steps; none before `warmup_steps`.

    `median`: worse than the median of earlier trials at that step, once five have ended. `halving`: asynchronous
    successive halving, which keeps a quarter at every rung (Li et al. 2018, arXiv:1810.05934).
    """
    pruners = optuna().pruners
    if kind == "none":
        return pruners.NopPruner()
    if kind == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=max(1, warmup_steps))
    return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=warmup_steps)


def _per_trial(kind: Sampler, seed: int) -> Any:
    """A sampler whose random numbers follow from (seed, number of the trial).

    One that is seeded once would begin again with the first trial's numbers in every worker and after every restart.
    """
    library = optuna()

    base: Any = library.samplers.BaseSampler

    class PerTrial(base):  # type: ignore[misc]
        """Makes the real sampler anew for every trial; what a sampler learns is in the study."""

        def __init__(self) -> None:
            self._inner = _sampler(kind, 0)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self._inner.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self._inner.sample_independent(study, trial, param_name, param_distribution)

        def before_trial(self, study: Any, trial: Any) -> None:
            words = np.random.SeedSequence([seed, trial.number]).generate_state(1)
            self._inner = _sampler(kind, int(words[0]))
            self._inner.before_trial(study, trial)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self._inner.after_trial(study, trial, state, values)

    return PerTrial()


def _sampler(kind: Sampler, seed: int) -> Any:
    samplers = optuna().samplers
    if kind == "random":
        return samplers.RandomSampler(seed=seed)
    if kind == "cmaes":
        require("cmaes", "--sampler cmaes (the extra rnn-lab-core[search])")
        # CMA-ES has no notion of categories; those are drawn at random, as documented.
        return samplers.CmaEsSampler(seed=seed, n_startup_trials=5, warn_independent_sampling=False)
    with stable():
        # Multivariate: widths, depth and learning rate act together. Constant liar: workers in parallel spread out.
        return samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True, constant_liar=True)


class TrialLock:
    """Held by a worker and by the process that trains for it: free only once both are gone."""

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"trial-{number:04d}.lock"
        self._file: IO[str] | None = None

    def acquire(self) -> int:
        """Take the lock; its file descriptor, for a child to inherit."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self._file.fileno()

    def release(self) -> None:
        """Let go; nothing when it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def free(self) -> bool:
        """Whether nobody holds it; False where this machine has no such file."""
        try:
            with self.path.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def recover(study: Any, locks: Path, host: str, note: Callable[[str], None]) -> None:
    """Fail trials whose worker is gone, and queue their values again with the folder that they had begun.

    Workers of this machine are known by their locks at once; those of others by the database's heartbeat. A trial
    that was lost three times is not queued again.
    """
    library = optuna()
    state = library.trial.TrialState
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / ".recover").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with stable():
            library.storages.fail_stale_trials(study)
        running = [trial for trial in study.get_trials(deepcopy=False) if trial.state == state.RUNNING]
        lost = {trial.number for trial in running if _lost(trial, locks, host)}
        trials = study.get_trials(deepcopy=False)  # once more: a worker says how a trial ended, and then lets go of it
        followed = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in trials:
            if trial.state == state.RUNNING and trial.number in lost:
                study.tell(trial.number, state=state.FAIL)
            elif trial.state != state.FAIL or outcome_of(trial) is not None:
                continue
            if trial.number in followed or not trial.params:
                continue
            attempt = int(trial.user_attrs.get("attempt", 1))
            if attempt >= MAX_ATTEMPTS:
                note(f"trial {trial.number}: its worker died {attempt} times; it is not tried again")
                continue
            kept = {key: trial.user_attrs[key] for key in ("run", "default") if key in trial.user_attrs}
            study.enqueue_trial(trial.params, user_attrs={**kept, "retry_of": trial.number, "attempt": attempt + 1})
            note(f"trial {trial.number}: its worker is gone; its values are queued again")


def _lost(trial: Any, locks: Path, host: str) -> bool:
    """Whether the worker of a running trial is gone, as far as this machine can tell."""
    if "host" not in trial.user_attrs:  # it died before it said where it is, which takes milliseconds
        # By the clock of this machine alone: another's may be wrong, or show another zone's time.
        first = _NAMELESS.setdefault((trial.datetime_start, trial.number), time.monotonic())
        return time.monotonic() - first > HEARTBEAT
    return trial.user_attrs["host"] == host and TrialLock(locks, trial.number).free()
