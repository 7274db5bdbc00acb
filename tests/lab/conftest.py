"""A series of jobs that a fake program runs, and everything to run it with."""

import json
import sys
from pathlib import Path

import pytest
from rnn_lab.lab.local import LocalExecutor, cpu_places
from rnn_lab.lab.plan import Job, SeriesPlan
from rnn_lab.lab.scheduler import Scheduler
from rnn_lab.lab.series import SeriesDir
from rnn_lab.protocol import Protocol

FAKE = [sys.executable, str(Path(__file__).with_name("fake_fit.py"))]


def job(name: str, seed: int = 42) -> Job:
    args = ("fit", "--protocol", "p", "--model", "e61", "-o", f"train.seed={seed}")
    return Job(f"{name}-s{seed}", name, name, "main", "e61", None, seed, 1000, args)


def plan_of(*jobs: Job) -> SeriesPlan:
    return SeriesPlan("p", Protocol(description="a test's"), jobs, (), (), ())


class Recorder:
    """An observer that keeps everything, and may act on an update."""

    def __init__(self, on_update=None):
        self.notes, self.rows, self.on_update = [], [], on_update

    def update(self, rows):
        self.rows = list(rows)
        if self.on_update:
            self.on_update(self.rows)

    def note(self, text):
        self.notes.append(text)


class Lab:
    """One series under `path`, whose jobs do what `script` says."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        self.path, self.script = path / "series", path / "script.json"
        monkeypatch.setenv("FAKE_SCRIPT", str(self.script))

    def acts(self, **acts: str) -> None:
        """`acts(a="oom ok")`: what the attempts of job a-s42 do."""
        self.script.write_text(json.dumps({f"{name}-s42": text.split() for name, text in acts.items()}))

    def begin(self, **acts: str) -> SeriesDir:
        self.acts(**acts)
        return SeriesDir.create(self.path, plan_of(*(job(name) for name in acts)))

    def executor(self, slots=2, grace=5.0, **options) -> LocalExecutor:
        return LocalExecutor(
            FAKE, options.pop("places", None) or cpu_places(slots), self.path / "jobs", grace=grace, **options
        )

    def run(self, series: SeriesDir, observer=None, stall=60.0, executor=None) -> Scheduler:
        try:
            scheduler = Scheduler(series, executor or self.executor(), observer or Recorder(), stall=stall, poll=0.05)
            scheduler.run()
        finally:
            series.unlock()
        return scheduler

    def resume(self, observer=None, **options) -> Scheduler:
        return self.run(SeriesDir.open(self.path), observer, **options)

    def starts(self, name: str) -> list[str]:
        """`fit` or `resume` for every time that the job's program was started."""
        path = self.script.with_name(f"{self.script.name}.{name}-s42")
        return path.read_text().split() if path.exists() else []

    def states(self) -> dict[str, str]:
        return {path.stem[:-4]: json.loads(path.read_text())["state"] for path in self.path.glob("jobs/*.json")}

    def record(self, name: str) -> dict:
        return json.loads((self.path / "jobs" / f"{name}-s42.json").read_text())


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    return Lab(tmp_path, monkeypatch)
