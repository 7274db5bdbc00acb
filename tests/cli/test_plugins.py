"""Plugins contribute through hooks, and broken ones cost a line, never the tool."""

import json

import pytest

from .helpers import CELL, TINY, plugin, program

HOOK = "from rnn_lab.hookspecs import hookimpl\n"
BROKEN = {
    "raises": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "exits": ("import sys\nsys.exit(7)", "SystemExit: 7"),
    "lacks": ("import nothing_of_that_name", "ModuleNotFoundError"),
    "newer": ("PLUGIN_API = 99", "needs plugin API 99"),
    "hangs": ("import time\ntime.sleep(60)", "took longer than 1 s"),
    "wrong": ("def (:", "SyntaxError"),
    "leaves": ("import os\nos._exit(5)", "calls os._exit(5)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_one_warning_and_a_row(tmp_path, name):
    code, problem = BROKEN[name]
    plugin(tmp_path, name, code)
    done = program("list-models", "--json", path=tmp_path, RNN_LAB_PLUGIN_TIMEOUT="1")
    assert done.code == 0 and "e74" in {row["name"] for row in done.json}
    assert done.err.count("\n") == 1 and done.err.startswith(f"warning: plugin '{name}'") and problem in done.err
    done = program("plugins", "--json", path=tmp_path, RNN_LAB_PLUGIN_TIMEOUT="1")
    row = next(row for row in done.json if row["name"] == name)
    assert done.code == 0 and done.err == ""
    assert row["status"] == "error" and problem in row["problems"][0] and row["version"] == "1.0"


def test_a_model_that_exists_is_refused_and_the_rest_of_the_plugin_works(tmp_path):
    code = HOOK + (
        "from rnn_lab.registry import models_in\n"
        "@hookimpl\ndef register_models(register):\n    register(models_in(__name__))\n"
    )
    plugin(tmp_path, "rnn_lab_twice", code, e74=CELL, e999=CELL)
    done = program("plugins", "--json", path=tmp_path)
    row = next(row for row in done.json if row["name"] == "rnn_lab_twice")
    assert row["models"] == ["e999"] and "already registered by e74_e88" in row["problems"][0]
    assert program("list-models", "--family", "twice", path=tmp_path).code == 0


def test_a_model_of_the_labs_own_stays_whoever_comes_first_in_the_alphabet(tmp_path):
    code = HOOK + (
        "from rnn_lab.registry import models_in\n"
        "@hookimpl\ndef register_models(register):\n    register(models_in(__name__))\n"
    )
    plugin(tmp_path, "aaa_lab", code, e61=CELL.replace("Parameters", "Aliases     68s: expansion = 2\nParameters"))
    plugin(tmp_path, "builtin", code, e998=CELL)
    plugin(tmp_path, "e61_e68", code, e999=CELL)
    rows = program("plugins", "--json", path=tmp_path).json
    own = {row["distribution"]: row for row in rows if row["distribution"].startswith("rnn-lab")}
    assert all(row["status"] == "ok" for row in own.values()) and "e61" in own["rnn-lab-e61-e68"]["models"]
    foreign = {row["distribution"]: row for row in rows if row["distribution"] in ("aaa_lab", "builtin", "e61_e68")}
    assert all(row["status"] == "error" and row["models"] == [] for row in foreign.values()), foreign
    listed = {row["name"]: row for row in program("list-models", "--json", path=tmp_path).json}
    assert listed["e61"]["plugin"] == "e61_e68" and "61b" in json.dumps(listed["e61"])


def test_strict_mode_shows_what_the_plugin_raised(tmp_path):
    plugin(tmp_path, "raises", "raise RuntimeError('boom')")
    done = program("list-models", path=tmp_path, RNN_LAB_STRICT_PLUGINS="1")
    assert done.code == 1 and "internal error: RuntimeError: boom" in done.err


def test_plugins_can_be_left_out(tmp_path):
    plugin(tmp_path, "raises", "raise RuntimeError('boom')")
    done = program("list-models", "--json", path=tmp_path, RNN_LAB_LOAD_PLUGINS="e74_e88")
    assert {row["family"] for row in done.json} == {"e74_e88"} and done.err == ""
    done = program("show", "e74", path=tmp_path, RNN_LAB_LOAD_PLUGINS="")
    assert done.code == 2 and "No plugin is loaded" in done.err


def test_a_folder_with_one_file_appears_sizes_and_trains(rnn_lab, fresh, corpus, tmp_path):
    fresh()
    models = tmp_path / "models"
    models.mkdir()
    (models / "mycell.py").write_text(CELL)
    folder = ["--plugins-dir", str(models)]
    listed = {row["name"]: row for row in rnn_lab(*folder, "list-models", "--json").json}
    assert listed["mycell"]["equation"] == "h_t = tanh(x_t + h_{t-1})" and listed["mycell"]["family"] == "models"
    sized = rnn_lab(*folder, "size", "mycell", "--target", "200k", "--json").json
    assert sized["reachable"] and abs(sized["deviation"]) <= 0.005
    argv = ["fit", "--model", "mycell", *TINY, "--steps", "2", "--data", str(corpus), "--out", str(tmp_path / "r")]
    done = rnn_lab(*folder, *argv, "--json")
    assert done.code == 0 and done.json["status"] == "ok" and done.json["steps"] == 2


def test_a_plugins_folder_that_is_not_there_is_refused(tmp_path):
    done = program("--plugins-dir", str(tmp_path / "nix"), "list-models")
    assert done.code == 2 and "no such folder" in done.err


def test_hook_register_models(tmp_path):
    code = HOOK + (
        "from rnn_lab.registry import models_in\n"
        "@hookimpl\ndef register_models(register):\n    register(models_in(__name__))\n"
    )
    plugin(tmp_path, "rnn_lab_mine", code, mycell=CELL)
    rows = {row["name"]: row for row in program("list-models", "--json", path=tmp_path).json}
    assert rows["mycell"]["family"] == "mine" and rows["mycell"]["plugin"] == "rnn_lab_mine"


def test_hook_register_optimizers(rnn_lab, fresh, corpus, tmp_path):
    code = HOOK + "@hookimpl\ndef register_optimizers(register):\n    register('plain', 'opts.plain:sgd')\n"
    plain = "import torch\n\n\ndef sgd(model, cfg):\n    return torch.optim.SGD(model.parameters(), lr=cfg.lr)\n"
    plugin(tmp_path, "opts", code, plain=plain)
    fresh(tmp_path)
    argv = ["--data", str(corpus), "--out", str(tmp_path / "r"), "--json"]
    done = rnn_lab("fit", "--model", "e61", *TINY, "--optimizer", "plain", *argv)
    assert done.code == 0 and done.json["steps"] == 3


def test_hook_register_protocols(rnn_lab, fresh, corpus, tmp_path):
    code = HOOK + (
        "from pathlib import Path\n@hookimpl\ndef register_protocols(register):\n"
        "    register('short', Path(__file__).with_name('short.toml'))\n"
    )
    plugin(tmp_path, "protos", code)
    fresh(tmp_path)
    text = 'description = "A short one."\n[model]\nname = "e61"\n[train]\nsteps = 9\nseq_len = 8\n'
    (tmp_path / "protos" / "short.toml").write_text(text)
    argv = ["--protocol", "short", "--seq-len", "16", "--dim", "16", "--data", str(corpus), "--dry-run", "--json"]
    config = rnn_lab("fit", *argv).json["config"]
    assert config["train"]["steps"] == {"value": 9, "origin": "protocol short"}
    assert config["train"]["seq_len"]["origin"] == "option --seq-len" and config["model"]["name"]["value"] == "e61"


def test_hook_register_trackers(rnn_lab, fresh, corpus, tmp_path):
    code = HOOK + "@hookimpl\ndef register_trackers(register):\n    register('lines', 'tracks.lines:Lines')\n"
    lines = (
        "class Lines:\n    def __init__(self, run_dir, cfg, first):\n        self.file = (run_dir / 'l').open('w')\n"
        "    def log(self, step, line):\n        self.file.write(f'{step}\\n')\n"
        "    def close(self, result):\n        self.file.write(result['status'])\n        self.file.close()\n"
    )
    plugin(tmp_path, "tracks", code, lines=lines)
    fresh(tmp_path)
    argv = ["-o", 'log.trackers=["lines"]', "--data", str(corpus), "--out", str(tmp_path / "r"), "--quiet"]
    assert rnn_lab("fit", "--model", "e61", *TINY, *argv).code == 0
    assert (tmp_path / "r" / "l").read_text() == "1\n2\n3\nok"


def test_hook_register_diagnostics(rnn_lab, fresh, corpus, tmp_path):
    code = HOOK + "@hookimpl\ndef register_diagnostics(register):\n    register('D-MINE', 'looks.rules:MINE')\n"
    rules = (
        "from rnn_lab.diagnostics import Rule\n"
        "MINE = Rule('D-MINE', 'error', 'from step 2 on', "
        "lambda w: f'step {w.step} came' if w.step > 1 else None, 'train.steps = 1')\n"
    )
    plugin(tmp_path, "looks", code, rules=rules)
    fresh(tmp_path)
    argv = ["fit", "--model", "e61", *TINY, "--data", str(corpus), "--out"]
    done = rnn_lab(*argv, str(tmp_path / "r"))
    assert done.code == 0 and "D-MINE 2x" in done.out
    assert "D-MINE (error) at step 2: step 2 came. Try: train.steps = 1" in done.err
    done = rnn_lab(*argv, str(tmp_path / "strict"), "--strict")
    assert done.code == 5 and "step 2 came" in done.err


def test_hook_register_executors(rnn_lab, fresh, corpus, tmp_path):
    code = HOOK + "@hookimpl\ndef register_executors(register):\n    register('mine', 'farms.farm:KIND')\n"
    farm = (
        "from rnn_lab.errors import ConfigError\n"
        "class Kind:\n"
        "    def preview(self, setting, task):\n        return f'{task.name} with {setting.options}'\n"
        "    def open(self, setting):\n        raise ConfigError('the farm is asleep')\n"
        "KIND = Kind()\n"
    )
    plugin(tmp_path, "farms", code, farm=farm)
    fresh(tmp_path)
    argv = ["protocol", "run", "micro", "--models", "e61", "--seeds", "1", "--data", str(corpus), "--executor", "mine"]
    done = rnn_lab(*argv, "-x", "barn=3", "-x", "cow.legs=4", "--dry-run")
    assert done.code == 0 and "e61-s42 with {'barn': 3, 'cow': {'legs': 4}}" in done.out
    done = rnn_lab(*argv, "--out", str(tmp_path / "s"))
    assert done.code == 2 and "the farm is asleep" in done.err and not (tmp_path / "s").exists()
    done = rnn_lab(*argv, "-x", "barn")
    assert done.code == 2 and "-x barn: expected key.path=value, for example -x key=value" in done.err


def test_hook_register_commands(tmp_path):
    code = (
        HOOK
        + "@hookimpl\ndef register_commands(cli):\n    cli.add_lazy('greet', 'greets.greet:greet', help='Say hello.')\n"
    )
    greet = "import click\n\n\n@click.command()\ndef greet():\n    click.echo('hello')\n    return 3\n"
    plugin(tmp_path, "greets", code, greet=greet)
    assert "greet" in program("--help", path=tmp_path).out and "Say hello." in program("--help", path=tmp_path).out
    done = program("greet", path=tmp_path)
    assert done.code == 0 and done.out == "hello\n"
    assert "'greet'" in program("gret", path=tmp_path).err


COMMANDS = {
    "raising": ("raise ValueError('no')", "ValueError: no"),
    "taking": ("cli.add_lazy('fit', 'x:y')", "'fit' is already registered by rnn-lab"),
    "garbled": ("cli.add_lazy('nope', 'nocolon')", "module:attribute"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_hook_that_fails_is_a_problem_of_its_plugin(tmp_path, name):
    line, problem = COMMANDS[name]
    plugin(tmp_path, name, HOOK + f"@hookimpl\ndef register_commands(cli):\n    {line}\n")
    done = program("list-models", path=tmp_path)
    assert done.code == 0 and done.err.count("\n") == 1 and problem in done.err
    rows = {row["name"]: row for row in program("plugins", "--json", path=tmp_path).json}
    assert problem in rows[name]["problems"][0] and rows["cli"]["status"] == "ok"


def test_a_command_that_does_not_import_is_an_error_of_that_command_only(tmp_path):
    code = HOOK + (
        "@hookimpl\ndef register_commands(cli):\n    cli.add_lazy('a', 'cmds.a:a')\n    cli.add_lazy('b', 'cmds.b:b')\n"
    )
    plugin(tmp_path, "cmds", code, a="import nothing_of_that_name\n", b="b = 3\n")
    done = program("a", path=tmp_path)
    assert done.code == 2 and "command 'a' (cmds.a:a) cannot be loaded" in done.err
    assert "is no click command" in program("b", path=tmp_path).err
    assert program("--help", path=tmp_path).code == 0
