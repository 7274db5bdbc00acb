"""presets, fit --preset, size --preset, and the seed rows of show."""

import pytest
from rnn_lab.presets import all_presets
from rnn_lab.registry import registry

from .helpers import CELL, TINY, plugin, program

HOOK = "from rnn_lab.hookspecs import hookimpl\n"
KEYS = {"name", "model", "config", "seed_params_printed", "params", "match"}


def test_presets_lists_every_seed_row_with_its_count(rnn_lab):
    rows = {row["name"]: row for row in rnn_lab("presets", "--json").json}
    assert rows.keys() == all_presets(registry()).keys()
    assert all(row.keys() == KEYS for row in rows.values())
    assert rows["seed000/e5_d1536_r270"] == {
        "name": "seed000/e5_d1536_r270",
        "model": "e5",
        "config": {"name": "e5", "dim": 1536, "depth": 20, "rank": 270, "norm": "layer"},
        "seed_params_printed": "50.3M",
        "params": 50_254_848,
        "match": True,
    }
    assert all(row["match"] is True for row in rows.values() if row["seed_params_printed"] and row["config"])
    gated = rows["seed002/e88_silu_gate"]
    assert (gated["model"], gated["config"], gated["params"], gated["match"]) == ("e88", None, None, None)
    assert rows["seed004/e74-d-noz-t"]["model"] == "e74d"


def test_presets_of_a_family_and_of_a_document(rnn_lab):
    names = [row["name"] for row in rnn_lab("presets", "--family", "e61_e68", "--seed", "seed004", "--json").json]
    assert names == [f"seed004/e{n}" for n in range(61, 69)]
    assert {r["name"].split("/")[0] for r in rnn_lab("presets", "--seed", "seed003", "--json").json} == {"seed003"}
    done = rnn_lab("presets", "--family", "e61-e68")
    assert done.code == 2 and "'e61_e68'" in done.err
    done = rnn_lab("presets", "--seed", "seed4")
    assert done.code == 2 and "'seed004'" in done.err


def test_presets_prints_a_table_for_people(rnn_lab):
    lines = rnn_lab("presets", "--seed", "seed002").out.splitlines()
    assert lines[0].split("\t") == ["name", "model", "printed", "params", "match", "config"]
    assert any(line.startswith("seed002/e88_d24_h32_n48\te88\t~500M\t494227328\tyes\tdim = 3328") for line in lines)
    assert any("none: no shape is printed" in line for line in lines)


def test_one_preset_in_full(rnn_lab):
    page = rnn_lab("presets", "seed000/e5_d1536_r270", "--json").json
    assert page.keys() >= KEYS | {"document", "recipe", "history", "printed", "notes", "plugin"}
    assert [row["loss"] for row in page["printed"]] == ["1.4463", "1.4455"]
    assert all(row["external"] is True for row in page["printed"])
    assert page["recipe"]["protocol"] == "standard-50m" and "bf16" in page["history"]
    text = rnn_lab("presets", "seed004/llama").out
    assert "external" in text and "second-next byte" in text and "bench-100m-10min" in text
    done = rnn_lab("presets", "seed004/lama")
    assert done.code == 2 and "'seed004/llama'" in done.err


def test_size_of_a_preset_is_a_certificate(rnn_lab):
    done = rnn_lab("size", "--preset", "seed003/e4_2x", "--json")
    assert done.code == 0 and done.json["params"] == 49_187_840 and done.json["target"] is None
    assert done.json["config"]["rank"] == 128 and done.json["config"]["norm"] == "layer"
    assert "seed003/e4_2x: " in done.err
    done = rnn_lab("size", "--preset", "seed003/e4_2x", "--depth", "2", "--rank", "8", "--json")
    assert (done.json["config"]["depth"], done.json["config"]["rank"]) == (2, 8)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["size"], "give MODEL or --preset NAME"),
        (["size", "--preset", "seed003/e4_9x"], "seed003/e4_"),
        (["size", "--preset", "seed002/e88_silu_gate"], "has no configuration"),
        (["fit", "--preset", "seed002/e88_silu_gate"], "has no configuration"),
        (["fit", "--preset", "seed003/e4_2x", "--n-state", "3"], "--n-state"),
        (["fit", "--preset", "seed004/e61", "--target", "10M", "--dry-run"], "cannot reach 10,000,000"),
        (["fit", "--model", "e61", "--preset", "seed004/e74_n32", "--dry-run"], "is of model e74, and e61 is another"),
        (["fit", "-o", "model.name=e61", "--preset", "seed004/e74_n32"], "is of model e74, and e61 is another"),
        (["fit", "--config", "e1.toml", "--preset", "seed004/e74_n32"], "is of model e74, and e1 is another"),
        (["size", "e61", "--preset", "seed004/e74_n32", "--rank", "3"], "is of model e74, and e61 is another"),
        (["size", "61b", "--preset", "seed004/e61"], "is of model e61, and 61b is another"),
        (["fit", "--preset", "e61", "--dry-run"], "Did you mean 'seed004/e61'?"),
    ],
)
def test_what_cannot_be_is_said(rnn_lab, tmp_path, monkeypatch, argv, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e1.toml").write_text('[model]\nname = "e1"\n')
    done = rnn_lab(*argv)
    assert done.code == 2 and text in done.err and "Traceback" not in done.err


def plan(rnn_lab, *argv):
    done = rnn_lab("fit", *argv, "--dry-run", "--json")
    assert done.code == 0, done.err
    return done.json["config"]


def test_a_preset_is_a_layer_between_protocol_and_file(rnn_lab, corpus, tmp_path):
    (tmp_path / "mine.toml").write_text("[train]\nbatch_size = 4\n")
    name = "seed003/e0_stock"
    layers = ["--preset", name, "--config", str(tmp_path / "mine.toml"), "--steps", "7", "--data", str(corpus)]
    config = plan(rnn_lab, *layers)
    assert config["model"]["dim"] == {"value": 512, "origin": f"preset {name}"}
    assert config["model"]["norm"] == {"value": "layer", "origin": f"preset {name}"}
    assert config["train"]["seq_len"] == {"value": 512, "origin": f"preset {name}"}
    assert config["train"]["batch_size"] == {"value": 4, "origin": str(tmp_path / "mine.toml")}
    assert config["train"]["steps"] == {"value": 7, "origin": "option --steps"}


def test_naming_the_model_of_the_preset_again_changes_nothing(rnn_lab, corpus):
    config = plan(rnn_lab, "--preset", "seed004/e61", "--model", "E61", "--data", str(corpus))
    assert config["model"]["dim"]["origin"] == "preset seed004/e61"


def test_a_protocol_stands_in_for_the_recipe(rnn_lab, corpus):
    config = plan(rnn_lab, "--preset", "seed003/e4_4x", "--protocol", "standard-50m", "--data", str(corpus))
    assert config["train"]["batch_size"] == {"value": 256, "origin": "protocol standard-50m"}
    assert config["model"]["expansion"] == {"value": 4.0, "origin": "preset seed003/e4_4x"}
    assert "target" not in config["model"]


def test_a_preset_trains_and_its_run_can_be_read(rnn_lab, corpus, tmp_path):
    out = tmp_path / "run"
    small = [*TINY, "--n-state", "8", "--data", str(corpus), "--out", str(out)]
    done = rnn_lab("fit", "--preset", "seed004/e74_n32", *small, "--json")
    assert done.code == 0 and done.json["model"] == "e74" and "seed004/e74_n32: " in done.err
    assert done.json["preset"] == "seed004/e74_n32"
    text = (out / "config.toml").read_text()
    assert 'shell = "e74"' in text and '"model.shell" = "preset seed004/e74_n32"' in text
    done = rnn_lab("resume", str(out), "--steps", "4", "--json")
    assert (done.json["steps"], done.json["preset"]) == (4, "seed004/e74_n32")
    assert rnn_lab("sample", str(out), "--bytes", "4").code == 0


def test_show_lists_the_seed_rows_of_a_model(rnn_lab):
    page = rnn_lab("show", "e4", "--json").json
    assert [row["name"] for row in page["presets"]] == [f"seed003/e4_{x}x" for x in ("1.5", "2", "3", "4")]
    assert page["presets"][1]["loss"] == "1.6762" and page["presets"][1]["params"] == 49_187_840
    assert page["derived"]["d_inner"] and rnn_lab("show", "e88", "--json").json["derived"]["balance_ratio"]
    assert "seed003/e4_3x" in rnn_lab("show", "e4").out
    assert rnn_lab("show", "e2", "--json").json["presets"] == []
    assert "balance_ratio\t0.4615" in rnn_lab("size", "--preset", "seed002/e88_d24_h32_n48").out


def test_hook_register_presets(tmp_path):
    code = HOOK + (
        "from rnn_lab.registry import models_in, presets_in\n"
        "@hookimpl\ndef register_presets(register):\n    register(presets_in(__name__))\n"
    )
    breaks = CELL.replace("def cell_parts(cls, cfg):", "def cell_parts(cls, cfg):\n        1 / 0")
    code += "@hookimpl\ndef register_models(register):\n    register(models_in(__name__))\n"
    plugin(tmp_path, "rnn_lab_rows", code, breaks=breaks)
    (tmp_path / "rnn_lab_rows" / "presets").mkdir()
    text = (
        '[seed.theirs]\ndocument = "theirs.md"\ntitle = "Theirs"\n'
        '[[preset]]\nname = "theirs/one"\nconfig = { name = "61b", dim = 16, depth = 1 }\n'
        '[[preset]]\nname = "theirs/two"\nconfig = { name = "nix", dim = 16, depth = 1 }\n'
    )
    (tmp_path / "rnn_lab_rows" / "presets" / "theirs.toml").write_text(text)
    text = '[[preset]]\nname = "theirs/three"\nconfig = { name = "breaks", dim = 16, depth = 1 }\n'
    (tmp_path / "rnn_lab_rows" / "presets" / "three.toml").write_text(text)
    (tmp_path / "rnn_lab_rows" / "presets" / "wrong.toml").write_text("preset = 3\n")
    done = program("presets", "--seed", "theirs", "--json", path=tmp_path)
    one, three, two = done.json
    assert (one["name"], one["model"], one["match"]) == ("theirs/one", "e61", None) and one["params"] > 0
    assert (two["model"], two["params"]) == ("nix", None)
    assert (three["model"], three["params"]) == ("breaks", None)
    assert "warning: preset theirs/three: ZeroDivisionError: division by zero" in done.err
    assert "warning: preset theirs/two: unknown model 'nix'" in done.err
    assert "warning: plugin 'rnn_lab_rows'" in done.err and "wrong.toml" in done.err
    row = next(row for row in program("plugins", "--json", path=tmp_path).json if row["name"] == "rnn_lab_rows")
    assert row["status"] == "error" and "wrong.toml" in row["problems"][0]
    assert "wrong.toml" in program("doctor", "--json", path=tmp_path).out
