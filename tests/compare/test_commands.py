"""`compare` and `diff` as a user types them."""

import json

import pytest
from rnn_lab_cli.main import main

from .folders import curve, noise, write_run


@pytest.fixture
def runs(tmp_path):
    """Two models over two seeds, the second a little better and slower."""
    for seed in (1, 2):
        write_run(tmp_path / f"a{seed}", curve(300, seed) + noise(300, seed, scale=0.002), seed=seed)
        loss = curve(300, seed) - 0.02 + noise(300, 9 + seed, scale=0.002)
        write_run(tmp_path / f"b{seed}", loss, seed=seed, model="e1", params=50_200, step_seconds=0.015)
    return tmp_path


@pytest.fixture
def rnn_lab(capfd):
    def call(*args):
        capfd.readouterr()
        return main([str(arg) for arg in args]), *capfd.readouterr()

    return call


def test_two_runs_get_a_verdict_on_every_axis(rnn_lab, runs):
    code, out, _ = rnn_lab("compare", runs / "a1", runs / "b1")
    lines = out.splitlines()
    assert code == 0
    assert [line for line in lines if line.startswith("at equal")] == [
        "at equal steps: 300 steps", "at equal tokens: 19,200 bytes", "at equal flops: 300,000 FLOPs",
        "at equal seconds: 2.99 s of training",
    ]  # fmt: skip
    row = dict(zip(lines[2].split("\t"), lines[4].split("\t"), strict=True))
    assert row["model"] == "e1" and row["verdict"] == "better" and row["params"] == "50200"
    assert row["basis"] == "paired steps, within-run only (one seed)" and row["difference"].startswith("-0.0")
    assert "rank reversal: e61 ahead at equal seconds; e1 at equal steps, tokens, flops" in out


def test_json_holds_what_the_table_shows_and_more(rnn_lab, runs):
    code, out, err = rnn_lab("compare", runs, "--json", "--margin", "0.01", "--axis", "steps")
    page = json.loads(out)
    assert code == 0 and err == ""
    assert [group["label"] for group in page["groups"]] == ["e61", "e1"]
    assert [len(group["runs"]) for group in page["groups"]] == [2, 2]
    (axis,) = page["axes"]
    (pair,) = axis["pairs"]
    assert pair["method"] == "paired seeds" and pair["label"] == "2 seeds" and pair["non_inferior"] in (True, False)
    assert axis["ranking"] == ["e1", "e61"] and pair["effect"] == pytest.approx(-0.02, abs=0.002)


def test_more_than_two_get_a_matrix(rnn_lab, runs):
    code, out, err = rnn_lab("compare", runs, "--each", "--unpaired", "--axis", "steps", "--window", "200")
    lines = out.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("row is"))
    assert "p (Holm)" in lines[2].split("\t")
    assert code == 0 and lines[start + 1].split("\t") == ["e61 (a1)", "", "~", ">", "~"]
    assert "in spite of pairing (seed: 1 and 2)" in err


def test_inequality_ends_with_2_and_says_what_to_type(rnn_lab, runs):
    write_run(runs / "c", curve(300), params=70_000, model="e1", env={"gpu": "A100"})
    code, out, err = rnn_lab("compare", runs / "a1", runs / "c")
    assert code == 2 and out == "" and "--allow params" in err and "50000 and 70000" in err
    code, _, err = rnn_lab("compare", runs / "a1", runs / "c", "--allow", "params")
    assert code == 2 and "--allow clock" in err and "--axis steps --axis tokens --axis flops" in err
    code, _, err = rnn_lab("compare", runs / "a1", runs / "c", "--allow", "params", "--allow", "clock")
    assert code == 0 and "in spite of" in err
    assert rnn_lab("compare", runs / "a1", runs / "c", "--allow", "params", "--axis", "steps")[0] == 0
    code, _, err = rnn_lab("compare", runs / "a1", runs / "b2")
    assert code == 2 and "--unpaired" in err
    assert rnn_lab("compare", runs / "a1", runs / "b2", "--unpaired")[0] == 0


@pytest.mark.parametrize("args", [["a1", "a1"], ["a1"], ["a1", "a2"], ["a1", "none"], ["a1", "b1", "--window", "3"]])
def test_what_cannot_be_compared_is_a_usage_error(rnn_lab, runs, args):
    paths = [arg if arg.startswith("-") or arg.isdigit() else runs / arg for arg in args]
    code, out, err = rnn_lab("compare", *paths)
    assert code == 2 and out == "" and err.startswith("error: ") and "internal" not in err


def test_seeds_against_a_published_figure(rnn_lab, runs):
    code, out, err = rnn_lab("compare", runs, "--against", "9.5", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["model"] for row in rows] == ["e61", "e1"] and "taken as exact" in err
    for row in rows:
        assert row["seeds"] == 2 and row["mean"] < 9.5 and row["p_less"] < 0.5
        assert row["p_two_sided"] == pytest.approx(2 * row["p_less"])
    assert "verdict" in rnn_lab("compare", runs, "--against", "9.5")[1]
    code, _, err = rnn_lab("compare", runs / "a1", "--against", "2")
    assert code == 2 and "two seeds" in err
    mixed = ("compare", runs / "a1", runs / "b1", runs / "b2", "--against", "9.5")
    code, out, err = rnn_lab(*mixed, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert rows[0]["verdict"].startswith("inconclusive") and rows[0]["mean"] is None and rows[1]["mean"] < 9.5
    assert "inconclusive" in rnn_lab(*mixed)[1]


def test_diff_lists_by_gravity(rnn_lab, runs):
    code, out, _ = rnn_lab("diff", runs / "a1", runs / "b2")
    assert code == 0
    assert [line for line in out.splitlines() if "\t" not in line and line] == [
        "breaks equality: compare refuses this unless told", "changes what is learned", "what is compared: the model",
    ]  # fmt: skip
    assert "--unpaired" in out and "train.seed\t1\t2" in out
    rows = json.loads(rnn_lab("diff", runs / "a1", runs / "b2", "--json")[1])
    assert {"severity": "model", "key": "model.name", "a": "e61", "b": "e1"}.items() <= rows[-1].items()
    code, out, err = rnn_lab("diff", runs / "a1", runs / "a1")
    assert (code, out) == (0, "") and "no difference" in err
