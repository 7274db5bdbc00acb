"""Preset files: what they may hold, which counts agree with what was printed, and what a broken one costs."""

import pytest
from rnn_lab.config import ModelSection, validate
from rnn_lab.errors import ConfigError
from rnn_lab.presets import Preset, Row, agrees, all_presets, find_preset, printed_count
from rnn_lab.registry import PluginInfo, Registry, registry

DOCUMENT = '[seed.mine]\ndocument = "mine.md"\ntitle = "Mine"\nhistory = { once = "by hand" }\nnotes = ["all of it"]\n'


def found(*texts, folder):
    """A registry with one plugin per text."""
    every = Registry(models=registry().models, aliases=registry().aliases)
    for i, text in enumerate(texts):
        path = folder / f"{i}.toml"
        path.write_text(text)
        info = PluginInfo(f"plugin{i}", "")
        every.plugins.append(info)
        every.preset_files.append((info, path))
    return every


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("48,742,912", (48_742_912, 1)),
        ("98M", (98_000_000, 10**6)),
        ("50.3M", (50_300_000, 10**5)),
        ("50.0M", (50_000_000, 10**5)),
        ("1.27B", (1_270_000_000, 10**7)),
        ("100M", (100_000_000, 10**6)),
        ("~500M", (500_000_000, 10**7)),
        ("~27M", (27_000_000, 10**6)),
        ("~50M", (50_000_000, 10**6)),
        ("~1.50B", (1_500_000_000, 10**7)),
        ("0", (0, 1)),
        ("~0M", (0, 10**6)),
        ("1.234M", (1_234_000, 1000)),
    ],
)
def test_a_printed_count_has_a_value_and_a_unit(text, count):
    assert printed_count(text) == count


@pytest.mark.parametrize(
    "text",
    ["12x", "x12", "98M (about)", "1.2.3", ",", "9,M", "1,2", "~", "", "M", "12.5", "1.2345K", "98M\n", "9" * 5000],
)
def test_what_is_no_printed_count_is_refused(text):
    with pytest.raises(ValueError, match=r"parameter|digit"):
        printed_count(text)


def test_the_most_exact_count_is_the_printed_one():
    document = all_presets(registry())["seed004/e61"].document
    printed = [{"table": "T", "row": "a", "params": text} for text in ("~500M", "494.2M", "0.49B")]
    assert Preset(Row(name="mine/a", reason="x", printed=printed), document, "").printed_params == "494.2M"


def test_a_count_agrees_within_one_unit_of_the_last_digit():
    assert agrees(98_532_480, "98M") and agrees(98_532_480, "99M")
    assert not agrees(98_532_480, "97M") and not agrees(98_532_480, "100M")
    assert agrees(48_742_912, "48,742,912") and not agrees(48_742_913, "48,742,912")
    assert agrees(494_227_328, "~500M") and not agrees(489_000_000, "~500M")


def test_a_document_may_stand_in_another_plugins_file(tmp_path):
    row = '[[preset]]\nname = "mine/a"\nconfig = { name = "e61", dim = 16 }\nhistory = "once"\nnotes = ["of a"]\n'
    every = found(row, DOCUMENT, folder=tmp_path)
    preset = find_preset("mine/a", every)
    assert (preset.plugin, preset.seed, preset.history) == ("plugin0", "mine", "by hand")
    assert preset.notes == ("of a", "all of it")
    assert preset.layer().values["model"] == {"target": None, "name": "e61", "dim": 16}
    assert preset.section() == ModelSection(name="e61", fields={"dim": 16})
    assert preset.count(every) and preset.matches(preset.count(every)) is None


def test_a_preset_without_a_shape_leaves_the_target_alone(tmp_path):
    row = '[[preset]]\nname = "mine/a"\nconfig = { name = "e61", form = "tied" }\n'
    preset = find_preset("mine/a", every := found(DOCUMENT + row, folder=tmp_path))
    assert "target" not in preset.layer().values["model"]
    assert preset.count(every) is None and preset.matches(None) is None


def test_what_is_known_exactly_has_to_agree_too():
    document = all_presets(registry())["seed004/e61"].document
    row = {"name": "mine/a", "config": {"name": "e61"}, "printed": [{"table": "T", "row": "a", "params": "98M"}]}
    assert Preset(Row(**row), document, "").matches(98_532_480) is True
    assert Preset(Row(**row, params=98_532_480), document, "").matches(98_532_481) is False
    row["printed"].append({"table": "U", "row": "a", "params": "97M"})
    assert Preset(Row(**row), document, "").matches(98_532_480) is False


BROKEN = {
    "neither config nor reason": ('[[preset]]\nname = "mine/b"\n', "either a config or a reason"),
    "both": ('[[preset]]\nname = "mine/b"\nreason = "x"\nconfig = { name = "e61" }\n', "either a config or a reason"),
    "no model": ('[[preset]]\nname = "mine/b"\nconfig = { dim = 3 }\n', "names no model"),
    "unknown key": ('[[preset]]\nname = "mine/b"\nreason = "x"\nnote = 1\n', "'notes'"),
    "unknown key of a document": (DOCUMENT.replace("title", "titel"), "'title'"),
    "bad name": ('[[preset]]\nname = "mine"\nreason = "x"\n', "preset.0.name"),
    "bad count": ('[[preset]]\nname = "mine/b"\nreason = "x"\nprinted = [{ table = "", row = "", params = "many" }]\n',
                  "printed"),
    "trailing text": ('[[preset]]\nname = "mine/b"\nreason = "x"\n'
                      'printed = [{ table = "", row = "", params = "98M (about)" }]\n', "expected a parameter count"),
    "not a number": ('[[preset]]\nname = "mine/b"\nconfig = { name = "e61", dim = nan }\n', "not finite"),
    "no TOML": ("preset = [", "not valid TOML"),
    "no document": ('[[preset]]\nname = "yours/b"\nreason = "x"\n', "no file describes [seed.yours]"),
    "no history": ('[[preset]]\nname = "mine/b"\nreason = "x"\nhistory = "twice"\n', "has no 'twice'"),
    "taken": ('[[preset]]\nname = "mine/a"\nreason = "x"\n', "already registered by plugin0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_preset_is_a_problem_of_its_plugin(tmp_path, case):
    text, problem = BROKEN[case]
    good = DOCUMENT + '[[preset]]\nname = "mine/a"\nreason = "no shape"\n'
    every = found(good, text, folder=tmp_path)
    assert list(all_presets(every)) == ["mine/a"]
    assert [len(info.problems) for info in every.plugins] == [0, 1]
    assert problem in every.plugins[1].problems[0]
    with pytest.raises(ConfigError, match="no configuration: no shape"):
        find_preset("mine/a", every).layer()


def test_a_wrong_row_costs_no_other(tmp_path):
    row = '[[preset]]\nname = "mine/{}"\nreason = "x"\nprinted = [{{ table = "", row = "", params = "{}" }}]\n'
    every = found(DOCUMENT + row.format("a", "98M") + row.format("b", "12x") + row.format("c", "~1B"), folder=tmp_path)
    assert list(all_presets(every)) == ["mine/a", "mine/c"]
    (problem,) = every.plugins[0].problems
    assert "0.toml: preset.1.printed.0.params = '12x': expected a parameter count" in problem


def test_an_unknown_preset_says_what_keeps_presets_away(tmp_path, monkeypatch):
    every = found("preset = [", folder=tmp_path)
    with pytest.raises(ConfigError, match="Some plugins have problems: see `rnn-lab plugins`"):
        find_preset("mine/a", every)
    with pytest.raises(ConfigError) as caught:
        find_preset("mine/a", found(DOCUMENT, folder=tmp_path))
    assert "problems" not in str(caught.value) and "RNN_LAB_LOAD_PLUGINS" not in str(caught.value)
    monkeypatch.setenv("RNN_LAB_LOAD_PLUGINS", "baselines")
    with pytest.raises(ConfigError, match="RNN_LAB_LOAD_PLUGINS is set"):
        find_preset("mine/a", found(DOCUMENT, folder=tmp_path))


def test_a_fault_of_a_whole_table_is_shown_without_an_empty_key():
    with pytest.raises(ConfigError) as caught:
        validate(Row, {"name": "mine/a"}, prefix="preset.3.")
    assert str(caught.value) == "preset.3: a preset has either a config or a reason why there is none"


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'seed004/e61'"):
        find_preset("e61", registry())
    with pytest.raises(ConfigError, match="Did you mean 'seed004/e61'"):
        find_preset("seed003/e61", registry())
    with pytest.raises(ConfigError, match="'seed004/e61'"):
        find_preset("seed004/e611", registry())
    with pytest.raises(ConfigError, match="seed004/e74_n32"):
        find_preset("seed04/e74_n32", registry())
