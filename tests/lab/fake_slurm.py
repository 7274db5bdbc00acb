"""Stands for SLURM in tests: sbatch, srun, sacct and scancel over the folder FAKE_SLURM, one file of state per job.

    python fake_slurm.py sbatch SCRIPT

A job is a process group of this machine. `fail` ends one as the death of its machine does.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

HOME = Path(os.environ.get("FAKE_SLURM", "."))


def sbatch(script: str) -> None:
    number = int((HOME / "first").read_text()) + len(list(HOME.glob("*.script")))
    kept = HOME / f"{number}.script"
    kept.write_text(Path(script).read_text())
    (HOME / f"{number}.state").write_text("PENDING")
    if not (HOME / "full").exists():
        command = [sys.executable, __file__, "run", str(number)]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(command, start_new_session=True, **quiet)
    print(f"Submitted batch job {number}")


def run(number: str) -> None:
    state = HOME / f"{number}.state"
    env = {**os.environ, "SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "node1"}
    job = subprocess.Popen(["bash", str(HOME / f"{number}.script")], env=env, start_new_session=True)
    (HOME / f"{number}.pid").write_text(str(job.pid))
    state.write_text("RUNNING")
    code = job.wait()
    if state.read_text() == "RUNNING":
        state.write_text("FAILED" if code else "COMPLETED")


def srun(*args: str) -> None:
    job = os.environ["SLURM_JOB_ID"]
    options = dict(pairwise(args))
    output = options["--output"].replace("%j", job).replace("%t", "0")
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    command = args[args.index("--error") + 2 :]
    os.execvp(command[0], command)


def sacct(*args: str) -> None:
    print("JobID|State|NodeList")
    for number in (value for key, value in pairwise(args) if key == "-j"):
        with suppress(FileNotFoundError):
            print(f"{number}|{(HOME / f'{number}.state').read_text()}|node1")


def scancel(number: str) -> None:
    _end(number, "CANCELLED by 0", signal.SIGTERM)


def fail(number: str) -> None:
    _end(number, "NODE_FAIL", signal.SIGKILL)


def _end(number: str, state: str, how: signal.Signals) -> None:
    (HOME / f"{number}.state").write_text(state)
    pid = HOME / f"{number}.pid"
    if pid.exists():
        for process in _family(int(pid.read_text())):
            with suppress(ProcessLookupError):
                os.kill(process, how)
    with (HOME / "ended").open("a") as file:
        file.write(f"{number} {how.name}\n")


def _family(root: int) -> list[int]:
    """The process and all below it, those in sessions of their own too, as SLURM's cgroups know them."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found = re.match(r"(\d+) \(.*\) \S (\d+)", stat.read_text(), re.DOTALL)
            parents[int(found[1])] = int(found[2])
    family = [root]
    for process in family:
        family += [child for child, parent in parents.items() if parent == process]
    return family


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
