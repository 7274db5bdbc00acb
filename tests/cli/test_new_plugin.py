"""new-plugin writes a plugin that works, in a folder that was empty, under a name that is free."""

import subprocess
import sys
import tomllib

import pytest
from rnn_lab_cli.commands import new_plugin

from .helpers import environment, program

TREE = {
    "README.md",
    "my_cells/__init__.py",
    "my_cells/kernels/__init__.py",
    "my_cells/kernels/leak.py",
    "my_cells/my_cells.py",
    "pyproject.toml",
    "tests/test_contract.py",
    "tests/test_kernel.py",
}


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def written(rnn_lab, tmp_path):
    folder = tmp_path / "my-cells"
    done = rnn_lab("new-plugin", "my-cells", "--out", str(folder))
    assert done.code == 0, done.err
    assert f"rnn-lab install -e {folder}" in done.out and "rnn-lab check my_cells" in done.out
    info = tmp_path / "my_cells-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-cells\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[rnn_lab]\nmy_cells = my_cells\n")
    (tmp_path / "my_cells").symlink_to(folder / "my_cells")
    return folder


def test_it_writes_a_whole_plugin(written):
    assert tree(written) == TREE
    project = tomllib.loads((written / "pyproject.toml").read_text())["project"]
    assert project["name"] == "my-cells" and project["entry-points"]["rnn_lab"] == {"my_cells": "my_cells"}
    assert project["dependencies"][0].startswith("rnn-lab-core>=")
    assert not [path for path in written.rglob("*") if path.is_file() and "{{" in path.read_text()]
    assert written.stat().st_mode & 0o777 == 0o755


def test_its_model_is_listed_and_keeps_the_contract(written):
    rows = {row["name"]: row for row in program("list-models", "--json", path=written.parent).json}
    assert rows["my_cells"]["family"] == "my_cells" and rows["my_cells"]["equation"].startswith("h_t = a * h_{t-1}")
    only = [f"--only={check}" for check in ("count", "flops", "streaming", "reset", "backends")]
    for name in ("my_cells", "my-cells"):
        done = program("check", name, *only, path=written.parent)
        assert done.code == 0 and done.out.count("pass ") == len(only) and "FAIL" not in done.out, done.out
    kernels = program("show", "my_cells", "--json", path=written.parent).json["kernels"]
    assert kernels == [{"op": "my_cells", "backend": "reference", "refused": {"kernel": "not written yet"}}]


@pytest.mark.slow
def test_its_own_tests_pass(written):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(written)]
    done = subprocess.run(
        command, cwd=written, env=environment(written.parent), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("My-Cells", "lower-case words"),
        ("9cells", "lower-case words"),
        ("a/b", "lower-case words"),
        ("../x", "lower-case words"),
        ("class", "lower-case words"),
        ("x" * 61, "lower-case words"),
        ("e61", "a model of that name"),
        ("fla-gdn", "a model of that name"),
        ("json", "a Python module called json"),
        ("torch", "a Python module called torch"),
        ("msvcrt", "a Python module called msvcrt"),
        ("rnn-lab", "rnn-lab uses it itself"),
        ("rnn-lab-core", "rnn-lab uses it itself"),
        ("baselines", "a plugin of that name"),
        ("e0-e5", "a plugin of that name"),
        ("builtin", "rnn-lab uses it itself"),
        ("cli", "rnn-lab uses it itself"),
        ("tests", "rnn-lab uses it itself"),
        ("pytest-xdist", "a distribution of that name is installed"),
    ],
)
def test_a_name_that_is_no_name_or_taken_is_refused(rnn_lab, tmp_path, monkeypatch, name, problem):
    monkeypatch.chdir(tmp_path)
    done = rnn_lab("new-plugin", name)
    assert done.code == 2 and problem in done.err and not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(rnn_lab, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out in ("kept", "file"):
        done = rnn_lab("new-plugin", "my-cells", "--out", str(tmp_path / out))
        assert done.code == 2 and "exists already" in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "file"}


def test_an_empty_folder_and_one_that_is_not_there_are_filled(rnn_lab, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in ("empty", "deep/er"):
        assert rnn_lab("new-plugin", "my-cells", "--out", str(tmp_path / out)).code == 0
        assert tree(tmp_path / out) == TREE


def test_a_write_that_fails_leaves_nothing(rnn_lab, tmp_path, monkeypatch):
    def broken(contents, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(new_plugin.Path, "write_text", lambda *args, **kwargs: broken(*args[:2]))
    done = rnn_lab("new-plugin", "my-cells", "--out", str(tmp_path / "out"))
    assert done.code == 2 and "No space left on device" in done.err and not list(tmp_path.iterdir())
