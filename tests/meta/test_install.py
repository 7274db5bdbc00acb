"""A plugin of somebody else's: built, installed, used, uninstalled, and gone."""

import pytest

PYPROJECT = """
[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "their-cells"
version = "0.3.1"
requires-python = ">=3.11"
dependencies = ["rnn-lab-core"]

[project.entry-points.rnn_lab]
their_cells = "their_cells"
"""
INIT = '''
"""Their cells."""

from rnn_lab.hookspecs import hookimpl
from rnn_lab.registry import models_in


@hookimpl
def register_models(register):
    register(models_in(__name__))
'''
MODEL = '''
"""h_t = tanh(x~_t + d * h_{t-1})

A diagonal recurrence.

Parent      none: a cell of somebody else's.
Parameters  2*D*d + d per layer.
Aliases     theirs-small: expansion = 0.5
"""

from rnn_lab.layers import ProjectedConfig, ProjectedLayer
from rnn_lab.parts import vector
from torch import tanh


class Config(ProjectedConfig):
    """Fields."""


class Model(ProjectedLayer):
    Config = Config

    @classmethod
    def cell_parts(cls, cfg):
        return {"d_h": vector(cfg.d_inner, 0.5)}

    def inputs(self, x_BTd):
        return (x_BTd,)

    def weights(self):
        return (self.d_h,)

    @staticmethod
    def update(h, x, d):
        return tanh(x + d * h)
'''


@pytest.mark.slow
def test_a_plugin_of_somebody_else_comes_and_goes(lab, tmp_path):
    source, wheels, work = (tmp_path / name for name in ("source", "wheels", "work"))
    for folder in (source / "their_cells", wheels, work):
        folder.mkdir(parents=True)
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "their_cells" / "__init__.py").write_text(INIT)
    (source / "their_cells" / "theirs.py").write_text(MODEL)

    pip = (str(lab.python), "-m", "pip")
    lab.run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source), cwd=work)
    (wheel,) = wheels.glob("their_cells-0.3.1-*.whl")
    assert "theirs" not in lab.lab("list-models", cwd=work).stdout
    lab.run(*pip, "install", "--no-deps", str(wheel), cwd=work)

    rows = lab.lab("list-models", "--family", "their_cells", cwd=work).stdout
    assert "theirs\ttheir_cells\th_t = tanh(x~_t + d * h_{t-1})" in rows
    assert "theirs-small" in rows
    assert "their-cells\t0.3.1\ttheirs" in lab.lab("plugins", cwd=work).stdout
    run = "--model theirs --dim 16 --depth 1 --steps 2 --batch-size 2 --seq-len 16 -o eval.tokens=64 --out run"
    lab.lab("fit", *run.split(), cwd=work)
    assert (work / "run" / "result.json").is_file()
    told = lab.lab("check", "their_cells", cwd=work).stdout
    assert "FAIL" not in told
    assert "skip" not in told
    assert "pass streaming" in told

    lab.run(*pip, "uninstall", "--yes", "their-cells", cwd=work)
    assert "theirs" not in lab.lab("list-models", cwd=work).stdout
    assert "unknown model 'theirs'" in lab.lab("sample", "run", cwd=work, ok=False).stderr


@pytest.mark.slow
def test_the_root_builds_a_package_of_nothing_but_requirements(lab, tmp_path):
    import zipfile

    from .source import MEMBERS, ROOT

    command = (str(lab.python), "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path))
    lab.run(*command, str(ROOT), cwd=tmp_path)
    (wheel,) = tmp_path.glob("rnn_lab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        text = archive.read(metadata).decode()
    assert all(".dist-info/" in name for name in names), names
    assert text.count("Requires-Dist: ") == len(MEMBERS)
