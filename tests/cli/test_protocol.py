"""`protocol list`, `show`, `run` and `noise` up to the point where something runs."""

import json

import pytest

from .helpers import plugin

HOOK = "from rnn_lab.hookspecs import hookimpl\nfrom pathlib import Path\n"


def test_list_has_every_protocol(rnn_lab):
    rows = {row["protocol"]: row for row in rnn_lab("protocol", "list", "--json").json}
    assert rows["bench-100m-10min"] | {"description": ""} == {
        "protocol": "bench-100m-10min", "target": "100M", "bytes per step": "32 x 512", "budget": "10 minutes",
        "runs": 27, "seeds": 1, "metric": "last100", "description": "", "problem": None,
    }  # fmt: skip
    assert rows["micro"]["budget"] == "400 steps" and rows["micro"]["seeds"] == 2
    lines = rnn_lab("protocol", "list").out.splitlines()
    assert len(lines) == 1 + len(rows) and lines[0].split("\t")[0] == "protocol"


def test_a_wrong_file_is_a_row_with_its_problem(rnn_lab, fresh, tmp_path):
    code = HOOK + (
        "@hookimpl\ndef register_protocols(register):\n    register('odd', Path(__file__).with_name('odd.toml'))\n"
    )
    plugin(tmp_path, "odds", code)
    (tmp_path / "odds" / "odd.toml").write_text("[train]\nsteps = 'x'\n")
    fresh(tmp_path)
    done = rnn_lab("protocol", "list")
    assert done.code == 0 and "odd: protocol odd: description" in done.err and "micro" in done.out
    assert rnn_lab("protocol", "show", "odd").code == 2


def test_show_says_what_is_equal_what_runs_and_what_was_published(rnn_lab):
    page = rnn_lab("protocol", "show", "standard-50m", "--json").json
    assert page["sections"]["train"] == {"steps": 1000, "batch_size": 256, "seq_len": 512}
    assert [run["label"] for run in page["runs"]][:2] == ["mamba2", "e5 d768"]
    assert {(row["run"], row["loss"]) for row in page["external"]} >= {("mamba2", 1.4422), ("e1", 1.4742)}
    text = rnn_lab("protocol", "show", "standard-50m").out
    assert "external, not reproduced here" in text and "model.rank = 269" in text and "LayerNorm" in text


def test_dry_run_shows_every_command_and_starts_nothing(rnn_lab, corpus, tmp_path):
    argv = ["micro", "--models", "e61,llama", "--seeds", "2", "--data", str(corpus), "--minutes", "1"]
    done = rnn_lab("protocol", "run", *argv, "--out", str(tmp_path / "s"), "--dry-run", "--json")
    assert [job["name"] for job in done.json["jobs"]] == ["e61-s42", "llama-s42", "e61-s43", "llama-s43"]
    assert done.json["jobs"][0]["params"] == 98_976 and not (tmp_path / "s").exists()
    assert done.json["overrides"] == ["train.minutes=1", f'data.path="{corpus}"']
    rows = rnn_lab("protocol", "run", *argv, "--dry-run").out.splitlines()
    assert rows[1].split("\t")[:3] == ["e61-s42", "main", "98976"] and "rnn-lab fit --protocol micro" in rows[1]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["protocol", "run", "micor"], "unknown protocol 'micor'. Did you mean 'micro'"),
        (["protocol", "show", "nix"], "unknown protocol 'nix'"),
        (["protocol", "run", "micro", "--models", "e16"], "unknown model 'e16'"),
        (["protocol", "run", "micro", "--part", "explore"], "has no part 'explore'"),
        (["protocol", "run", "micro", "-o", "train.step=3"], "train.step: unknown key"),
        (["protocol", "run", "micro", "--models", "e61", "--data", "/nowhere"], "/nowhere"),
        (["protocol", "run", "micro", "--models", "e61", "--out", "{file}"], "cannot write there"),
        (["protocol", "run", "micro", "--models", "e61", "--out", "{empty}", "--resume"], "is no series"),
        (["protocol", "run", "nowhere.toml"], "nowhere.toml: cannot read"),
        (["noise", "--protocol", "micro", "--model", "e16"], "unknown model 'e16'"),
        (["noise", "--protocol", "standard-50m", "--model", "e5", "--dry-run"], "has several: name one of e5 d1024"),
        (["noise", "--protocol", "micro", "--model", "e61", "--n", "1"], "is not in the range"),
    ],
)
def test_bad_input_is_a_line_and_exit_code_2(rnn_lab, tmp_path, argv, says):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    argv = [text.format(file=tmp_path / "file", empty=tmp_path / "empty") for text in argv]
    done = rnn_lab(*argv)
    assert done.code == 2 and says in done.err and "Traceback" not in done.err


def test_a_protocol_file_serves_fit_too(rnn_lab, corpus, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('description = "x"\n[model]\nname = "e61"\ndim = 16\n[train]\nsteps = 3\n')
    argv = ["--protocol", str(own), "--data", str(corpus), "--dry-run", "--json"]
    config = rnn_lab("fit", *argv).json["config"]
    assert config["train"]["steps"] == {"value": 3, "origin": f"protocol {own}"}


def test_completion_of_protocols(rnn_lab):
    from rnn_lab_cli.names import complete_protocol

    assert [item.value for item in complete_protocol(None, None, "e1")] == ["e1-depth-width"]


def test_noise_plans_one_model_with_n_seeds(rnn_lab, corpus):
    argv = ["--protocol", "micro", "--model", "e61", "--n", "4", "--data", str(corpus), "--dry-run", "--json"]
    jobs = json.loads(rnn_lab("noise", *argv).out)["jobs"]
    assert [job["seed"] for job in jobs] == [42, 43, 44, 45] and {job["label"] for job in jobs} == {"e61"}


@pytest.mark.parametrize("option", [["--gpus", "7"], ["--gpus", "0,0"]])
def test_a_gpu_that_is_not_there_claims_no_folder(rnn_lab, corpus, tmp_path, option):
    out = tmp_path / "s"
    done = rnn_lab("protocol", "run", "micro", "--models", "e61", "--data", str(corpus), "--out", str(out), *option)
    assert done.code == 2 and f"--gpus {option[1]}: {option[1][0]} is named twice or is not there" in done.err
    assert not out.exists()
