"""Verdicts by rule, on figures whose verdict is known."""

from dataclasses import replace
from math import exp

import pytest
from rnn_lab.e3.checklist import checklist
from rnn_lab.e3.claims import MARGIN, VERDICTS, better, claims
from rnn_lab.e3.measure import Mean, Row, mean_of, paired
from rnn_lab.e3.suite import CONFIGS

REFERENCES = {"muon": 1000, "adamw": 2000}
ON = {"MTP": "linear, n = 4", "Collider": "topk by loss, s = 0.35", "8 bits": "yes", "GaLore": "r = 256, every 200",
      "reading ahead": "2 / 4"}  # fmt: skip


def row(label, saved=0.0, gain=1.0, worse=0.0, **more):
    """Three seeds of a configuration: E around `gain`, `worse` nats above the baseline, state of 1000 less `saved`."""
    jitter = (-1e-4, 0.0, 1e-4)
    known = {
        "last": Mean(2.0, 0.01, 3),
        "delta": paired([worse + x for x in jitter]),
        "e_data": paired([gain + x for x in jitter], ratio=True),
        "speed_ratio": paired([1.0 + x for x in jitter], ratio=True),
        "state": {"bytes": 1000 * (1 - saved), "reference_bytes": REFERENCES},
        "waited": mean_of([0.01, 0.01]),
        "calm": 1.0,
    }
    features = {} if label == "Baseline" else ON
    return Row(
        **{"label": label, "model": "e61", "ok": 3, "total": 3, "status": "3 ok", "features": features, **known, **more}
    )


def suite(**rows):
    """All five, with those of `rows` by stem in place of plain ones."""
    return {label: rows.get(stem) or row(label) for stem, label in CONFIGS.items()}


def test_minutes_of_killed_attempts_are_not_known():
    of = {lost: next(c for c in claims(suite(), None, 10.0, lost) if c.id == "C7") for lost in (False, True)}
    assert (of[False].verdict, of[True].verdict) == ("verified", "inconclusive")
    assert "at least 10.0 minutes" in of[True].measured
    assert next(c for c in claims(suite(), None, 99.0, True) if c.id == "C7").verdict == "refuted"


def verdicts(rows, backward=None, minutes=10.0):
    return {(c.id, c.baseline.partition(",")[0]): c for c in claims(rows, backward, minutes)}


@pytest.mark.parametrize(("gain", "verdict"), [(1.2, "verified"), (1.05, "refuted"), (0.9, "refuted")])
def test_data_efficiency(gain, verdict):
    claim = verdicts(suite(mtp_only=row("MTP_Only", gain=gain)))["C1", "Baseline"]
    assert claim.verdict == verdict and "3 paired seeds" in claim.reason
    assert ("harm" in claim.reason) == (gain < 1)


def test_one_seed_is_inconclusive_and_a_decaying_rate_was_not_run():
    one = row("MTP_Only", e_data=paired([1.3], ratio=True), delta=paired([-0.1]))
    found = verdicts(suite(mtp_only=one))
    assert found["C1", "Baseline"].verdict == found["C1 (loss)", "Baseline"].verdict == "inconclusive"
    none = row("MTP_Only", e_data=None, no_efficiency="schedule wsd")
    assert verdicts(suite(mtp_only=none))["C1", "Baseline"].reason == "schedule wsd"


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "inconclusive"), (3, "verified")])
def test_two_seeds_give_no_verdict(seeds, verdict):
    few = row(
        "MTP_Only", e_data=paired([1.3, 1.301, 1.302][:seeds], ratio=True), delta=paired([-0.5, -0.501, -0.502][:seeds])
    )
    for name in ("C1", "C1 (loss)"):
        claim = verdicts(suite(mtp_only=few))[name, "Baseline"]
        assert claim.verdict == verdict and ("a verdict takes 3" in claim.reason) == (seeds < 3)


def test_claims_smaller_than_the_noise_of_their_seeds_are_told():
    loud = row("MTP_Only", e_data=paired([1.0, 1.3, 1.6], ratio=True), delta=paired([-0.6, 0.0, 0.6]))
    found, calm = verdicts(suite(mtp_only=loud)), verdicts(suite(mtp_only=row("MTP_Only", gain=1.2)))
    for name in ("C1", "C1 (loss)"):
        assert (
            "D-NOISE: 3 seeds detect" in found[name, "Baseline"].reason and "seeds = " in found[name, "Baseline"].reason
        )
        assert "D-NOISE" not in calm[name, "Baseline"].reason


def test_quality_is_kept_by_the_upper_bound():
    found = paired([0.0, 0.008, 0.016])
    assert found.value < MARGIN < found.upper and better(found) is False
    assert better(paired([0.0, 0.001, 0.002])) is True and better(paired([0.0])) is None


@pytest.mark.parametrize(
    ("name", "stem", "label", "edge"),
    [("C2", "muon_8bit", "8bit_Muon", 0.855), ("C3", "galore2", "GaLore2", 0.495), ("C4", "full", "E3_Full", 0.945)],
)
def test_state_is_judged_to_the_whole_per_cent(name, stem, label, edge):
    for saved, verdict in ((edge - 0.001, "refuted"), (edge + 0.001, "verified")):
        found = verdicts(suite(**{stem: row(label, saved=saved)}))[name, "Muon"]
        assert (found.of, found.verdict) == (label, verdict)


def test_loss_is_judged_apart_from_data():
    found = verdicts(suite(mtp_only=row("MTP_Only", gain=1.2, worse=-0.04)))
    assert found["C1", "Baseline"].verdict == "verified"
    assert found["C1 (loss)", "Baseline"].verdict == "refuted" and "2 %" in found["C1 (loss)", "Baseline"].measured


@pytest.mark.parametrize(("gain", "worse", "verdict"), [(1.25, -0.4, "verified"), (1.05, -0.2, "refuted")])
def test_data_and_loss_are_judged_by_one_sided_bounds(gain, worse, verdict):
    """The two-sided interval of each would hold the claim's edge."""
    spread, t = (-1.0, 0.0, 1.0), 2.919986 / 3**0.5
    e_data = paired([gain * exp(0.0413 * x) for x in spread], ratio=True)
    delta = paired([worse + 0.0495 * x for x in spread])
    assert e_data.low < 1.15 < e_data.high and delta.low < -0.3 < delta.high
    found = verdicts(suite(mtp_only=row("MTP_Only", e_data=e_data, delta=delta)))
    data, loss = found["C1", "Baseline"], found["C1 (loss)", "Baseline"]
    assert data.verdict == loss.verdict == verdict
    low, high = (gain * exp(sign * 0.0413 * t) for sign in (-1, 1))
    assert data.interval == f"{low:.3f} to {high:.3f}, one-sided 95 % each"
    low, high = ((-worse + sign * 0.0495 * t) / 2 for sign in (-1, 1))
    assert loss.interval == f"{100 * low:.1f} % to {100 * high:.1f} %, one-sided 95 % each"


def test_state_stands_against_both_baselines():
    found = verdicts(suite(muon_8bit=row("8bit_Muon", saved=0.742)))
    assert (found["C2", "Muon"].measured, found["C2", "Muon"].verdict) == ("74.2 %", "refuted")
    assert (found["C2", "AdamW"].measured, found["C2", "AdamW"].verdict) == ("87.1 %", "verified")
    rounds = verdicts(suite(full=row("E3_Full", saved=0.9455)))
    assert rounds["C4", "Muon"].verdict == "verified"
    alone = {**suite(), "8bit_Muon_only": row("8bit_Muon_only", saved=0.5)}
    assert verdicts(alone)["C2", "Muon"].of == "8bit_Muon_only"


def test_the_loader_needs_a_gpu_that_is_idle_without_it():
    assert verdicts(suite())["C5", "Baseline"].verdict == "not run"
    rows = suite(baseline=row("Baseline", busy=mean_of([70.0])), muon_8bit=row("8bit_Muon", busy=mean_of([95.0])))
    assert verdicts(rows)["C5", "Baseline"].verdict == "verified"
    rows["Baseline"] = replace(rows["Baseline"], busy=mean_of([97.0]))
    found = verdicts(rows)["C5", "Baseline"]
    assert found.verdict == "refuted" and "no bottleneck" in found.reason


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "verified"),
        ({"gpu": None}, "not run"),
        ({"dim": 576}, "not run"),
        ({"backward_reduction": {"value": 0.2, "low": 0.1, "high": 0.25}}, "refuted"),
        ({"backward_reduction": {"value": 0.3, "low": 0.2, "high": 0.4}}, "inconclusive"),
    ],
)
def test_backward_is_judged_on_a_wide_model_on_a_gpu(change, verdict):
    measured = {
        "dim": 1024, "gpu": "H100", "device": "cuda", "sparsity": 0.35, "step_reduction": {"value": 0.2},
        "backward_reduction": {"value": 0.33, "low": 0.32, "high": 0.34}, **change,
    }  # fmt: skip
    assert verdicts(suite(), measured)["C6", "dense backward"].verdict == verdict


def test_a_crash_leaves_a_verdict_for_every_claim():
    dead = Row("8bit_Muon", "e61", 0, 3, "3 failed", {})
    rows = suite(muon_8bit=dead, baseline=Row("Baseline", "e61", 0, 3, "3 diverged", {}))
    found = claims(rows, None, None)
    assert {c.id for c in found} >= {f"C{i}" for i in range(1, 8)} and {c.verdict for c in found} <= set(VERDICTS)
    assert all(c.reason for c in found if c.verdict == "not run")
    assert next(c for c in found if c.id == "C7").verdict == "refuted"
    states = {item.name: item.state for item in checklist(rows, found)}
    assert len(states) == 7 and states["Training Stability"] == "fail"


def test_the_checklist_follows_the_rules():
    rows = suite(full=row("E3_Full", worse=0.05), galore2=row("GaLore2", speed_ratio=paired([0.5, 0.5], ratio=True)))
    states = {item.name: item.state for item in checklist(rows, claims(rows, None, 5.0))}
    assert states == {
        "Data Efficiency": "fail", "Memory Reduction": "fail", "GPU Utilization": "not run",
        "Training Stability": "pass",
        "Quality Maintained": "fail", "Throughput": "fail", "No Regressions": "fail",
    }  # fmt: skip
    rows = suite()
    assert {i.name: i.state for i in checklist(rows, claims(rows, None, 5.0))}["No Regressions"] == "pass"


@pytest.mark.parametrize(("names", "stem", "label", "feature"), [
    (("C1", "C1 (loss)"), "mtp_only", "MTP_Only", "MTP"), (("C2",), "muon_8bit", "8bit_Muon", "8 bits"),
    (("C3",), "galore2", "GaLore2", "GaLore"), (("C4",), "full", "E3_Full", "Collider"),
])  # fmt: skip
@pytest.mark.parametrize("value", ["-", "off (nothing of it)"])
def test_a_feature_that_was_off_says_nothing(names, stem, label, feature, value):
    rows = suite(**{stem: row(label, saved=0.99, gain=1.5, worse=-0.5, features={**ON, feature: value})})
    found = [c for c in claims(rows, None, 5.0) if c.id in names]
    assert {c.verdict for c in found} == {"not run"}
    assert all(f"{label} ran without {feature}" in c.reason and ("nothing of it" in c.reason) == (len(value) > 1)
               for c in found)  # fmt: skip


def test_the_ablation_counts_where_the_feature_was_on_only_there():
    rows = {**suite(), "8bit_Muon_only": row("8bit_Muon_only", saved=0.9, features={})}
    assert verdicts(rows)["C2", "Muon"].of == "8bit_Muon"


def test_the_loader_is_judged_with_and_without_it():
    busy = {"baseline": row("Baseline", busy=mean_of([70.0])), "muon_8bit": row("8bit_Muon", busy=mean_of([95.0]))}
    assert verdicts(suite(**busy))["C5", "Baseline"].verdict == "verified"
    busy["baseline"] = replace(busy["baseline"], features=ON)
    assert verdicts(suite(**busy))["C5", "Baseline"].verdict == "not run"


def test_another_model_is_not_compared_with_the_baseline():
    found = verdicts(suite(mtp_only=row("MTP_Only", gain=1.2, model="gru")))["C1", "Baseline"]
    assert found.verdict == "not run" and found.reason == "MTP_Only ran gru, the baseline e61"


def test_a_small_model_gives_figures_and_no_verdicts():
    for params, known in ((9_999_999, {"not run"}), (10_000_000, {"verified", "refuted"})):
        rows = suite(**{stem: row(label, saved=0.2, params=params) for stem, label in CONFIGS.items()})
        judged = [c for c in claims(rows, None, 99.0) if c.id in ("C1", "C1 (loss)", "C2", "C3", "C4", "C7")]
        assert {c.verdict for c in judged} == known and all(c.measured for c in judged)
        assert all(("9,999,999 parameters" in c.reason) == (params < 10_000_000) for c in judged)


def test_savings_against_adamw_tell_what_muon_saves_by_itself():
    found = verdicts(suite(galore2=row("GaLore2", saved=0.6)))
    assert "Muon in fp32 alone saves 50 %" in found["C3", "AdamW"].reason
    assert "alone" not in found["C3", "Muon"].reason


def test_what_is_not_decided_for_all_is_not_decided():
    def state(name, **rows):
        made = {label: one for label, one in suite(**rows).items() if one is not None}
        return next(item for item in checklist(made, claims(made, None, 5.0)) if item.name == name)

    dead = Row("GaLore2", "e61", 0, 3, "3 diverged", {})
    assert state("Quality Maintained").state == state("Throughput").state == "pass"
    for name in ("Quality Maintained", "Throughput"):
        found = state(name, galore2=dead)
        assert found.state == "not run" and "GaLore2 3 diverged" in found.found
    rows = {label: one for label, one in suite().items() if label in ("Baseline", "E3_Full")}
    (found,) = [item for item in checklist(rows, []) if item.name == "Quality Maintained"]
    assert found.state == "not run" and "GaLore2 not asked for" in found.found
    worse = state("Quality Maintained", galore2=dead, full=row("E3_Full", worse=0.05))
    assert worse.state == "fail"
    single = row("MTP_Only", e_data=paired([1.3], ratio=True), delta=paired([-0.1]))
    assert state("Data Efficiency", mtp_only=single).state == "not run"
    assert "one seed does not tell" in state("Quality Maintained", mtp_only=single).found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"calm": 0.94}, "GaLore2 94 %"),
        ({"skipped": 1}, "GaLore2 1 step not finite"),
        ({"rollbacks": 2}, "GaLore2 2 roll-backs"),
        ({"status": "2 ok, 1 diverged"}, "GaLore2 diverged"),
        ({"status": "2 ok, 1 failed"}, "GaLore2 failed"),
        ({"status": "2 ok (1 roll-back), 1 oom"}, "GaLore2 oom"),
    ],
)
def test_training_is_stable_only_where_nothing_went_wrong(change, said):
    rows = suite(galore2=replace(row("GaLore2"), **change))
    found = {item.name: item for item in checklist(rows, [])}["Training Stability"]
    assert found.state == "fail" and said in found.found.split("; ")
