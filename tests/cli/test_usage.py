"""What goes wrong becomes one line, an exit code, and the nearest name."""

import os
import subprocess
import sys

import pytest
from rnn_lab_cli import output
from rnn_lab_cli.commands import list_models


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["lst-models"], "'list-models'"),
        (["list"], "'list-models'"),
        (["sise", "e74"], "'size'"),
        (["data", "inof"], "'info'"),
        (["list-models", "--famly", "x"], "--family"),
        (["fit", "--model", "e7"], "'e74'"),
        (["size", "e744"], "'e74'"),
        (["show", "gur"], "'gru'"),
        (["check", "e7_e88"], "'e74_e88'"),
        (["fit", "--model", "e74", "--n-stat", "3"], "--n-state"),
        (["size", "e74", "--n-stat", "3"], "--n-state"),
        (["fit", "--model", "e74", "-o", "model.n_stat=3"], "'n_state'"),
        (["fit", "--model", "e74", "-o", "train.stepz=3"], "'steps'"),
        (["fit", "--model", "e74", "-o", "trian.steps=3"], "'train'"),
        (["fit", "--model", "e74", "--optimizer", "adam"], "'adamw'"),
        (["fit", "--model", "e74", "--protocol", "nix"], "unknown protocol"),
        (["fit", "--n-state", "3"], "once the model is named"),
        (["fit"], "no model is named"),
        (["fit", "--model", "e74", "--projection", "nz"], "no_z"),
        (["completion", "tcsh"], "bash"),
    ],
)
def test_wrong_names_exit_2_and_suggest_the_nearest(rnn_lab, argv, hint):
    done = rnn_lab(*argv)
    assert done.code == 2 and done.err.startswith("error: ") and hint in done.err
    assert done.out == "" and "Traceback" not in done.err


def test_debug_shows_the_traceback(rnn_lab):
    done = rnn_lab("--debug", "show", "nix")
    assert done.code == 2 and "Traceback" in done.err and "error: unknown model 'nix'" in done.err


def test_an_internal_error_is_one_line(rnn_lab, monkeypatch):
    def broken(family):
        raise ZeroDivisionError("by design\nsecond line")

    monkeypatch.setattr(list_models, "model_rows", broken)
    done = rnn_lab("list-models")
    assert done.code == 1 and done.err.count("\n") == 1
    assert done.err.startswith("internal error: ZeroDivisionError: by design; run with --debug")
    assert "Traceback" in rnn_lab("--debug", "list-models").err


def test_ctrl_c_exits_130(rnn_lab, monkeypatch):
    def interrupt(family):
        raise KeyboardInterrupt

    monkeypatch.setattr(list_models, "model_rows", interrupt)
    done = rnn_lab("list-models")
    assert done.code == 130 and done.err.strip() == "interrupted"


def test_no_arguments_show_the_help(rnn_lab):
    done = rnn_lab()
    assert done.code == 2 and "Commands:" in done.err and "list-models" in done.err


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "rnn_lab_cli", "list-models"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""


@pytest.mark.parametrize(
    ("closed", "argv", "code"),
    [
        (">&-", "--version", 0),
        (">&-", "list-models", 0),
        ("2>&-", "size nix", 2),
        (">&- 2>&-", "size nix", 2),
    ],
)
def test_streams_that_are_closed_swallow_what_is_written(closed, argv, code):
    command = f"{sys.executable} -m rnn_lab_cli {argv} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == code and "internal error" not in done.stderr and done.stdout == ""


def test_output_in_a_pipe_is_plain_and_tab_separated(rnn_lab):
    lines = rnn_lab("list-models").out.splitlines()
    assert lines[0].split("\t") == ["name", "family", "equation", "parent", "aliases"]
    assert all(line.count("\t") == 4 and "\x1b" not in line for line in lines)


def test_output_on_a_terminal_is_a_table(rnn_lab, monkeypatch):
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    text = rnn_lab("list-models").out
    assert "\t" not in text and "───" in text
    assert output.cell(1234567, pretty=True) == "1,234,567" and output.cell(None, pretty=True) == "-"
    assert output.cell(0.5, pretty=True) == "0.5000" and output.cell(12345.6, pretty=False) == "12346"


def test_help_says_how_many_runs_a_cpu_takes_at_once(rnn_lab):
    for command, told in ((("bench", "e3"), "on the CPU one,"), (("protocol", "run"), "on the CPU one per core,")):
        assert told in " ".join(rnn_lab(*command, "--help").out.split())
