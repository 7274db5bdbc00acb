"""fit and resume: layers and origins, output, exit codes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn
from rnn_lab_cli import progress
from rnn_lab_cli.commands.fit import _default_out
from rnn_lab_cli.progress import LiveProgress, progress_text

from .helpers import NAN_CELL, TINY, environment


def test_fit_trains_and_says_what_to_do_next(rnn_lab, corpus, tmp_path):
    out = tmp_path / "r"
    done = rnn_lab("fit", "--model", "e74", "--n-state", "8", *TINY, "--data", str(corpus), "--out", str(out))
    assert done.code == 0
    assert "status\tok" in done.out and "step 3" in done.out and "backends\trecurrence reference" in done.out
    result = json.loads((out / "result.json").read_text())
    passes = result["tokens"] / result["data"]["bytes"]
    assert f"passes over the data\t{passes:.3g}\n" in done.out
    for command in ("sample", "tensorboard", "resume", "runs"):
        assert f"  rnn-lab {command} " in done.out
    assert "backends of all 2 layers: recurrence reference" in done.err
    assert "n_state = 8" in (out / "config.toml").read_text()


def test_fit_json_is_result_json_and_progress_goes_to_stderr(rnn_lab, corpus, tmp_path):
    out = tmp_path / "r"
    done = rnn_lab("fit", "--model", "e61", *TINY, "--data", str(corpus), "--out", str(out), "--json")
    assert done.code == 0 and done.json == json.loads((out / "result.json").read_text())
    assert "step 3" in done.err


def test_resume_extends_and_a_spent_budget_is_refused(rnn_lab, corpus, tmp_path):
    out = str(tmp_path / "r")
    rnn_lab("fit", "--model", "e61", *TINY, "--data", str(corpus), "--out", out, "--quiet")
    done = rnn_lab("resume", out)
    assert done.code == 2 and "--steps" in done.err
    assert rnn_lab("resume", out, "--steps", "5", "--json").json["steps"] == 5
    done = rnn_lab("resume", out, "--steps", "0")
    assert done.code == 2 and "from option --steps" in done.err
    assert rnn_lab("resume", str(tmp_path)).code == 2


def test_dry_run_names_the_layer_that_set_each_value(rnn_lab, corpus, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[model]\nname = "e74"\ndim = 32\n[train]\nbatch_size = 4\nseq_len = 8\nseed = 1\n')
    done = rnn_lab(
        "fit", "--config", str(file), "--data", str(corpus), "--seq-len", "16", "--n-state", "8", "--carry-state",
        "-o", "train.clip=0.5", "-o", "train.seed=7", "--dry-run", "--json",
    )  # fmt: skip
    config = done.json["config"]
    assert config["train"]["batch_size"] == {"value": 4, "origin": str(file)}
    assert config["train"]["seq_len"] == {"value": 16, "origin": "option --seq-len"}
    assert config["train"]["clip"] == {"value": 0.5, "origin": "-o"}
    assert config["train"]["seed"] == {"value": 7, "origin": "-o"}
    assert config["train"]["carry_state"] == {"value": True, "origin": "option --carry-state"}
    assert config["model"]["n_state"] == {"value": 8, "origin": "option --n-state"}
    assert config["model"]["dim"] == {"value": 32, "origin": str(file)}
    assert config["optimizer"]["lr"]["origin"] == "default"
    assert done.json["certificate"]["params"] > 0
    assert not (tmp_path / "runs").exists()


def test_dry_run_prints_a_table(rnn_lab, corpus):
    lines = rnn_lab("fit", "--model", "e61", *TINY, "--data", str(corpus), "--dry-run").out.splitlines()
    assert lines[0] == "key\tvalue\tfrom" and "train.steps\t3\toption --steps" in lines
    assert "model.dim\t16\toption --dim" in lines


def test_fit_help_shows_the_fields_of_the_model(rnn_lab, tmp_path):
    text = rnn_lab("fit", "--model", "e74", "--help").out
    own, fields = text.split("Fields of e74:")
    assert "--n-state" in fields and "--use-conv / --no-use-conv" in fields and "[no_z|full|tied_kq|tied_kvq]" in fields
    assert "--n-state" not in own and "--batch-size" in own
    file = tmp_path / "run.toml"
    file.write_text('[model]\nname = "e88"\n')
    assert "Fields of e88:" in rnn_lab("fit", "--config", str(file), "--help").out
    assert "Fields of e61:" in rnn_lab("fit", "-o", "model.name=61b", "--help").out
    assert "Name the model" in rnn_lab("fit", "--help").out


def test_flags_and_choices_of_the_model_reach_its_config(rnn_lab, corpus):
    argv = ["fit", "--model", "e74", *TINY, "--data", str(corpus), "--dry-run", "--json"]
    model = rnn_lab(*argv, "--use-conv", "--projection", "tied_kq", "--expansion", "1.5").json["config"]["model"]
    assert model["use_conv"]["value"] is True and model["projection"]["value"] == "tied_kq"
    assert model["expansion"] == {"value": 1.5, "origin": "option --expansion"}
    assert rnn_lab(*argv, "--no-use-conv").json["config"]["model"]["use_conv"]["origin"] == "option --use-conv"


def test_the_default_folder_is_new_every_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    first = _default_out("e74")
    first.mkdir(parents=True)
    assert str(first) == "runs/e74-20260101-000000" and str(_default_out("e74")) == f"{first}-2"


def test_an_interrupted_run_exits_130_and_says_how_to_go_on(rnn_lab, corpus, tmp_path):
    out = tmp_path / "r"

    def interrupt():
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_bytes():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    argv = [*TINY, "--steps", "1000000", "--data", str(corpus), "--out", str(out)]
    done = rnn_lab("fit", "--model", "e61", *argv)
    thread.join()
    assert done.code == 130 and "status\tinterrupted" in done.out
    assert f"rnn-lab resume {out}" in done.err


def test_sigint_ends_the_process_with_130(corpus, tmp_path):
    out = tmp_path / "r"
    argv = ["fit", "--model", "e61", *TINY, "--steps", "1000000", "--data", str(corpus), "--out", str(out), "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rnn_lab_cli", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert json.loads((out / "result.json").read_text())["status"] == "interrupted"


def test_divergence_exits_3_with_the_result_in_json(rnn_lab, fresh, corpus, tmp_path):
    fresh()
    models = tmp_path / "models"
    models.mkdir()
    (models / "nancell.py").write_text(NAN_CELL)
    argv = ["--plugins-dir", str(models), "fit", "--model", "nancell", *TINY, "--data", str(corpus), "--json"]
    done = rnn_lab(*argv, "--out", str(tmp_path / "r"))
    assert done.code == 3 and done.json["status"] == "diverged"
    assert done.err.splitlines()[-1].startswith("error: step 1: loss nan")


def test_a_run_without_a_usable_backend_exits_1(rnn_lab, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("RNN_LAB_KERNELS", "matrix")
    argv = ["fit", "--model", "e61", *TINY, "--data", str(corpus), "--out", str(tmp_path / "r")]
    done = rnn_lab(*argv)
    assert done.code == 1 and "error: RNN_LAB_KERNELS=matrix, but" in done.err
    monkeypatch.setenv("RNN_LAB_KERNELS", "nix")
    done = rnn_lab(*argv)
    assert done.code == 2 and "error: RNN_LAB_KERNELS=nix: no backend has this name" in done.err
    assert not (tmp_path / "r").exists()


def test_the_progress_line_has_the_figures_of_the_step():
    line = {"step": 1200, "loss": 2.34567, "last100": 2.4, "tokens_per_s": 12345.6}
    text = progress_text(line, 0.345, 83.2)
    assert text == "step 1,200  loss 2.3457  last100 2.4000  12,346 tok/s  34%  1:23 left"
    assert progress_text({**line, "last100": None}, 1.0, 3723).endswith("100%  1:02:03 left")


def test_a_reader_that_went_away_does_not_end_a_run(monkeypatch):
    def gone(text, err=False):
        raise BrokenPipeError

    monkeypatch.setattr(progress.click, "echo", gone)
    watcher = progress.PlainProgress(err=False)
    watcher.step({"step": 1, "loss": 2.0, "tokens_per_s": 10.0}, 0.5)
    watcher.note("a note")


def test_the_live_line_changes_in_place(tmp_path):
    with (tmp_path / "screen").open("w+") as screen:
        console = Console(file=screen, force_terminal=True, width=120)
        with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
            live = LiveProgress(bar, bar.add_task("starting", total=1.0))
            live.step({"step": 1, "loss": 2.0, "tokens_per_s": 10.0}, 0.5)
            live.note("careful [not markup]")
            live.step({"step": 2, "loss": 1.5, "tokens_per_s": 10.0}, 1.0)
        screen.seek(0)
        text = screen.read()
    assert "careful [not markup]" in text and "step 2  loss 1.5000" in text


@pytest.mark.parametrize("flag", ["--json", "--quiet"])
def test_quiet_and_json_keep_progress_off_stdout(rnn_lab, corpus, tmp_path, flag):
    out = str(tmp_path / "r")
    done = rnn_lab("fit", "--model", "e61", *TINY, "--steps", "1", "--data", str(corpus), "--out", out, flag)
    assert done.code == 0 and "step 1 " not in done.out


def test_text_of_the_command_line_becomes_numbers(rnn_lab, corpus):
    text = ("train.carry_state=yes", "train.clip='0.25'", 'optimizer.galore_rank="8"', "optimizer.lr=1e-2")
    more = [word for each in text for word in ("-o", each)]
    told = rnn_lab("fit", "--model", "e61", *TINY, "--data", str(corpus), "--dry-run", "--json", *more).json["config"]
    assert told["train"]["carry_state"]["value"] is True and told["train"]["clip"]["value"] == 0.25
    assert told["optimizer"]["galore_rank"]["value"] == 8 and told["optimizer"]["lr"]["value"] == 0.01
