"""Stands for `rnn-lab fit` and `resume` in tests of the scheduler: no torch, and it does what FAKE_SCRIPT says.

FAKE_SCRIPT is a JSON file: for every job, what its first attempt does, its second, and so on; the last one repeats.
Beside it, FAKE_SCRIPT.JOB gets a line for every start.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    args = sys.argv[1:]
    resumes = "resume" in args
    folder = Path(args[args.index("resume" if resumes else "--out") + 1])
    overrides = dict(arg.split("=", 1) for arg in args if arg.startswith(("train.", "model.")))
    path = Path(os.environ["FAKE_SCRIPT"])
    script = json.loads(path.read_text())[folder.name]
    with path.with_name(f"{path.name}.{folder.name}").open("a+") as starts:
        starts.write(("resume" if resumes else "fit") + "\n")
        starts.seek(0)
        begun = len(starts.readlines())
    # A log counts from before the program starts, and away from the series' folder there is none.
    attempt = len(list((folder.parents[1] / "logs").glob(f"{folder.name}.*.log"))) or begun
    act = script[min(attempt, len(script)) - 1]
    if act == "refuse":
        sys.exit("error: train.device = 'cuda': torch sees 0 CUDA devices here")
    if not resumes:
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(
            f'[model]\nname = "e61"\n[train]\nbatch_size = 8\nseed = {overrides["train.seed"]}\n'
            f"grad_accum = {overrides.get('train.grad_accum', 1)}\n"
        )
    with (folder / "running").open("x"):
        pass  # fails where two processes run one job
    done = len((folder / "metrics.jsonl").read_text().splitlines()) if resumes else 0
    globals()[act](folder, done)
    (folder / "running").unlink()


def steps(folder: Path, first: int, last: int, pause: float = 0.0) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for step in range(first + 1, last + 1):
            file.write(json.dumps({"step": step, "loss": 2.0, "last100": None, "tokens_per_s": 9.0}) + "\n")
            file.flush()
            time.sleep(pause)


def end(folder: Path, status: str, error: str | None, code: int) -> None:
    result = {"status": status, "error": error, "model": "e61", "device": "cpu"}
    result["last100"] = 2.0 + int(folder.name[-2:]) / 1000
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "running").unlink()
    if error:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


def ok(folder: Path, done: int) -> None:
    steps(folder, done, 10)
    end(folder, "ok", None, 0)


def crash(folder: Path, done: int) -> None:
    steps(folder, done, 3)
    end(folder, "failed", "RuntimeError: planted", 1)


def nan(folder: Path, done: int) -> None:
    steps(folder, done, 3)
    end(folder, "diverged", "step 4: loss nan", 3)


def oom(folder: Path, done: int) -> None:
    end(folder, "oom", "out of memory with 8 x 64 bytes at once", 1)


def kill(folder: Path, done: int) -> None:
    steps(folder, done, 3)
    checkpoint(folder, 3)
    (folder / "running").unlink()
    os.kill(os.getpid(), signal.SIGKILL)


def hang(folder: Path, done: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    steps(folder, done, 3)
    (folder / "running").unlink()
    time.sleep(600)


def patient(folder: Path, done: int) -> None:
    (ok if os.environ.get("RNN_LAB_PLUGIN_TIMEOUT") == "120" else crash)(folder, done)


def slow(folder: Path, done: int) -> None:
    """Ten minutes of steps; SIGTERM ends it with a checkpoint, as training does."""

    def stop(number: int, frame: object) -> None:
        checkpoint(folder, 5)
        end(folder, "interrupted", None, 130)

    signal.signal(signal.SIGTERM, stop)
    steps(folder, done, 6000, 0.1)


def keep(folder: Path, done: int) -> None:
    """Ten minutes of steps after a checkpoint, for somebody to kill."""
    checkpoint(folder, 3)
    (folder / "running").unlink()
    steps(folder, done, 6000, 0.1)


def checkpoint(folder: Path, step: int) -> None:
    path = folder / "checkpoints" / f"step_{step}"
    path.mkdir(parents=True)
    (path / "state").write_text("x" * 100)


if __name__ == "__main__":
    main()
