"""Discovery of single-file models."""

import importlib

import pytest
from rnn_lab.errors import ConfigError, PluginError
from rnn_lab.registry import build_registry, models_in

MODEL = '''"""y = x

Aliases     twin: form = b
"""
'''


@pytest.fixture(autouse=True)
def no_entry_points(monkeypatch):
    monkeypatch.setenv("RNN_LAB_LOAD_PLUGINS", "")


def test_a_broken_file_does_not_hide_its_neighbours(tmp_path):
    (tmp_path / "a_silent.py").write_text("x = 1\n")
    (tmp_path / "fine.py").write_text(MODEL)
    (tmp_path / "syntax.py").write_text("def (")
    (tmp_path / "_helper.py").write_text("")
    found = build_registry(tmp_path)
    assert list(found.models) == ["fine"] and found.aliases == {"twin": ("fine", {"form": "b"})}
    problems = found.plugins[-1].problems
    assert len(problems) == 2 and "a_silent.py" in problems[0] and "syntax.py" in problems[1]


def test_a_broken_file_of_a_package_does_not_hide_its_neighbours(tmp_path, monkeypatch):
    package = tmp_path / "rnn_lab_half"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "fine.py").write_text(MODEL)
    (package / "syntax.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("rnn_lab_half")
    fine, broken = models_in("rnn_lab_half")
    assert fine.name == "fine" and isinstance(broken, PluginError) and "syntax.py" in str(broken)


def test_a_model_without_a_model_class_is_named_when_it_is_used(tmp_path):
    (tmp_path / "classless.py").write_text(MODEL)  # a name that no other test of this process has imported
    with pytest.raises(PluginError, match=r"model 'classless' .*classless\.py.* cannot be loaded: AttributeError"):
        build_registry(tmp_path).models["classless"].load()


def test_a_docstring_is_read_wherever_python_finds_one_and_nothing_below_it(tmp_path):
    (tmp_path / "below.py").write_text("# A comment.\n\n" + MODEL + "def (")
    (tmp_path / "bytes.py").write_text("b'y = x'\n")
    (tmp_path / "joined.py").write_text(r"'y = x \n' r'\d' '\u00b2'" + "\nx = 1\n")
    (tmp_path / "open.py").write_text('"""y = x\n')
    found = build_registry(tmp_path)
    assert {name: ref.doc.equation for name, ref in found.models.items()} == {"below": "y = x", "joined": "y = x"}
    assert found.models["joined"].doc.text == r"\d²" and len(found.plugins[-1].problems) == 2
    with pytest.raises(PluginError, match=r"model 'below' .*below\.py.* cannot be loaded: SyntaxError"):
        found.models["below"].load()


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        build_registry(tmp_path / "nowhere")


def test_strict_mode_shows_the_error_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("RNN_LAB_STRICT_PLUGINS", "1")
    (tmp_path / "syntax.py").write_text("def (")
    with pytest.raises(PluginError, match=r"syntax\.py"):
        build_registry(tmp_path)
