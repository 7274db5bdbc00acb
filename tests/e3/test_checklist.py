"""Limits of the checklist and of its figures: what lies just inside and just outside of each."""

import pytest
from rnn_lab.e3.checklist import checklist
from rnn_lab.e3.claims import claims
from rnn_lab.e3.measure import paired, rows

from .test_claims import row, suite
from .test_measure import run


def state(name, **figures):
    """State of an item where one of the five has these figures."""
    found = suite(galore2=row("GaLore2", **figures))
    return next(item.state for item in checklist(found, claims(found, None, 10.0)) if item.name == name)


@pytest.mark.parametrize(("ratio", "found"), [(0.951, "pass"), (0.949, "fail")])
def test_throughput_may_fall_by_a_twentieth(ratio, found):
    assert state("Throughput", speed_ratio=paired([ratio] * 3, ratio=True)) == found


@pytest.mark.parametrize("ratios", [[0.5], [1.5], [0.9, 1.0, 1.1]])
def test_one_seed_or_scattered_ones_tell_nothing_of_throughput(ratios):
    assert state("Throughput", speed_ratio=paired(ratios, ratio=True)) == "not run"


@pytest.mark.parametrize(("worse", "found"), [(0.0099, "pass"), (0.0101, "fail")])
def test_a_hundredth_of_a_nat_may_be_lost(worse, found):
    assert state("Quality Maintained", delta=paired([worse] * 3)) == found


@pytest.mark.parametrize(("share", "found"), [(0.951, "pass"), (0.949, "fail")])
def test_a_twentieth_of_the_steps_may_have_other_norms(share, found):
    assert state("Training Stability", calm=share) == found


@pytest.mark.parametrize(("norm", "calm"), [(0.49, 0.0), (0.51, 1.0), (4.99, 1.0), (5.01, 0.0)])
def test_norms_of_a_half_to_five_are_calm(tmp_path, norm, calm):
    assert rows({"Baseline": [run(tmp_path, figures={"grad_norm": norm})]}, "Baseline")[0].calm == calm


@pytest.mark.parametrize(("minutes", "verdict"), [(24.9, "verified"), (25.1, "refuted")])
def test_all_have_25_minutes(minutes, verdict):
    assert next(claim.verdict for claim in claims(suite(), None, minutes) if claim.id == "C7") == verdict


def test_ten_steps_are_left_out_of_speeds(tmp_path):
    one = run(tmp_path, 12, figures={"data_wait_frac": 1.0, "tokens_per_s": 1.0})
    for line, share, speed in zip(one.lines[10:], (0.25, 0.75), (2.0, 4.0), strict=True):
        line |= {"data_wait_frac": share, "tokens_per_s": speed}
    (found,) = rows({"Baseline": [one]}, "Baseline")
    assert (found.waited.value, found.speed.value) == (0.5, 3.0)
