"""At equal seconds a verdict carries what the clock does not know, and a shared clock proves nothing."""

import json

import numpy as np
import pytest
from rnn_lab.comparison.compare import ONE_SEED, Group, compare_runs
from rnn_lab.comparison.records import read_run, read_runs
from rnn_lab.comparison.stats import mean_of_steps
from rnn_lab.comparison.timing import clock_error

from .folders import curve, noise, write_run


def timed(path, loss, taken, **how):
    """A run whose steps took the given seconds, [steps]; the first is not timed."""
    write_run(path, loss, **how)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    clock = np.cumsum([0.0, *taken[1:]]).tolist()
    text = (json.dumps(line | {"seconds": at}) + "\n" for line, at in zip(lines, clock, strict=True))
    (path / "metrics.jsonl").write_text("".join(text))
    return read_run(path)


def falling(n=600):
    return 4 - 0.002 * np.arange(n) + noise(n, 5, scale=0.01)


def test_one_recipe_twice_is_never_better_by_the_clock(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"a{seed}", curve(300, seed), seed=seed)
        write_run(tmp_path / f"b{seed}", curve(300, seed), seed=seed, step_seconds=0.02, env={"date": "later"})
    runs = {name: read_run(tmp_path / name) for name in ("a1", "a2", "b1", "b2")}
    groups = [Group(name, (runs[f"{name}1"], runs[f"{name}2"])) for name in "ab"]
    for pair in ((runs["a1"], runs["b1"]), groups):
        found = compare_runs(*pair, "seconds")
        assert found.verdict == "inconclusive" and found.effect > 0.01 and found.interval is None
        assert "of one recipe: only their clocks differ" in found.notes[-1]
        assert compare_runs(*pair).verdict != "better"
    faster = read_run(write_run(tmp_path / "c", curve(300, 1), env={"packages": {"torch": "3"}}))
    assert compare_runs(runs["b1"], faster, "seconds").verdict == "better"  # another version is no same run


def test_step_times_that_vary_widen_the_interval_by_the_fall_of_the_loss(tmp_path):
    steady, taken = np.full(600, 0.01), 0.01 + np.abs(noise(600, 7, scale=0.005))
    a = timed(tmp_path / "a", falling(), steady)
    b, c = (
        timed(tmp_path / name, falling() + noise(600, 3, scale=0.001), how, model="e1")
        for name, how in (("b", steady), ("c", taken))
    )
    sure, unsure = compare_runs(a, b, "seconds"), compare_runs(a, c, "seconds")
    assert sure.method == "paired steps" and np.ptp(sure.interval) < 0.001 < np.ptp(unsure.interval)
    found = clock_error(c.series("seconds"), c.series("loss"), 400, 100)
    expected = mean_of_steps(taken[1:400])
    assert found.value == 0 and found.df == expected.df
    assert found.se == pytest.approx(0.002 * 399 * expected.se / taken[1:400].mean(), rel=0.05)


def test_a_run_that_was_held_up_for_half_of_its_time_is_not_worse_by_that(tmp_path):
    taken = np.where(np.arange(600) < 300, 0.01, 0.02)
    a = timed(tmp_path / "a", falling(), np.full(600, 0.01))
    b = timed(tmp_path / "b", falling(), taken, model="e1")
    found = compare_runs(a, b, "seconds")
    assert found.effect > 0.1 and found.verdict == "indistinguishable" and found.label == ONE_SEED
    assert clock_error(np.arange(20.0), falling(20), 20, 21).conclusive is False


def series(path, starts):
    """Two models over two seeds on a CPU; each job takes 30 s from its start, in minutes."""
    jobs = []
    for (name, loss), start in zip([("a1", 0.0), ("b1", -0.3), ("a2", 0.01), ("b2", -0.3)], starts, strict=True):
        seed = int(name[1])
        shifted = curve(200, seed) + loss + noise(200, seed + ord(name[0]), scale=0.001)
        write_run(path / "runs" / name, shifted, model=f"m{name[0]}", seed=seed, env={"gpu": None},
                  result={"device": "cpu"})  # fmt: skip
        jobs.append({"name": name, "label": name[0], "group": name[0], "model": f"m{name[0]}", "seed": seed})
        attempt = {"place": "cpu 0", "started": f"2026-01-05T10:{start:02}:00+00:00", "seconds": 30.0}
        (path / "jobs").mkdir(exist_ok=True)
        (path / "jobs" / f"{name}.json").write_text(
            json.dumps({"name": name, "state": "done", "attempts": [attempt] if start else []})
        )
    (path / "series.json").write_text(json.dumps({"jobs": jobs}))
    return {run.name: run for run in read_runs(path)}


@pytest.mark.parametrize(
    ("starts", "said"), [((1, 2, 3, 1), "meanwhile"), ((0, 2, 3, 4), "nothing tells"), ((1, 2, 3, 4), None)]
)
def test_one_run_a_side_on_a_shared_cpu_shows_nothing(tmp_path, starts, said):
    runs = series(tmp_path, starts)
    one = compare_runs(runs["a1"], runs["b1"], "seconds")
    assert one.verdict == ("inconclusive" if said else "better") and one.effect < -0.2
    assert (said in one.notes[-1] and "compare at equal steps" in one.notes[-1]) if said else not one.notes
    assert compare_runs(runs["a1"], runs["b1"]).verdict == "better"
    a, b = (Group(name, (runs[f"{name}1"], runs[f"{name}2"])) for name in "ab")
    seeds = compare_runs(a, b, "seconds")
    assert seeds.verdict == "better" and bool(seeds.notes) == bool(said)
