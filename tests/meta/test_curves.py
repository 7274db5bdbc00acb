"""bench/curves.py: one curve, two curves, and runs of which that cannot be asked."""

import json
import shutil
import subprocess
import sys

import pytest

from .source import ROOT

FIT = (
    "-m",
    "rnn_lab_cli",
    "fit",
    "--model",
    "e1",
    "--dim",
    "16",
    "--depth",
    "1",
    "--batch-size",
    "2",
    "--seq-len",
    "16",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    options = (*FIT, "--device", "cpu", "-o", "eval.tokens=64", "--steps", "20", "--out", str(folder / "one"))
    subprocess.run([sys.executable, *options], check=True, capture_output=True)
    shutil.copytree(folder / "one", folder / "other")
    return folder


@pytest.fixture
def judge(runs, tmp_path):
    """The script's exit code and what it said, of the run and a copy whose files were changed."""

    def call(steps=20, config=str, lines=list, result=dict, options=()):
        other = tmp_path / "other"
        shutil.copytree(runs / "other", other)
        (other / "config.toml").write_text(config((other / "config.toml").read_text()))
        read = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
        (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(read)))
        (other / "result.json").write_text(json.dumps(result(json.loads((other / "result.json").read_text()))))
        command = [sys.executable, ROOT / "bench" / "curves.py", runs / "one", other, "--steps", str(steps)]
        done = subprocess.run(
            [*command, *options, "--json", tmp_path / "page.json"], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return call


def test_one_curve(judge, tmp_path):
    assert judge()[0] == 0
    page = json.loads((tmp_path / "page.json").read_text())
    assert page["early"] == page["late"] == 0 and [len(run["loss"]) for run in page["runs"]] == [20, 20]


@pytest.mark.parametrize(("steps", "factor"), [(range(2), 1.0011), (range(15, 20), 1.0051), (range(20), 2.0)])
def test_two_curves(judge, steps, factor):
    def lines(read):
        return [{**line, "loss": line["loss"] * (factor if k in steps else 1)} for k, line in enumerate(read)]

    assert judge(lines=lines)[0] == 1


@pytest.mark.parametrize(("steps", "factor"), [(range(2), 1.0009), (range(15, 20), 1.0049), (range(5, 10), 1.5)])
def test_what_is_allowed(judge, steps, factor):
    def lines(read):
        return [{**line, "loss": line["loss"] * (factor if k in steps else 1)} for k, line in enumerate(read)]

    assert judge(lines=lines)[0] == 0


@pytest.mark.parametrize(("change", "told"), [
    ({"config": lambda text: text.replace("clip = 1.0", "clip = 0.5")}, "train.clip: 1.0 and 0.5"),
    ({"config": lambda text: text.replace("expansion = ", "expansion = 1")}, "model.expansion"),
    ({"config": lambda text: "["}, "no finished run"),
    ({"result": lambda result: {**result, "data": None}}, "no finished run"),
    ({"result": lambda result: {**result, "data": {**result["data"], "fingerprint": "x"}}}, "data: "),
    ({"lines": lambda read: read[:-1]}, "steps 1 to 20"),
    ({"lines": lambda read: [line for line in read if line["step"] != 3]}, "steps 1 to 20"),
    ({"lines": lambda read: [{**line, "loss": None} for line in read]}, "without a loss"),
    ({"lines": lambda read: [{**line, "loss": float("nan")} for line in read]}, "without a loss"),
    ({"lines": lambda read: [{**line, "lr": line["lr"] * (1 + (line["step"] > 4))} for line in read]}, "in step 5"),
    ({"steps": 21}, "steps 1 to 21"),
    ({"steps": -190}, "at least 10"),
])  # fmt: skip
def test_runs_that_cannot_be_asked(judge, change, told):
    code, text = judge(**change)
    assert code == 2 and told in text and "Traceback" not in text, text


def test_how_long_and_by_what_they_ran_may_differ(judge):
    def config(text):
        return text.replace("\nsteps = 20\n", "\nminutes = 8.0\n").replace('graph = "auto"', 'graph = "off"')

    code, told = judge(config=config)
    assert code == 0, told


@pytest.mark.parametrize(
    ("one", "other", "code"), [(1.019, 1.01, 0), (1.021, 1.01, 1), (0.9995, 1.0, 0), (0.995, 1, 1)]
)
def test_rounding_that_grows_is_measured(judge, runs, tmp_path, one, other, code):
    """The first may be off by twice of what the second is; losses of the first two steps, against the run in fp32."""

    def shifted(factor):
        return lambda read: [{**line, "loss": line["loss"] * (factor if k < 2 else 1)} for k, line in enumerate(read)]

    exact = tmp_path / "exact"
    shutil.copytree(runs / "one", exact)
    read = [json.loads(line) for line in (exact / "metrics.jsonl").read_text().splitlines()]
    (exact / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shifted(1 / one)(read)[:2]))
    assert judge(lines=shifted(other / one), options=("--exact", exact))[0] == code
    page = json.loads((tmp_path / "page.json").read_text())
    assert page["off"] == pytest.approx([abs(one - 1), abs(other - 1)], rel=1e-6, abs=1e-12)
    assert [len(run["loss"]) for run in page["runs"]] == [20, 20, 2]


@pytest.mark.parametrize(("change", "told"), [
    (("config.toml", "clip = 1.0", "clip = 0.5"), "more than its dtype: train.clip"),
    (("result.json", '"float32"', '"bfloat16"'), "not in fp32"),
])  # fmt: skip
def test_what_is_exact_is_the_second_run_in_fp32(judge, runs, tmp_path, change, told):
    exact = tmp_path / "exact"
    shutil.copytree(runs / "one", exact)
    file, old, new = change
    before = (exact / file).read_text()
    assert old in before
    (exact / file).write_text(before.replace(old, new))
    code, text = judge(options=("--exact", exact))
    assert code == 2 and told in text and "Traceback" not in text, text


def test_a_run_is_not_held_against_itself(runs):
    command = [sys.executable, ROOT / "bench" / "curves.py", runs / "one", runs / "one"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "one run" in done.stderr
