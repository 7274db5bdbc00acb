"""External runs say what their source says, and nothing else."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
from rnn_lab.comparison.records import read_run, read_runs
from rnn_lab.errors import ConfigError, DataError
from rnn_lab.legacy.importing import external_runs, read_source, write_runs
from rnn_lab.registry import registry
from rnn_lab_cli.main import main

HERE = Path(__file__).parent
LADDER, TRAIN, STUDY = HERE / "ladder.txt", HERE / "train.log", HERE / "study.md"


def imported(path, window=None, format_name="auto"):
    runs = external_runs(read_source(path, format_name), registry(), window)
    return {run.name: run for run in runs}


def edited(tmp_path, source, old, new):
    text = source.read_text()
    assert old in text
    copy = tmp_path / source.name
    copy.write_text(text.replace(old, new, 1))
    return copy


def test_a_ladder_log_keeps_every_figure():
    runs = imported(LADDER)
    assert list(runs) == ["e0_stock", "e1_baseline"]
    result = runs["e1_baseline"].result
    assert (result["model"], result["params"], result["steps"], result["tokens"]) == (
        "e1",
        49_714_944,
        1000,
        16_384_000,
    )
    assert (result["status"], result["external"]) == ("ok", True)
    assert result["clock"]["total"] == 390.0
    assert result["peak_memory_bytes"] == 821 * 2**20
    assert result["stated"]["batch_size"] == 32 and result["stated"]["seq_len"] == 512
    assert result["source"]["sha256"] == hashlib.sha256(LADDER.read_bytes()).hexdigest()
    assert result["source"]["lines"] == [39, 70]
    (point,) = runs["e1_baseline"].points
    assert point["line"] == 61 and LADDER.read_text().splitlines()[60].startswith("Step   1000 | Loss 1.5914")
    assert (point["loss_mean"], point["grad_norm"], point["seconds"]) == (1.5914, 2.02, 389.6)


def test_a_mean_over_an_unstated_window_is_never_last100():
    result = imported(LADDER)["e0_stock"].result
    assert result["last100"] is None and result["bpb"] is None
    assert "unstated" in result["figures"]["last printed loss"]["is"]
    assert result["figures"]["final_loss"]["loss"] == 1.6347


def test_a_window_of_a_hundred_makes_the_last_mean_last100():
    result = imported(LADDER, window=100)["e0_stock"].result
    assert result["last100"] == 1.6347
    assert result["bpb"] == pytest.approx(1.6347 / math.log(2))
    assert "100 steps" in result["last100_from"]


@pytest.mark.parametrize("window", [10, 50, 1000, 30])
def test_other_windows_do_not(window):
    assert imported(LADDER, window=window)["e0_stock"].result["last100"] is None


def test_ten_means_of_ten_need_the_last_step_itself(tmp_path):
    cut = imported(TRAIN, window=10)["train"].result
    assert (cut["steps"], cut["model"], cut["params"]) == (312, "e71", 104_022_656)
    assert cut["last100"] is None, "steps 311 and 312 were never printed"
    whole = imported(edited(tmp_path, TRAIN, "Final step: 312", "Final step: 310"), window=10)["train"].result
    last_ten = [3.2128, 2.9592, 3.0675, 2.9241, 2.8735, 2.7738, 2.6813, 2.6642, 2.5711, 2.5077]
    assert whole["last100"] == pytest.approx(sum(last_ten) / 10, abs=1e-12)


def test_losses_of_single_steps_become_a_series(tmp_path):
    losses = [5.0 - i / 50 for i in range(120)]
    path = tmp_path / "each.jsonl"
    path.write_text("".join(json.dumps({"step": i, "loss": loss}) + "\n" for i, loss in enumerate(losses, 1)))
    (folder,) = write_runs(list(imported(path).values()), tmp_path / "out")
    run = read_run(folder)
    assert run.external and run.series("loss").tolist() == losses
    assert run.last100 == pytest.approx(sum(losses[-100:]) / 100)
    assert run.result["last100"] == run.last100


def test_losses_with_gaps_do_not(tmp_path):
    path = tmp_path / "gaps.jsonl"
    path.write_text("".join(json.dumps({"step": 10 * i, "loss": 2.0}) + "\n" for i in range(1, 50)))
    (run,) = imported(path).values()
    assert not run.per_step and run.result["last100"] is None


def test_a_json_list_of_results(tmp_path):
    rows = [
        {
            "name": "mamba2",
            "params": 101_936_528,
            "steps": 2160,
            "last100_loss": 1.403012,
            "throughput": 58008.9,
            "dim": 896,
        }
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps([*rows, {"name": "note"}]))
    (run,) = imported(path).values()
    assert (run.result["model"], run.result["params"], run.result["steps"]) == ("mamba2", 101_936_528, 2160)
    assert run.result["tokens_per_s"] == 58008.9
    assert run.result["last100"] is None, "called so, and may be a mean of log lines"
    assert "last100_loss" in run.result["figures"]["last100_loss"]["is"]
    assert run.result["stated"]["other"] == {"dim": 896}
    assert imported(path, window=100)["mamba2"].result["last100"] == 1.403012


@pytest.mark.parametrize(("key", "value"), [("steps", -5), ("params", 0), ("params", 1.5), ("tokens_per_s", -1.0)])
def test_figures_that_no_run_can_have(tmp_path, key, value):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"model": "e61", "loss": 2.0, key: value}]))
    with pytest.raises(DataError, match=rf"results.json:1: {key} = "):
        imported(path)


def test_tables_of_a_document():
    runs = imported(STUDY)
    assert list(runs) == ["mamba2", "e88-2", "e61", "e71", "silu-gate", "e88-tanh"]
    assert runs["e61"].result["tokens_per_s"] == 87979
    assert runs["e61"].result["params"] is None, "98M is no count"
    assert runs["e61"].result["stated"]["printed_params"] == "98M"
    assert runs["e71"].result["status"] == "diverged"
    assert runs["e71"].result["figures"]["loss"]["loss"] is None
    assert runs["silu-gate"].result["model"] == "SiLU gate"
    assert runs["e88-2"].result["model"] == "e88"
    assert "last-10 loss (10 min)" in runs["e88-tanh"].result["figures"]


def test_everything_left_out_is_counted():
    source = read_source(STUDY, "auto")
    used = sum(1 for run in source.runs)
    assert used + sum(source.ignored.values()) == len(STUDY.read_text().splitlines())
    assert source.ignored["row whose loss is no number"] == 1
    assert source.ignored["row of a table without model and loss"] == 1
    ladder = read_source(LADDER, "auto")
    assert "unknown" not in ladder.ignored
    assert ladder.ignored["saved checkpoint"] == 2 and ladder.examples["tokenizer"] == 16


@pytest.mark.parametrize(
    ("source", "old", "new", "message"),
    [
        (LADDER, "Step   1000 | Loss 1.6347", "Step   1000 | Loss 1.6E47x", r"ladder.txt:28: begins like .*`step`"),
        (LADDER, "| Tok/s 45,305 | Mem", "| Mem", r"ladder.txt:28: .*`step`"),
        (LADDER, "Final loss: 1.6347", "Final loss: ", r"ladder.txt:34: .*`final loss`"),
        (LADDER, "912 (48.74M)\n\n===", "913 (48.74M)\n\n===", r":37: params = 48742913, but"),
        (TRAIN, "step    220", "step    200", r"train.log:12: step 200 after step 210"),
        (TRAIN, "loss 3.2128", "loss 3.21.28", r"train.log:12: .*`step`"),
        (STUDY, "| 98M | 1.351 |", "| 98M | 1.3.51 |", r"study.md:10: loss = '1.3.51' is no loss"),
        (STUDY, "| 98M | 1.351 |", "| 1.351 |", r"study.md:10: 3 cells under 4 columns"),
    ],
)  # fmt: skip
def test_malformed_lines_are_named(tmp_path, source, old, new, message):
    path = edited(tmp_path, source, old, new)
    with pytest.raises(DataError, match=message):
        external_runs(read_source(path, "auto"), registry(), None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "hello\n", "no format is recognised"),
        ("a.json", "{", r"a.json:1: not JSON"),
        ("a.json", "[1, 2]", "holds no loss"),
        ("a.jsonl", '{"step": 1, "loss": 2}\n{"step": 2}\n', r"a.jsonl:2: expected an object"),
        ("a.jsonl", '{"step": 2, "loss": 2}\n{"step": 1, "loss": 2}\n', r"a.jsonl:2: step 1 after step 2"),
        (
            "a.jsonl",
            '{"step": 1, "loss": 2}\n{"step": 1e99, "loss": 2}\n',
            r"a.jsonl:2: step = 1e\+99: expected a whole",
        ),
        ("a.jsonl", '{"step": 1.5, "loss": 2}\n', r"a.jsonl:1: step = 1.5: expected a whole"),
        ("a.jsonl", '{"step": Infinity, "loss": 2}\n', r"a.jsonl:1: step = inf: expected a whole"),
        ("a.jsonl", '{"step": true, "loss": 2}\n', r"a.jsonl:1: step = True: expected a whole"),
        (
            "a.json",
            '[\n{"model": "a", "loss": 2},\n{"model": "b", "loss": 2, "steps": 1e99}]',
            r"a.json:3: steps = 1e\+99",
        ),
        ("a.json", '[\n\n{"model": "b", "losses": [1, "x"]}]', r"a.json:3: losses\[1\] = 'x'"),
        ("a.json", '[\n{"model": "b", "loss": "x"}]', r"1 object whose loss is no number"),
        ("a.md", "|model|loss|steps|\n|-|-|-|\n|a|2|1e99|\n", r"a.md:3: steps = '1e99'"),
        (
            "a.log",
            "step 1 | loss 2 | lr 1 | grad 1 | tok/s 1\nTraining complete! Final step: 0\n",
            r"a.log:2: steps = 0",
        ),
        ("a.md", "# nothing here\n", "holds no loss"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_source(path, "auto")


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo \xff\n")
    with pytest.raises(DataError, match=r"a.log:2: not UTF-8"):
        read_source(path, "auto")


def test_a_log_that_breaks_off_did_not_end(tmp_path):
    path = tmp_path / "short.log"
    path.write_text(TRAIN.read_text().partition("step    250")[0])
    (run,) = imported(path).values()
    assert run.result["status"] == "interrupted" and run.result["steps"] == 240
    path.write_text(
        path.read_text() + "Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory.\n"
    )
    (run,) = imported(path).values()
    assert run.result["status"] == "oom" and "OutOfMemoryError" in run.result["error"]


def test_a_loss_that_is_not_finite_is_a_divergence(tmp_path):
    path = edited(tmp_path, TRAIN, "loss 2.5077", "loss nan")
    (run,) = imported(path, window=10).values()
    assert run.result["status"] == "diverged" and run.result["last100"] is None
    write_runs([run], tmp_path / "out")  # JSON without NaN
    assert read_run(tmp_path / "out" / "train").status == "diverged"


def test_figures_that_are_not_finite_are_none(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"model": "a", "loss": 2, "dim": NaN}')
    log = edited(tmp_path, TRAIN, "grad 7.44 | tok/s 8563", "grad nan | tok/s inf")
    runs = [*imported(path).values(), *imported(log).values()]
    write_runs(runs, tmp_path / "out")
    assert runs[0].result["stated"]["other"]["dim"] is None
    assert {"grad_norm", "tokens_per_s"}.isdisjoint(runs[1].points[-1]) and "grad_norm" in runs[1].points[0]


def test_runs_are_read_back_as_external(tmp_path, capsys):
    out = tmp_path / "seeds"
    assert main(["import", str(LADDER), "--window", "100", "--out", str(out)]) == 0
    runs = {run.name: run for run in read_runs(out)}
    assert set(runs) == {"e0_stock", "e1_baseline"}
    assert all(run.external and run.chain is None and run.seed is None for run in runs.values())
    assert runs["e0_stock"].last100 == 1.6347 and runs["e0_stock"].params == 48_742_912
    capsys.readouterr()
    assert main(["runs", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["status"], row["last100"]) for row in rows] == [
        ("e0", "external", 1.6347), ("e1", "external", 1.5914),
    ]  # fmt: skip


def test_nothing_is_written_over_and_nothing_by_halves(tmp_path):
    out = tmp_path / "seeds"
    runs = list(imported(LADDER).values())
    write_runs(runs[1:], out)
    before = sorted(out.rglob("*"))
    with pytest.raises(ConfigError, match="exists already"):
        write_runs(runs, out)
    assert sorted(out.rglob("*")) == before


def test_the_command_shows_and_counts(tmp_path, capsys):
    other = tmp_path / "other.log"
    shutil.copy(TRAIN, other)
    assert main(["import", str(LADDER), str(other), "--out", str(tmp_path / "x"), "--dry-run", "--json"]) == 0
    shown = capsys.readouterr()
    table = json.loads(shown.out)
    assert [row["name"] for row in table["runs"]] == ["e0_stock", "e1_baseline", "other"]
    assert table["ignored"][str(LADDER)]["saved checkpoint"] == {"lines": 2, "first": 29}
    assert "not used: " in shown.err
    assert not (tmp_path / "x").exists()
    assert main(["import", str(LADDER), str(LADDER), "--out", str(tmp_path / "x")]) == 2
    assert main(["import", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2


def test_seeds_of_one_model_are_a_group_that_a_figure_is_tested_against(tmp_path, capsys):
    losses = [3.2781, 3.2790, 3.2770]
    rows = [{"model": "e61", "seed": seed, "last100": loss, "time_s": 5.0 + seed} for seed, loss in enumerate(losses)]
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps([*rows, {"model": "e61", "seed": 3, "last100": 9.0, "lr": 1e-2}]))
    runs = imported(path, window=100)
    assert list(runs) == ["e61-s0", "e61-s1", "e61-s2", "e61-lr-0.01-s3"]
    assert [run.result["seed"] for run in runs.values()] == [0, 1, 2, 3]
    write_runs(list(runs.values()), tmp_path / "out")
    assert main(["compare", str(tmp_path / "out"), "--against", "3.28", "--json"]) == 0
    found = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert {label: row["seeds"] for label, row in found.items()} == {"e61": 3, "e61 lr=0.01": 1}
    assert found["e61"]["mean"] == pytest.approx(sum(losses) / 3)


def test_seeds_in_a_table_of_a_document(tmp_path):
    path = tmp_path / "seeds.md"
    path.write_text("| model | seed | loss |\n|---|---|---|\n| e61 | 1 | 1.5 |\n| e61 | two | 1.6 |\n")
    one, other = imported(path).values()
    assert (one.result["seed"], other.result["seed"]) == (1, None)
    assert other.result["stated"]["other"] == {"seed": "two"}


@pytest.mark.parametrize("name", ["each.jsonl", "each.json"])
def test_losses_of_single_steps_are_called_so(tmp_path, name):
    losses = [5.0 - i / 50 for i in range(120)]
    rows = "".join(json.dumps({"step": i, "loss": loss}) + "\n" for i, loss in enumerate(losses, 1))
    path = tmp_path / name
    path.write_text(rows if name.endswith("jsonl") else json.dumps({"model": "e61", "losses": losses}))
    (run,) = imported(path).values()
    assert run.result["figures"]["last printed loss"]["is"] == "the loss of one step"
    assert run.result["last100_from"] == "the losses of the last 100 steps"


@pytest.mark.parametrize("at", [50, 119])
@pytest.mark.parametrize("name", ["each.jsonl", "each.json"])
def test_null_is_a_loss_that_nobody_kept_and_no_divergence(tmp_path, name, at):
    losses = [None if i == at else 2.0 for i in range(120)]
    rows = "".join(json.dumps({"step": i, "loss": loss}) + "\n" for i, loss in enumerate(losses, 1))
    path = tmp_path / name
    path.write_text(rows if name.endswith("jsonl") else json.dumps({"model": "e61", "losses": losses}))
    (run,) = imported(path).values()
    assert run.result["status"] == ("interrupted" if name.endswith("jsonl") else "ok")
    assert run.result["steps"] == 120 and len(run.points) == 119 and not run.per_step
    path.write_text('{"model": "e61", "loss": null, "last100": 2.5}')
    (run,) = imported(path, format_name="json").values()
    assert (run.result["status"], list(run.result["figures"])) == ("ok", ["last100"])


@pytest.mark.parametrize(("window", "known"), [(100, 2.5), (10, None), (1, None), (None, None)])
def test_one_mean_is_last100_only_over_a_hundred_steps(tmp_path, window, known):
    path = tmp_path / "one.json"
    path.write_text('{"model": "e61", "last100": 2.5}')
    assert imported(path, window=window)["e61"].result["last100"] == known


def test_a_run_that_diverged_has_no_metrics_though_every_step_was_printed(tmp_path):
    path = tmp_path / "each.jsonl"
    path.write_text("".join(f'{{"step": {i}, "loss": {"NaN" if i == 150 else 2.0}}}\n' for i in range(1, 151)))
    (run,) = imported(path).values()
    assert run.result["status"] == "diverged" and not run.per_step and run.result["last100"] is None
