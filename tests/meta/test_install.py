"""Plugins of other people: built, installed, used, uninstalled, and gone."""

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
from rnn_lab.registry import models_in, presets_in


@hookimpl
def register_models(register):
    register(models_in(__name__))


@hookimpl
def register_presets(register):
    register(presets_in(__name__))
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


OTHER = MODEL.replace("tanh(x~_t + d * h_{t-1})", "x~_t + d * h_{t-1}").replace("theirs-small", "theirs2-small")
OTHER = OTHER.replace("return tanh(x + d * h)", "return x + d * h").replace("from torch import tanh\n", "")
PRESETS = """
[seed.theirs]
document = "their paper"
title = "Their paper"

[[preset]]
name = "theirs/small"
config = { name = "theirs", dim = 16, depth = 1 }
params = 4656
printed = [{ table = "1", row = "small", params = "4.7K" }]
"""
RUN = "--steps 2 --batch-size 2 --seq-len 16 -o eval.tokens=64"


@pytest.mark.slow
def test_a_plugin_of_somebody_else_comes_and_goes(lab, tmp_path):
    source, wheels, work = (tmp_path / name for name in ("source", "wheels", "work"))
    for folder in (source / "their_cells", wheels, work):
        folder.mkdir(parents=True)
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "their_cells" / "__init__.py").write_text(INIT)
    (source / "their_cells" / "theirs.py").write_text(MODEL)
    (source / "their_cells" / "theirs2.py").write_text(OTHER)
    (source / "their_cells" / "presets").mkdir()
    (source / "their_cells" / "presets" / "paper.toml").write_text(PRESETS)

    pip = (str(lab.python), "-m", "pip")
    lab.run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source), cwd=work)
    (wheel,) = wheels.glob("their_cells-0.3.1-*.whl")
    assert "theirs" not in lab.lab("list-models", cwd=work).stdout
    came = lab.lab("install", str(wheel), cwd=work).stdout
    assert "their_cells\ttheir-cells\t0.3.1\ttheirs; theirs2\tok" in came

    rows = lab.lab("list-models", "--family", "their_cells", cwd=work).stdout
    assert "theirs\ttheir_cells\th_t = tanh(x~_t + d * h_{t-1})" in rows
    assert "theirs2\ttheir_cells\th_t = x~_t + d * h_{t-1}" in rows
    assert "theirs-small" in rows
    assert "their-cells\t0.3.1\ttheirs theirs2" in lab.lab("plugins", cwd=work).stdout
    assert "their-cells==0.3.1" in lab.lab("plugins", "--requirements", cwd=work).stdout.splitlines()
    assert "theirs/small\ttheirs\t4.7K\t4656\tyes" in lab.lab("presets", "--seed", "theirs", cwd=work).stdout
    lab.lab("fit", "--preset", "theirs/small", *RUN.split(), "--out", "run", cwd=work)
    lab.lab("fit", "--model", "theirs2-small", "--dim", "16", *RUN.split(), "--out", "run2", cwd=work)
    assert (work / "run" / "result.json").is_file()
    assert (work / "run2" / "result.json").is_file()
    told = lab.lab("check", "their_cells", cwd=work).stdout
    assert "FAIL" not in told
    assert "skip" not in told
    assert told.count("pass streaming") == 2

    lab.lab("uninstall", "-y", "their_cells", cwd=work)
    assert "theirs" not in lab.lab("list-models", cwd=work).stdout
    assert "theirs" not in lab.lab("presets", cwd=work).stdout
    assert "unknown model 'theirs'" in lab.lab("sample", "run", cwd=work, ok=False).stderr


@pytest.mark.slow
def test_a_new_plugin_works_at_once(lab, tmp_path):
    lab.lab("new-plugin", "my-cells", cwd=tmp_path)
    came = lab.lab("install", "-e", "my-cells", cwd=tmp_path).stdout
    assert "my_cells\tmy-cells\t0.1.0\tmy_cells\tok" in came
    told = lab.lab("check", "my-cells", cwd=tmp_path).stdout
    assert "FAIL" not in told
    assert "skip" not in told
    assert "pass backends" in told
    lab.run(str(lab.python), "-m", "pytest", "-q", ".", cwd=tmp_path / "my-cells")
    lab.lab("fit", "--model", "my_cells", "--dim", "16", "--depth", "1", *RUN.split(), "--out", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "result.json").is_file()
    lab.lab("uninstall", "-y", "my-cells", cwd=tmp_path)
    assert "my_cells" not in lab.lab("list-models", cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_plugin_cannot_replace_torch(lab, tmp_path):
    (tmp_path / "greedy").mkdir()
    (tmp_path / "greedy" / "greedy").mkdir()
    (tmp_path / "greedy" / "greedy" / "__init__.py").write_text('"""Wants another torch."""\n')
    text = PYPROJECT.replace("their_cells", "greedy").replace("their-cells", "greedy")
    (tmp_path / "greedy" / "pyproject.toml").write_text(text.replace('"rnn-lab-core"', '"rnn-lab-core", "torch<2"'))
    done = lab.lab("install", "./greedy", cwd=tmp_path, ok=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: pip failed: ERROR: ")
    assert "greedy" not in lab.lab("plugins", cwd=tmp_path).stdout


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
