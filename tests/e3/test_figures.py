"""Figures of runs that differ in each of them, how tables show them, and what a backward pass differentiates."""

from dataclasses import replace

import pytest
import torch
from rnn_lab.comparison.records import Series
from rnn_lab.config import ModelSection
from rnn_lab.e3.backward import _calls
from rnn_lab.e3.facts import E3Report, Memory, _minutes
from rnn_lab.e3.measure import rows
from rnn_lab.e3.tables import tables
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry
from rnn_lab.sections import ObjectiveSection
from rnn_lab.train.objective import Objective

from .test_measure import run


def spent(tmp_path, label, loss, seconds, flops, speed, **figures):
    """A run of four steps: losses from `loss` down by one, so much spent in each, `figures` at the last step."""
    one = run(tmp_path, label=label, figures={"tokens_per_s": speed, **dict.fromkeys(figures, 9.0)})
    for line in one.lines:
        k = line["step"]
        line.update(loss=loss - k, seconds=seconds * k, flops=flops * k)
    one.lines[-1].update(figures)
    return one


@pytest.fixture
def compared(tmp_path):
    """The baseline, and a run that has its last loss after three steps of other length and work."""
    base = spent(tmp_path, "Baseline", 6.0, 10.0, 100, 2.0)
    other = spent(tmp_path, "X", 5.0, 20.0, 50, 3.0, mtp_k2=2.5, mtp_k3=3.5)
    return rows({"Baseline": [base], "X": [other]}, "Baseline")


def shown(title, **given):
    """The table of that title, of a report with nothing but what is given."""
    empty = dict.fromkeys(("rows", "memory", "claims", "items", "diagnostics", "failures", "curves", "limits"), ())
    report = E3Report(**{
        "title": "", "about": {}, "environment": {}, "last": 1, "along": 1, "slope": None, "backward": None,
        "commands": (), **empty, **given,
    })  # fmt: skip
    return next(table for table in tables(report) if table.title == title)


def test_each_efficiency_is_of_its_own_axis(compared):
    base, other = compared
    assert base.e_data is base.e_time is base.e_flop is base.speed_ratio is None and not base.ahead
    found = (other.e_data.value, other.e_time.value, other.e_flop.value)
    assert found == pytest.approx((4 / 3, 40 / 60, 400 / 150)) and other.no_efficiency is None
    assert (base.speed.value, other.speed.value, other.speed_ratio.value) == (2.0, 3.0, 1.5)
    assert other.step_ms.value == pytest.approx(1000 / 3)
    assert {key: mean.value for key, mean in other.ahead.items()} == {"mtp_k2": 2.5, "mtp_k3": 3.5}


def test_tables_show_each_efficiency_and_horizon_below_its_heading(compared):
    for title, expected in (
        ("Losses", {"E_data": "1.333", "E_time": "0.667", "E_flop": "2.667"}),
        ("Speed and memory", {"bytes/s": "3", "of the baseline's": "1.500", "ms per step": "333.33"}),
        ("Gradients and objectives", {"CE k2": "2.5000", "CE k3": "3.5000"}),
    ):
        table = shown(title, rows=tuple(compared))
        found = dict(zip(table.headers, table.rows[1], strict=True))
        assert {key: found.get(key) for key in expected} == expected


def test_a_difference_of_memory_is_measured_less_predicted():
    parts = [Memory("X", "state", *pair) for pair in ((1000, 3500), (3500, 1000), (7, 7), (None, 7), (7, None))]
    assert [cells[-1] for cells in shown("Memory", memory=tuple(parts)).rows] == ["+2,500", "-2,500", "equal", "–", "–"]


def test_minutes_are_those_of_every_attempt_at_the_five(tmp_path):
    def took(label, *seconds):
        return replace(run(tmp_path, label=label), job={"attempts": [{"seconds": s} for s in seconds]})

    five = [took("Baseline", 60.0, 30.0), took("E3_Full", 90.0)]
    others = [took("Async_only", 600.0), took("mine", 6000.0)]
    assert _minutes(Series(tmp_path, {}, (*five, *others))) == 3.0
    assert _minutes(Series(tmp_path, {}, tuple(others))) is None


@pytest.mark.parametrize("filtering", [False, True])
def test_what_is_timed_differentiates_every_parameter(filtering):
    model = model_spec(ModelSection(name="e61", depth=2, fields={"dim": 16}), registry(), must_reach=False).build()
    made = Objective(ObjectiveSection(use_collider=True, collider_sparsity=0.5))
    window = torch.randint(0, 256, (2, 13), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    forward, both = _calls(model, made, window, torch.float32, filtering)
    found = both()
    forward().backward()
    expected = [p.grad for p in model.parameters()]
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert one is not None and torch.equal(one, other)
