"""A run's folder: its names, its lock, and what is written once at the start and at the end.

config.toml       the resolved configuration; [origins] names the layer that set each value
env.json          versions, machine, command
metrics.jsonl     one line per optimizer step
events.*          TensorBoard
checkpoints/      step_N folders
result.json       how it ended
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import tomli_w

from rnn_lab.config import Layer, Resolved, read_toml, resolve
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.hookspecs import PROJECT
from rnn_lab.system.atomic import write_text_atomic
from rnn_lab.system.processor import cpu_name
from rnn_lab.train.metrics import MetricsLog, UnwrittenLog

PACKAGES = ("rnn-lab-core", "torch", "triton", "numpy", "schedulefree", "safetensors")
REPLACED = ".replaced"
"""End of the name of a checkpoint that another one of the same step replaces."""


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in `folder`, oldest first; intact or not.

    One that was about to be replaced by another of its step stands for both until the other has its name.
    """
    found: dict[int, Path] = {}
    for pattern, end in ((f".step_*{REPLACED}", REPLACED), ("step_*", "")):
        for path in folder.glob(pattern) if folder.is_dir() else ():
            step = path.name.removesuffix(end).rpartition("step_")[2]
            if step.isdigit():
                found[int(step)] = path
    return sorted(found.items())


class RunDir:
    """Paths of one run. `create` starts a new folder, `open` takes an existing one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.env = path / "env.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.result = path / "result.json"
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path) -> "RunDir":
        """Make the folder of a new run.

        Raises:
            ConfigError: it exists and is not empty, or cannot be written.
        """
        try:
            if (path / "config.toml").exists():
                raise ConfigError(
                    f"{path} is already a run: `rnn-lab resume {path}` goes on with it, or choose another --out"
                )
            if path.is_dir() and any(path.iterdir()):
                raise ConfigError(f"{path} is not empty: choose another --out")
            path.mkdir(parents=True, exist_ok=True)
            (path / ".writable").touch()
            (path / ".writable").unlink()
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot write there: {error.strerror}") from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """The folder of an existing run.

        Raises:
            ConfigError: it holds no config.toml.
        """
        if not (path / "config.toml").is_file():
            raise ConfigError(f"{path} is not a run: it has no config.toml (see `rnn-lab runs`)")
        return cls(path)

    def lock(self) -> None:
        """Hold the run until this process ends, so that no two write to it.

        Raises:
            RnnLabError: another process holds it.
        """
        try:
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot write there: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.unlock()
            raise RnnLabError(f"{self.path}: another process is training this run") from error

    def unlock(self) -> None:
        """Let go of the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def locked(self) -> bool:
        """Whether a process is training this run now."""
        try:
            with (self.path / ".lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def write_config(self, tables: dict[str, dict[str, Any]], origins: dict[str, str]) -> None:
        """config.toml with every field decided, and the origin of each value."""
        known = {name: {k: v for k, v in table.items() if v is not None} for name, table in tables.items()}
        shown = {
            key: origin for key, origin in origins.items() if key.partition(".")[2] in known[key.partition(".")[0]]
        }
        write_text_atomic(self.config, tomli_w.dumps({**known, "origins": shown}))

    def read_config(self) -> Resolved:
        """The configuration as written.

        Raises:
            ConfigError: edited into something that is not valid.
        """
        tables = read_toml(self.config)
        origins = tables.pop("origins", {})
        resolved = resolve([Layer(str(self.config), tables)])
        return Resolved(resolved.config, {str(k): str(v) for k, v in origins.items()})

    def metrics_log(self, step: int) -> MetricsLog:
        """metrics.jsonl, to go on after `step`; see MetricsLog."""
        return MetricsLog(self.metrics, step)

    def write_env(self, command: list[str]) -> None:
        """env.json: what a reader needs to judge and repeat the run."""
        write_text_atomic(self.env, json.dumps(environment() | {"command": command}, indent=1) + "\n")

    def write_result(self, result: dict[str, Any]) -> None:
        """result.json, complete or not at all."""
        write_text_atomic(self.result, json.dumps(result, indent=1, allow_nan=False) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """result.json, or None while there is none."""
        try:
            result: dict[str, Any] = json.loads(self.result.read_text())
        except (OSError, ValueError):
            return None
        return result

    def status(self) -> str:
        """`running`, the status of result.json, or `killed` for a run that ended without one."""
        if self.locked():
            return "running"
        result = self.read_result()
        return str(result["status"]) if result else "killed"


class FollowedDir(RunDir):
    """The folder of a run that rank 0 writes, for the other ranks: they read it, and what they would write is not."""

    def lock(self) -> None:
        """Nothing: rank 0 holds it."""

    def metrics_log(self, step: int) -> MetricsLog:
        """No lines, and no file."""
        return UnwrittenLog()

    def write_env(self, command: list[str]) -> None:
        """Nothing."""

    def write_config(self, tables: dict[str, dict[str, Any]], origins: dict[str, str]) -> None:
        """Nothing."""

    def write_result(self, result: dict[str, Any]) -> None:
        """Nothing."""


def environment() -> dict[str, Any]:
    """Versions, machine and GPU, for env.json and `rnn-lab doctor`."""
    import torch  # not above: `rnn-lab runs` reads run folders without it

    from rnn_lab.kernels.certificates import driver

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES} | _plugins(),
        "cuda": torch.version.cuda,
        "gpu": gpu,
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory if gpu else None,
        "gpu_driver": driver() if gpu else None,
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "git": _git_commit(),
    }


def default_command() -> list[str]:
    """The command line of this process."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plugins() -> dict[str, str]:
    """Versions of the distributions whose plugins are found."""
    points = metadata.entry_points(group=PROJECT)
    return {p.dist.name: p.dist.version for p in sorted(points, key=lambda p: p.name) if p.dist is not None}


def _git_commit() -> str | None:
    """Commit of the source tree that rnn-lab runs from, with `+` where it has uncommitted changes."""
    git = shutil.which("git")
    if git is None:
        return None
    where = Path(__file__).parent

    def ask(*args: str) -> str:
        return subprocess.run([str(git), "-C", str(where), *args], capture_output=True, text=True, check=True).stdout

    try:
        return ask("rev-parse", "HEAD").strip() + ("+" if ask("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
