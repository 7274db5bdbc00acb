"""What an executor adds to a run: `python bench/executors.py [NAME] [-x KEY=VALUE] [--runs N] [--gpus none]`.

Every run is a program that trains nothing: it writes the files of a finished run and says how long it lived, from its
own start to its end. The overhead of a run is the time from the scheduler's decision to start it until the scheduler
knows its end, less that: hand-over, start of Python up to the program, noticing, results brought back.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rnn_lab.lab.executor import ExecutorKind
from rnn_lab.lab.plan import Job, SeriesPlan
from rnn_lab.lab.scheduler import Scheduler
from rnn_lab.lab.series import SeriesDir
from rnn_lab.protocol import Protocol
from rnn_lab.registry import registry
from rnn_lab_cli.series_options import setting_of

PROGRAM = """
import json, sys, time
from pathlib import Path
began = time.time()
folder = Path(sys.argv[sys.argv.index("--out") + 1])
folder.mkdir(parents=True)
(folder / "config.toml").write_text('[model]\\nname = "e61"\\n[train]\\nseed = 1\\n')
time.sleep(0.5)
(folder / "result.json").write_text(json.dumps({"status": "ok", "lived": time.time() - began}))
"""
SLOTS = 2


class Silent:
    """Nobody watches."""

    def update(self, rows: object) -> None:
        """Nothing is shown."""

    def note(self, text: str) -> None:
        """What goes wrong is shown."""
        sys.stderr.write(f"{text}\n")


def overheads(name: str, options: list[str], runs: int, gpus: str | None) -> tuple[float, list[float]]:
    """Seconds until the executor was ready, and what each run cost beyond its own life, in order of their ends."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        program = Path(scratch) / "program.py"
        program.write_text(PROGRAM)
        given = {"executor_options": options, "gpus": gpus, "slots": SLOTS if gpus == "none" else None}
        setting = setting_of(Path(scratch) / "series", given)
        setting = type(setting)(setting.series, (str(program),), gpus, setting.slots, setting.options)
        began = time.monotonic()
        kind: ExecutorKind = registry().load("executors", name)
        executor = kind.open(setting)
        ready = time.monotonic() - began
        jobs = [
            Job(f"job-{i}", "e61", "e61", "main", "e61", None, 1, 1, ("fit", "-o", "train.seed=1")) for i in range(runs)
        ]
        plan = SeriesPlan("overhead", Protocol(description="nothing"), tuple(jobs), (), (), ())
        series = SeriesDir.create(setting.series, plan)
        try:
            records = Scheduler(series, executor, Silent(), stall=300).run()
            found = []
            for record in records.values():
                if record.state != "done":
                    raise SystemExit(f"{record.name}: {record.state}: {record.reason}")
                result = json.loads((series.run(record.name) / "result.json").read_text())
                found.append(record.attempts[-1]["seconds"] - result["lived"])
        finally:
            executor.close()
            series.unlock()
    return ready, found


def main() -> None:
    """Print the figures, as JSON on one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="local", help="executor")
    parser.add_argument("-x", action="append", default=[], metavar="KEY=VALUE", help="option of the executor")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--gpus", default="none")
    asked = parser.parse_args()
    ready, found = overheads(asked.name, asked.x, asked.runs, asked.gpus)
    figures = {"median": statistics.median(found), "max": max(found), "first": found[0], "ready": ready}
    shown = {key: round(value, 2) for key, value in figures.items()}
    print(json.dumps({"executor": asked.name, "options": asked.x, "runs": asked.runs, **shown}))  # noqa: T201


if __name__ == "__main__":
    main()
