"""The program in this process, in a process of its own, and fake plugins for both."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TINY = "--dim 16 --depth 2 --batch-size 2 --seq-len 16 --steps 3 -o eval.tokens=32 -o log.trackers=[]"
TINY = _TINY.split()

CELL = '''"""h_t = tanh(x_t + h_{t-1})

A cell for tests.

Parent      none.
Parameters  2*D*d per layer.
"""

import torch
from rnn_lab.layers import ProjectedConfig, ProjectedLayer


class Config(ProjectedConfig):
    """Nothing of its own."""


class Model(ProjectedLayer):
    """See the module docstring."""

    Config = Config

    @classmethod
    def cell_parts(cls, cfg):
        return {}

    def inputs(self, x_BTd):
        return (x_BTd,)

    @staticmethod
    def update(h, x):
        return torch.tanh(h + x)
'''

NAN_CELL = CELL.replace("torch.tanh(h + x)", "torch.log(-1 - (h + x).square())")


@dataclass
class Done:
    """How a call of the program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def program(*args: str, path: Path | None = None, cwd: Path | None = None, timeout: float = 60, **env: str) -> Done:
    """`rnn-lab` in its own process, with `path` in front of the import path."""
    done = subprocess.run(
        [sys.executable, "-m", "rnn_lab_cli", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env=environment(path, **env),
    )
    return Done(done.returncode, done.stdout, done.stderr)


def environment(path: Path | None = None, **env: str) -> dict[str, str]:
    paths = [*([str(path)] if path else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}), **env}


def plugin(folder: Path, name: str, code: str, **files: str) -> Path:
    """An installed-looking plugin: package `name`, its files, and metadata with the entry point."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    for stem, text in files.items():
        (package / f"{stem}.py").write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rnn_lab]\n{name} = {name}\n")
    return folder
