"""`compare` and `diff` as a user types them."""

import json
import shutil

import numpy as np
import pytest
from rnn_lab.comparison.integrity import sha256
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


def test_a_crash_costs_the_others_nothing_and_one_line(rnn_lab, runs, tmp_path):
    series = tmp_path / "series"
    names = ["crash", *(f"{letter}{seed}" for seed in (1, 2) for letter in "ab")]
    for name in names[1:]:
        (series / "runs").mkdir(parents=True, exist_ok=True)
        (runs / name).rename(series / "runs" / name)
    dead = write_run(series / "runs" / "crash", curve(50), model="fault")
    (dead / "result.json").unlink()
    jobs = [{"name": name, "label": name[0], "group": name[0], "model": "m", "seed": 1} for name in names]
    (series / "series.json").write_text(json.dumps({"jobs": jobs}))
    code, out, err = rnn_lab("compare", series)
    assert code == 0 and out.count("(first)") == 4 and "\nb\t50200" in out
    assert err.splitlines()[0] == "c cannot be judged: crash killed"
    assert rnn_lab("compare", series / "runs") == (code, out, err)
    assert "crash\t" not in out and "\nc\t" in rnn_lab("compare", *(series / "runs" / name for name in names))[1]
    (series / "series.json").unlink()
    code, out, err = rnn_lab("compare", series / "runs")
    assert code == 0 and "fault cannot be judged: crash killed" in err and "\nfault\t\t\t\t\tfailed" in out
    assert rnn_lab("compare", series, "--allow", "unfinished")[0] == 2  # still unpaired, and of unknown data


def test_edited_swapped_and_missing_runs_are_not_judged(rnn_lab, runs):
    """The words are those of a report; the other seed of a model is judged."""
    names = [f"{letter}{seed}" for seed in (1, 2, 3) for letter in "abcd"]
    for name in names:
        shift, kept = "abcd".index(name[0]), (runs / name).is_dir()
        path = runs / "runs" / name
        if kept:
            shutil.rmtree(runs / name)
        loss = curve(120, int(name[1])) + 0.1 * shift + noise(120, 10 * shift + int(name[1]), scale=0.01)
        write_run(path, loss, model=f"m{name[0]}", seed=int(name[1]))
    (runs / "jobs").mkdir()
    for name in names:
        sums = {"metrics.jsonl": sha256(runs / "runs" / name / "metrics.jsonl")} if name[0] != "c" else {}
        (runs / "jobs" / f"{name}.json").write_text(json.dumps({"name": name, "state": "done", "sums": sums}))
    jobs = [{"name": name, "label": name[0], "group": name[0], "model": "m", "seed": int(name[1])} for name in names]
    (runs / "series.json").write_text(json.dumps({"jobs": jobs}))
    result = runs / "runs" / "c1" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"certificate": {"params": 99_000}}))
    metrics = runs / "runs" / "b1" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"grad_norm": 1.0', '"grad_norm": 2.0', 1))
    shutil.rmtree(runs / "runs" / "a2")
    shutil.copytree(runs / "runs" / "b2", runs / "runs" / "a2")
    shutil.rmtree(runs / "runs" / "d1")
    code, out, err = rnn_lab("compare", runs, "--axis", "steps")
    assert code == 0 and len([line for line in out.splitlines() if "1 seeds" in line or "one seed" in line]) == 3
    assert err.splitlines()[:4] == [
        "a is judged without a2 edited or damaged after it ended: metrics.jsonl",
        "b is judged without b1 edited or damaged after it ended: metrics.jsonl",
        "c is judged without c1 edited or damaged: result.json: params 50000, but the certificate counts 99000",
        f"d is judged without d1 gone though its job is done: no folder {runs / 'runs' / 'd1'}",
    ]
    code, out, err = rnn_lab("compare", runs / "runs" / "a1", runs / "runs" / "b1", "--json")
    page = json.loads(out)
    assert page["axes"][0]["pairs"][0]["verdict"] == "failed" and page["groups"][1]["params"] is None
    assert page["groups"][1]["runs"][0]["problem"] == "edited or damaged after it ended: metrics.jsonl"
    assert "b judged" not in err and rnn_lab("compare", runs, "--against", "3")[2].count("judged without") == 4


def test_seeds_that_agree_to_the_last_digit_show_nothing(rnn_lab, tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"a{seed}", np.full(120, 3.27), seed=seed)
        write_run(tmp_path / f"b{seed}", np.full(120, 3.26), seed=seed, model="e1")
    (pair,) = json.loads(rnn_lab("compare", tmp_path, "--axis", "steps", "--json")[1])["axes"][0]["pairs"]
    assert (pair["verdict"], pair["interval"], pair["p"]) == ("inconclusive", None, None)
    assert "agree to the last digit" in rnn_lab("compare", tmp_path, "--axis", "steps")[2]
    (row, _) = json.loads(rnn_lab("compare", tmp_path, "--against", "3.28", "--json")[1])
    assert row["p_less"] is None and row["verdict"] == "inconclusive: the seeds agree to the last digit"


def test_notes_of_many_models_are_few(rnn_lab, tmp_path):
    for k in range(6):
        write_run(tmp_path / f"m{k}", curve(300) + 0.01 * k, model=f"m{k}", step_seconds=0.1 if k > 3 else 0.01)
    write_run(tmp_path / "nan", curve(50), model="nan", status="diverged")
    code, _, err = rnn_lab("compare", tmp_path)
    assert code == 0 and err.splitlines()[:2] == [
        "nan cannot be judged: nan diverged",
        "at equal seconds too few steps for the window, so nothing is judged of m4, m5",
    ]
    page = json.loads(rnn_lab("compare", tmp_path, "--json")[1])
    assert page["axes"][3]["short"] == ["m4", "m5"]
    assert sum(len(pair["notes"]) for pair in page["axes"][3]["pairs"]) == 6 + 10  # of the pair of two short ones, two
