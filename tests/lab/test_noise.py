"""The noise floor: its formula, and where it is kept."""

import math

import numpy as np
import pytest
from rnn_lab.errors import RnnLabError
from rnn_lab.lab.noise import measure, noise_floor, store, stored_noise
from rnn_lab.lab.series import SeriesDir

from .conftest import job, plan_of


def test_the_floor_by_hand():
    found = noise_floor([1.0, 1.1, 1.2])
    # t(0.975, 2) from a printed table
    assert found["sd"] == pytest.approx(0.1) and found["t"] == pytest.approx(4.30265, abs=1e-5)
    assert found["floor"] == pytest.approx(4.30265 * 0.1 * math.sqrt(2), abs=1e-5) and found["n"] == 3


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_equal_models_exceed_the_floor_in_a_twentieth_of_cases(n):
    rng = np.random.default_rng(n)
    over = 0
    for _ in range(4000):
        *measured, one, other = rng.normal(3.0, 0.01, n + 2)
        over += abs(one - other) > noise_floor(measured)["floor"]
    assert over / 4000 == pytest.approx(0.05, abs=0.012)


def test_one_run_has_no_spread():
    with pytest.raises(RnnLabError, match="at least 2 runs that ended well, there are 1"):
        noise_floor([1.0])


def test_it_is_measured_kept_and_found_by_later_series_of_the_same_settings(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("RNN_LAB_DATA", str(tmp_path / "data"))
    lab.script.write_text('{"a-s42": ["ok"], "a-s52": ["ok"], "a-s62": ["crash"]}')
    series = SeriesDir.create(lab.path, plan_of(*(job("a", seed) for seed in (42, 52, 62))))
    lab.run(series)
    found = measure(series)
    assert found["n"] == 2 and found["protocol"] == "p" and found["metric"] == "last100"
    assert (
        found["mean"] == pytest.approx(2.047)
        and found["values"] == {"42": 2.042, "52": 2.052}
        and found["unit"] == "nats per byte"
    )
    same, other = plan_of(job("x")), plan_of(job("x"))
    assert stored_noise(same, ["cpu"]) is None
    path = store(found)
    assert path == tmp_path / "data/noise/p.json" and stored_noise(same, ["cpu"]) == found
    object.__setattr__(other, "overrides", ("train.minutes=1",))
    assert stored_noise(other, ["cpu"]) is None, "measured under other settings"
    assert stored_noise(same, ["NVIDIA H100"]) is None, "measured on another device"
    store({**found, "model": "other", "floor": 9.0})
    store({**found, "mean": 0.0})
    assert stored_noise(same, ["cpu"])["floor"] == 9.0, "the most careful of several models"
    store({**found, "devices": ["NVIDIA H100"], "floor": 7.0})
    assert stored_noise(same, ["NVIDIA H100"])["floor"] == 7.0 and stored_noise(same, ["cpu"])["floor"] == 9.0
    path.write_text("{")
    assert stored_noise(same, ["cpu"]) is None
