"""`search` and `search-curve` as a person calls them."""

import json
import sys

import pytest
from rnn_lab.errors import RunError
from rnn_lab.search.trials import TrialRow, write_trials
from rnn_lab_cli.main import main

SMALL = ["--target", "99K", "--steps", "20", "--seq-len", "16", "--batch-size", "2", "--device", "cpu"]


def test_the_space_is_shown_before_anything_is_spent(corpus, tmp_path, capsys):
    args = ["search", "e61", *SMALL, "--data", str(corpus), "-s", "lr", "-s", "depth=2:4", "--dry-run", "--json",
            "--out", str(tmp_path / "x")]  # fmt: skip
    assert main(args) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["key"] for row in shown["space"]] == ["optimizer.lr", "model.depth"]
    assert shown["default"]["optimizer.lr"] == 3e-4
    assert not (tmp_path / "x").exists()


def test_the_metric_is_the_protocols(corpus, capsys):
    args = ["search", "e61", "--protocol", "micro", "--data", str(corpus), "--dry-run", "--json"]
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "last100"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["e61", "--steps", "20"], "give --target"),
        (["nosuch", *SMALL], "unknown model"),
        (["e61", *SMALL, "-s", "lr", "-s", "lr"], "in the space already"),
        (["e61", *SMALL, "--expansion", "1.0", "-s", "expansion"], "expansion is held"),
        (["e61", *SMALL, "--metric", "last100"], "needs 100 steps"),
    ],
)
def test_usage_errors(corpus, capsys, args, message):
    assert main(["search", *args, "--data", str(corpus), "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_without_optuna_the_message_says_what_to_install(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    args = ["search", "e61", *SMALL, "--data", str(corpus), "-s", "lr", "--out", str(tmp_path / "s")]
    assert main(args) == 2
    assert "rnn-lab-core[search]" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def finished(folder, model, losses, **search):
    folder.mkdir()
    rows = [TrialRow(0, "ok", value=9.0, default=True)]
    rows += [TrialRow(i, "ok", value=loss) for i, loss in enumerate(losses, 1)]
    identity = {"model": model, "target": 99_000, "metric": "val_loss", "sampler": "random", **search}
    write_trials(folder, identity, rows)
    return str(folder)


def test_curves_side_by_side(tmp_path, capsys):
    a = finished(tmp_path / "a", "e61", [3.0, 2.0, 4.0, 2.5])
    b = finished(tmp_path / "b", "e1", [3.5, 3.0])
    assert main(["search-curve", a, b, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [curve["label"] for curve in table["curves"]] == ["e61", "e1"]
    first = table["curves"][0]["curve"]
    assert first[0]["expected_best"] == pytest.approx(2.875) and first[3]["expected_best"] == 2.0
    assert first[3]["low"] is None, "four trials cannot bound the best of four from below"
    assert table["differences"] == []
    assert main(["search-curve", a, b]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t")[:3] == ["trials", "search", "expected best"]
    assert [line.split("\t")[:2] for line in lines[1:]] == [
        ["1", "e61"], ["1", "e1"], ["2", "e61"], ["2", "e1"], ["4", "e61"],
    ]  # fmt: skip


def test_curves_that_do_not_compare(tmp_path, capsys):
    a = finished(tmp_path / "a", "e61", [3.0])
    b = finished(tmp_path / "b", "e61", [3.0], target=10**6)
    assert main(["search-curve", a, b]) == 0
    shown = capsys.readouterr()
    assert "target differs: 99000, 1000000" in shown.err
    assert a in shown.out, "two searches of one model are told apart by their folders"
    c = finished(tmp_path / "c", "e61", [3.0], metric="last100")
    assert main(["search-curve", a, c]) == 2


def test_trials_that_were_edited(tmp_path, capsys):
    a = finished(tmp_path / "a", "e61", [3.0])
    file = tmp_path / "a" / "trials.json"
    file.write_text(file.read_text().replace('"outcome": "ok"', '"outcome": "pruned"', 1))
    assert main(["search-curve", a]) == RunError.exit_code
    assert "trial 0 is pruned with value 9.0" in capsys.readouterr().err
    assert main(["search-curve", str(tmp_path)]) == RunError.exit_code
