"""install, uninstall and plugins --requirements, with a pip that only says what it was asked to do."""

import json
import sys
from importlib import metadata

import pytest
from rnn_lab_cli import installer

from .helpers import CELL, plugin, program

PIP = """
import json, os, pathlib, sys

args = sys.argv[1:]
constraints = ""
if "--constraint" in args:
    i = args.index("--constraint")
    constraints = pathlib.Path(args[i + 1]).read_text()
    args[i + 1] = "FILE"
home = pathlib.Path(__file__).parent.parent
(home / "called.json").write_text(json.dumps({"args": args, "constraints": constraints}))
print("Collecting everything")
if failure := os.environ.get("FAKE_PIP_FAILS"):
    print(f"ERROR: {failure}", file=sys.stderr)
    print("[notice] A new release of pip is available")
    sys.exit(1)
if "comes" in args:
    info = home / "comes-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: comes\\nVersion: 2.0\\n")
    (info / "entry_points.txt").write_text("[rnn_lab]\\ncomes = comes\\n")
    (home / "comes.py").write_text("")
"""
CODE = "from rnn_lab.hookspecs import hookimpl\n"
MODELS = (
    "from rnn_lab.registry import models_in\n"
    "@hookimpl\ndef register_models(register):\n    register(models_in(__name__))\n"
)


@pytest.fixture
def home(tmp_path):
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text("")
    (tmp_path / "pip" / "__main__.py").write_text(PIP)
    return plugin(tmp_path, "rnn_lab_mine", CODE)


def called(home):
    return json.loads((home / "called.json").read_text())


def project(folder, name, text='[project]\nname = "{}"\n', file="pyproject.toml"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text.format(name))
    return folder


def test_install_passes_packages_and_pins_what_must_stay(home):
    project(home / "folder", "mine"), project(home / "other", "other")
    done = program("install", "-U", "-e", "folder", "-e", "other", "a-plugin", "b>=2", path=home, cwd=home)
    assert done.code == 0 and "Collecting everything" in done.err and done.out == ""
    assert "no plugin came" in done.err
    asked = called(home)
    assert asked["args"] == [
        "install", "--constraint", "FILE", "--upgrade", "--editable", "folder", "--editable", "other", "--",
        "a-plugin", "b>=2",
    ]  # fmt: skip
    wanted = {f"{name}=={metadata.version(name)}" for name in ("torch", "numpy", "rnn-lab-core", "rnn-lab-e0-e5")}
    assert wanted <= set(asked["constraints"].split())


def test_what_must_stay_is_pinned_where_it_is_installed(monkeypatch):
    versions = {"torch": "2.11.0", "triton": "3.6.0", "numpy": "2.5.2", "rnn-lab-cli": "0.1.0", "other": "1"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(installer.metadata, "version", version)
    assert installer.pins() == ["torch==2.11.0", "triton==3.6.0", "numpy==2.5.2", "rnn-lab-cli==0.1.0"]


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("cells", "cells"),
        ("Their.Cells[fast]>=2,<3", "Their.Cells"),
        ("cells @ git+https://github.com/a/b", "cells"),
        ("wheels/their_cells-0.3.1-py3-none-any.whl", "their_cells"),
        ("https://github.com/a/their_cells-0.3.1-cp311-cp311-linux_x86_64.whl#sha256=0", "their_cells"),
        ("their-cells-2-0.3.1.tar.gz", "their-cells-2"),
        ("git+https://github.com/a/b#egg=cells[fast]", "cells"),
        ("./modern", "a"),
        ("./modern[fast]", "a"),
        ("./poetic", "b"),
        ("./old", "c"),
    ],
)
def test_names_are_known_before_anything_is_installed(tmp_path, monkeypatch, package, name):
    monkeypatch.chdir(tmp_path)
    project(tmp_path / "modern", "a")
    project(tmp_path / "poetic", "b", '[build-system]\n[tool.poetry]\nname = "{}"\n')
    project(tmp_path / "old", "c", "[metadata]\nname = {}\n", "setup.cfg")
    if package.endswith(".whl"):
        (tmp_path / "wheels").mkdir()
        (tmp_path / "wheels" / "their_cells-0.3.1-py3-none-any.whl").touch()
    assert installer.name_of(package) == name
    if package.startswith("./"):
        assert installer.name_of(package.removeprefix("./"), editable=True) == name


@pytest.mark.parametrize(
    ("package", "problem"),
    [
        ("git+https://github.com/a/b", "cannot tell which distribution"),
        ("https://github.com/a/b/archive/main.zip", "cannot tell which distribution"),
        ("./nameless", "cannot tell which distribution"),
        ("./wrong", "cannot read its metadata"),
        ("./nix", "no such file or folder"),
        ("-r", "cannot tell which distribution"),
    ],
)
def test_what_has_no_name_is_not_installed(tmp_path, monkeypatch, package, problem):
    monkeypatch.chdir(tmp_path)
    project(tmp_path / "nameless", "", "[project]\n")
    project(tmp_path / "wrong", "", "project = 3\n")
    with pytest.raises(installer.ConfigError, match=problem):
        installer.name_of(package)


@pytest.mark.parametrize(
    "argv",
    [
        ["rnn-lab-core"],
        ["RNN.lab_cli==0.1.0"],
        ["good", "./cells"],
        ["-e", "cells"],
        ["rnn_lab_e0_e5-9.0-py3-none-any.whl"],
    ],
)
def test_nothing_replaces_a_part_of_the_lab(home, argv):
    project(home / "cells", "rnn-lab_core")
    done = program("install", *argv, path=home, cwd=home)
    assert done.code == 2 and "is part of rnn-lab" in done.err and not (home / "called.json").exists()


def test_install_shows_what_came(home):
    done = program("install", "comes", path=home)
    assert done.code == 0
    header, row = done.out.splitlines()
    assert header.startswith("name\tdistribution\tversion") and row.startswith("comes\tcomes\t2.0")


def test_install_shows_a_plugin_that_the_new_one_gets_in_the_way_of(tmp_path, home):
    plugin(tmp_path, "comet", CODE + MODELS, one=CELL)
    (home / "comes.py").write_text(CODE)
    (home / "comes").mkdir()
    (home / "comes" / "__init__.py").write_text(CODE + MODELS)
    (home / "comes" / "one.py").write_text(CELL)
    done = program("install", "comes", path=home)
    rows = [line.split("\t") for line in done.out.splitlines()[1:]]
    assert [(row[0], row[4]) for row in rows] == [("comes", "ok"), ("comet", "error")]
    assert "'one' is already registered by comes" in rows[1][5]


def test_install_says_so_where_the_lab_no_longer_starts(home):
    (home / "sitecustomize.py").write_text(
        "import pathlib, sys\n"
        "if pathlib.Path(__file__).with_name('comes-2.0.dist-info').exists(): sys.modules['rnn_lab.registry'] = None\n"
    )
    done = program("install", "comes", path=home)
    assert done.code == 2 and "`rnn-lab plugins` fails: error: command 'plugins'" in done.err


def test_install_that_fails_ends_with_pips_last_error(home):
    done = program("install", "nix", path=home, FAKE_PIP_FAILS="No matching distribution found for nix")
    assert done.code == 1
    assert done.err.splitlines()[-1] == "error: pip failed: ERROR: No matching distribution found for nix"


@pytest.mark.parametrize("name", ["rnn_lab_mine", "rnn-lab-mine", "RNN.Lab.Mine"])
def test_uninstall_takes_plugins_by_any_spelling(home, name):
    done = program("uninstall", "-y", name, path=home)
    assert done.code == 0 and done.out == "uninstalled rnn_lab_mine\n"
    assert called(home)["args"] == ["uninstall", "--yes", "--", "rnn_lab_mine"]


def test_uninstall_takes_a_broken_plugin(tmp_path, home):
    plugin(tmp_path, "raises", "raise RuntimeError('boom')")
    done = program("uninstall", "-y", "raises", path=home)
    assert done.code == 0 and done.out == "uninstalled raises\n"


@pytest.mark.parametrize("name", ["torch", "rnn-lab-core", "rnn_lab_mien", "--yes"])
def test_uninstall_takes_nothing_but_plugins(home, name):
    done = program("uninstall", "-y", name, path=home)
    assert done.code == 2 and not (home / "called.json").exists()
    assert "'rnn-lab-mine'" in done.err or name != "rnn_lab_mien"


def test_uninstall_asks_and_without_anybody_to_ask_wants_a_yes(home):
    done = program("uninstall", "rnn_lab_mine", path=home)
    assert done.code == 2 and "give -y" in done.err and not (home / "called.json").exists()


def test_install_of_nothing_is_a_mistake(home):
    done = program("install", path=home)
    assert done.code == 2 and "give PKG or -e PATH" in done.err


def test_without_pip_uv_is_asked_and_without_both_the_user(monkeypatch):
    asked = []
    monkeypatch.setattr(installer, "run", asked.append)
    monkeypatch.setattr(installer, "find_spec", lambda name: None)
    monkeypatch.setattr(installer.shutil, "which", lambda name: f"bin/{name}")
    installer.install(["x"], [], upgrade=False)
    installer.uninstall(["x"])
    assert asked[0][:5] == ["bin/uv", "pip", "install", "--python", sys.executable] and asked[0][-2:] == ["--", "x"]
    assert asked[1] == ["bin/uv", "pip", "uninstall", "--python", sys.executable, "--", "x"]
    monkeypatch.setattr(installer.shutil, "which", lambda name: None)
    with pytest.raises(installer.ConfigError, match="ensurepip"):
        installer.install(["x"], [], upgrade=False)


def test_plugins_as_requirements(home):
    lines = program("plugins", "--requirements", path=home).out.splitlines()
    assert "rnn_lab_mine==1.0" in lines and lines == sorted(lines)
    assert any(line.startswith("rnn-lab-e61-e68==") for line in lines)
    assert not any("core" in line or "cli" in line for line in lines)
    assert program("plugins", "--requirements", "--json", path=home).json == lines
