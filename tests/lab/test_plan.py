"""From a protocol to jobs, everything checked before anything runs."""

import json

import pytest
from rnn_lab.errors import ConfigError
from rnn_lab.lab.plan import plan_series, toml_value
from rnn_lab.lab.series import SeriesDir
from rnn_lab.registry import registry

TEXT = """
description = "A test's."
[train]
batch_size = 2
seq_len = 16
steps = 3
seed = 5
[[run]]
model = { name = "e61", dim = 16, depth = 2 }
[[run]]
label = "wide e61"
part = "wide"
model = { name = "e61", dim = 32, depth = 2 }
optimizer = { lr = 1e-2 }
[[run]]
preset = "seed000/e1_d512"
"""


@pytest.fixture
def plan(tmp_path):
    def make(text=TEXT, **options):
        path = tmp_path / "own.toml"
        path.write_text(text)
        return plan_series(str(path), registry(), **options)

    return make


def names(plan):
    return [job.name for job in plan.jobs]


def test_every_model_with_every_seed_the_first_seed_first(plan):
    made = plan(seeds=2)
    assert names(made) == ["e61-s5", "wide-e61-s5", "e1_d512-s5", "e61-s6", "wide-e61-s6", "e1_d512-s6"]
    assert made.seeds == [5, 6] and {job.group for job in made.jobs} == {"e61", "wide e61", "e1_d512"}
    wide, preset = made.jobs[1], made.jobs[2]
    assert wide.args[3:] == (
        "--model", "e61", "-o", "model.dim=32", "-o", "model.depth=2", "-o", "optimizer.lr=0.01", "-o", "train.seed=5",
    )  # fmt: skip
    assert preset.args[3:] == ("--preset", "seed000/e1_d512", "-o", "train.seed=5")
    assert (preset.model, preset.params) == ("e1", 27_689_472)


def test_the_commands_are_runs_of_fit(plan, tmp_path):
    from click.testing import CliRunner
    from rnn_lab_cli.main import cli

    (job,) = plan(models=["wide e61"], overrides=["train.steps=4"]).jobs
    done = CliRunner().invoke(cli, [*job.args, "--dry-run", "--json"])
    config = json.loads(done.stdout)["config"]
    assert config["model"]["dim"]["value"] == 32 and config["optimizer"]["lr"]["value"] == 0.01
    assert config["train"]["steps"] == {"value": 4, "origin": "-o"}
    assert config["train"]["batch_size"] == {"value": 2, "origin": f"protocol {tmp_path / 'own.toml'}"}
    assert config["train"]["seed"]["value"] == 5


def test_models_are_chosen_by_label_model_or_preset_and_others_may_be_added(plan):
    assert names(plan(models=["wide e61"])) == ["wide-e61-s5"]
    assert names(plan(models=["e61"])) == ["e61-s5", "wide-e61-s5"], "a model's name means all its runs"
    assert names(plan(models=["seed000/e1_d512", "e68"])) == ["e1_d512-s5", "e68-s5"]
    assert names(plan(parts=["wide"], also=["61b"])) == ["wide-e61-s5", "61b-s5"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"models": ["e99"]}, "unknown model 'e99'"),
        ({"also": ["seed000/nix"]}, "unknown preset 'seed000/nix'"),
        ({"parts": ["wid"]}, "has no part 'wid'. Did you mean 'wide'"),
        ({"also": ["e61"]}, "'e61' would run twice"),
        ({"overrides": ["train.stepz=3"]}, "train.stepz: unknown key (from -o). Did you mean 'steps'"),
        ({"overrides": ["data.path=/nowhere"]}, "/nowhere"),
        ({"overrides": ["train.grad_accum=3"]}, "train.grad_accum = 3 does not divide"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(plan, options, says):
    with pytest.raises(ConfigError) as error:
        plan(**options)
    assert says in str(error.value)


def test_every_wrong_run_is_named(plan):
    wrong = TEXT + '[[run]]\nmodel = { name = "e99" }\n[[run]]\nmodel = { name = "e68", dimm = 3 }\n'
    with pytest.raises(ConfigError) as error:
        plan(wrong)
    assert "- e99: unknown model 'e99'" in str(error.value) and "- e68: model.dimm: unknown key" in str(error.value)


def test_a_protocol_without_runs_needs_models(plan):
    with pytest.raises(ConfigError, match="lists no runs: name models with --models"):
        plan('description = "x"\n')
    assert names(plan('description = "x"\n', models=["e61"])) == ["e61-s42"]


def test_the_plan_survives_its_file(plan, tmp_path):
    made = plan(seeds=2, overrides=["train.steps=2"])
    series = SeriesDir.create(tmp_path / "s", made, command=["rnn-lab", "protocol", "run"])
    meta = series.read_plan()
    assert tuple(series.jobs()) == made.jobs and meta["seeds"] == [5, 6] and meta["overrides"] == ["train.steps=2"]
    assert meta["resolved"]["train"]["batch_size"] == 2 and meta["external"][0]["run"] == "e1_d512"
    assert {"protocol", "resolved", "seeds", "jobs", "external", "created", "command"} <= set(meta)
    series.unlock()


def test_the_single_file_models_of_a_folder_go_along(plan, monkeypatch, tmp_path):
    monkeypatch.setenv("RNN_LAB_PLUGINS_DIR", "some/folder")
    monkeypatch.chdir(tmp_path)
    assert plan().jobs[0].args[:3] == ("--plugins-dir", str(tmp_path / "some/folder"), "fit")


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (1e-2, "0.01"), (True, "true"), ("a\nb", '"a\\nb"'), ([1, 2], "[ 1, 2, ]")]
)
def test_values_as_options_take_them(value, text):
    from rnn_lab.config import parse_override

    assert toml_value(value) == text and parse_override(f"k={text}") == {"k": value}
