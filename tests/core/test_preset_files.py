"""Preset files: what they may hold, which counts agree with what was printed, and what a broken one costs."""

import pytest
from rnn_lab.config import ModelSection
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
        ("~500M", (500_000_000, 10**8)),
        ("~27M", (27_000_000, 10**6)),
        ("~50M", (50_000_000, 10**7)),
    ],
)
def test_a_printed_count_has_a_value_and_a_unit(text, count):
    assert printed_count(text) == count


def test_a_count_agrees_within_one_unit_of_the_last_digit():
    assert agrees(98_532_480, "98M") and agrees(98_532_480, "99M")
    assert not agrees(98_532_480, "97M") and not agrees(98_532_480, "100M")
    assert agrees(48_742_912, "48,742,912") and not agrees(48_742_913, "48,742,912")
    assert agrees(494_227_328, "~500M") and not agrees(399_000_000, "~500M")


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


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="'seed004/e61'"):
        find_preset("seed004/e611", registry())
    with pytest.raises(ConfigError, match="seed004/e74_n32"):
        find_preset("seed04/e74_n32", registry())
