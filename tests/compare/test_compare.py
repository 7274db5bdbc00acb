"""Verdicts follow from the losses, hold what they claim, and are refused where runs are not equal."""

import numpy as np
import pytest
import scipy.stats
from rnn_lab.comparison.compare import ONE_SEED, VALIDATION, Comparison, Group, Refused, Rules, compare_runs
from rnn_lab.comparison.differences import differences, kernels_of, obstacles
from rnn_lab.comparison.pairing import unpaired_because
from rnn_lab.comparison.ranking import AxisVerdicts, _reversals, group_runs, judge
from rnn_lab.comparison.records import read_run, read_runs
from rnn_lab.errors import ConfigError, RunError

from .folders import BATCH, curve, noise, write_run

REFERENCE = [{"op": "recurrence", "backend": "reference", "refused": {"diagonal": "told"}, "layers": [0]}]


@pytest.fixture
def make(tmp_path):
    """`make("a", losses, …)`: a run on record."""

    def call(name, loss, **how):
        return read_run(write_run(tmp_path / name, loss, **how))

    return call


def test_pairing_finds_what_the_common_noise_hides(make):
    base = curve(300)
    a, b = make("a", base), make("b", base - 0.003 + noise(300, 1, 0.5, 0.002), model="e1")
    found = compare_runs(a, b)
    assert found.verdict == "better" and found.method == "paired steps" and found.label == ONE_SEED
    assert found.effect == pytest.approx(np.mean((b.series("loss") - a.series("loss"))[-100:]))
    assert found.interval[0] < -0.003 < found.interval[1] < 0 and found.budget == 300
    assert found.losses == pytest.approx((a.last100, b.last100))
    assert compare_runs(b, a).verdict == "worse" and compare_runs(b, a).effect == -found.effect
    loose = compare_runs(a, b, rules=Rules(allow=frozenset({"pairing"})))
    assert loose.method == "paired steps"  # the permission is not needed


def test_equal_models_are_indistinguishable_at_the_promised_rate(make):
    base, verdicts = curve(400), []
    a = make("a", base + noise(400, 999, 0.7))
    for k in range(60):
        b = make(f"b{k}", base + noise(400, k, 0.7))
        verdicts.append(compare_runs(a, b, rules=Rules(window=400)).verdict)
    assert verdicts.count("indistinguishable") >= 50


def test_a_wandering_difference_is_inconclusive(make):
    base = curve(300)
    found = compare_runs(make("a", base), make("b", base + np.cumsum(noise(300, 2))))
    assert found.verdict == "inconclusive" and found.interval and "independent" in found.notes[0]


def test_runs_of_different_lengths_pair_at_the_common_step(make):
    base = curve(300)
    a, b = make("a", base[:250]), make("b", base - 0.01)
    found = compare_runs(a, b)
    assert found.budget == 250 and found.method == "paired steps" and found.effect == pytest.approx(-0.01)
    forged = make("c", base - 0.01, result={"data_chain": "0" * 64})
    with pytest.raises(Refused, match="not the one that its seed and data lead to"):
        compare_runs(a, forged)
    with pytest.raises(Refused, match="offset chains differ"):
        compare_runs(b, forged)


def test_streams_replay_too(make):
    carry = {"train": {"carry_state": True}}
    a, b = make("a", curve(150), **carry), make("b", curve(200), **carry)
    assert unpaired_because(a, b) is None
    with pytest.raises(Refused, match="--allow batch"):
        compare_runs(a, make("c", curve(150)))


def test_each_axis_reads_both_runs_at_the_same_budget(make):
    """The second learns more per step and is three times slower: the order turns round."""
    n = 600
    a = make("a", 4 - 0.002 * np.arange(n), step_seconds=0.01, step_flops=1000)
    b = make("b", 4 - 0.003 * np.arange(n), step_seconds=0.03, step_flops=3000, model="e1")
    steps, seconds, flops = (compare_runs(a, b, axis) for axis in ("steps", "seconds", "flops"))
    assert steps.verdict == "better" and seconds.verdict == flops.verdict == "worse"
    at = (n - 1) * 0.01  # 599 steps of a; of b, 199.67 after its first, untimed one
    assert seconds.budget == pytest.approx(at) and seconds.method == "unpaired windows"
    where = at / 0.03 + 1
    assert seconds.losses[1] == pytest.approx(4 - 0.003 * (where - 1 - 49.5), abs=1e-6)
    assert flops.budget == n * 1000 and flops.losses[1] == pytest.approx(4 - 0.003 * (200 - 1 - 49.5))
    found = judge(group_runs([a, b]))
    (reversal,) = found.reversals
    assert reversal.decided and (reversal.a_ahead, reversal.b_ahead) == (("flops", "seconds"), ("steps", "tokens"))


def test_too_few_steps_at_a_budget_are_inconclusive(make):
    a, b = make("a", curve(200)), make("b", curve(200), step_seconds=0.1)
    found = compare_runs(a, b, "seconds")
    assert found.verdict == "inconclusive" and found.effect is None and "fewer than 100 steps" in found.notes[0]


def seeds(make, name, shift, ids, **how):
    runs = [make(f"{name}-{k}", curve(200, k) + shift + 0.01 * np.sin(7 * k + shift), seed=k, **how) for k in ids]
    return Group(name, tuple(runs))


def test_seeds_are_paired_and_decide(make):
    a, b = seeds(make, "a", 0.0, (1, 2, 3)), seeds(make, "b", -0.1, (1, 2, 3), model="e1")
    found = compare_runs(a, b)
    gaps = [y.last100 - x.last100 for x, y in zip(a.runs, b.runs, strict=True)]
    assert found.method == "paired seeds" and found.label == "3 seeds" and found.df == 2 and found.n_eff is None
    assert found.effect == pytest.approx(np.mean(gaps)) and found.verdict == "better"
    from scipy.stats import ttest_1samp

    assert found.p == pytest.approx(ttest_1samp(gaps, 0).pvalue)


def test_seeds_without_partners_are_left_out_by_name_or_judged_unpaired(make):
    a, b = seeds(make, "a", 0.0, (1, 2, 3)), seeds(make, "b", -0.1, (2, 3, 4))
    found = compare_runs(a, b)
    assert found.n == 2 and [note.split()[0] for note in found.notes] == ["a-1", "b-4"]
    assert found.losses[0] == pytest.approx(np.mean([run.last100 for run in a.runs[1:]]))
    apart = Group("b", (*b.runs[2:], make("b-5", curve(200, 5), seed=5)))
    with pytest.raises(Refused, match="--unpaired"):
        compare_runs(a, apart)
    free = compare_runs(a, apart, rules=Rules(allow=frozenset({"pairing"})))
    assert free.method == "unpaired seeds" and free.label == "3 and 2 seeds"


def test_failed_runs_are_verdicts_and_failed_seeds_are_named(make):
    good = make("a", curve(200))
    bad = make("b", curve(20), status="diverged", seed=2)
    found = compare_runs(good, bad)
    assert found.verdict == "failed" and "b: diverged" in found.notes[0]
    some = compare_runs(good, Group("b", (bad, make("c", curve(200)))))
    assert some.verdict == "indistinguishable" and "b diverged: judged without it" in some.notes


UNEQUAL = {
    "params": ({"params": 50_600}, {"steps", "tokens", "flops", "seconds"}),
    "data": ({"result": {"data": {"fingerprint": "cd" * 32, "bytes": 100_000}}}, {"steps", "seconds"}),
    "dtype": ({"result": {"dtype": "float32"}}, {"steps", "seconds"}),
    "clock": ({"env": {"gpu": "A100"}}, {"seconds"}),
    "kernels": ({"result": {"backends": REFERENCE}}, {"seconds"}),
    "unfinished": ({"status": "interrupted"}, {"steps", "seconds"}),
    "batch": ({"train": {"batch_size": 2 * BATCH}}, {"steps"}),
}


def test_data_that_nobody_recorded_is_not_the_same(make):
    nothing = {"result": {"data": {}}}
    found = obstacles(make("a", curve(120), **nothing), make("b", curve(120), **nothing))
    assert [(item.topic, item.a, item.b) for item in found] == [("data", "unknown", "unknown")]


@pytest.mark.parametrize("topic", UNEQUAL)
def test_inequality_is_refused_on_its_axes_and_let_through_by_its_own_word(make, topic):
    how, axes = UNEQUAL[topic]
    a, b = make("a", curve(200)), make("b", curve(200) - 0.01, **how)
    for axis in axes:
        with pytest.raises(Refused, match=f"--allow {topic}") as caught:
            compare_runs(a, b, axis)
        assert {item.topic for item in caught.value.obstacles} == {topic}
        found = compare_runs(a, b, axis, Rules(allow=frozenset({topic})))
        assert {item.topic for item in found.told} == {topic} and found.verdict != "failed"
    for axis in {"steps", "tokens", "flops", "seconds"} - axes - UNEQUAL["dtype"][1] if len(axes) == 1 else ():
        assert compare_runs(a, b, axis).verdict
    if topic == "batch":
        assert compare_runs(a, b, "tokens", Rules(allow=frozenset({"batch", "pairing"}))).method == "unpaired windows"


def test_clocks_differ_in_what_they_count_and_where(make):
    a = make("a", curve(120))
    other = {"clock": {"budget": "wall"}}
    assert [item.key for item in obstacles(a, make("b", curve(120), result=other))] == ["clock"]
    assert not obstacles(a, make("c", curve(120), params=50_400))
    assert obstacles(a, make("d", curve(120), params=50_600), tolerance=0.01) == []


@pytest.mark.parametrize(("gpu", "cpu", "severity"), [
    (None, "slow", "equality"), (None, "fast", None), (None, None, "environment"), ("H100", "slow", "environment"),
])  # fmt: skip
def test_another_cpu_is_another_clock_where_it_is_known_and_does_the_work(make, gpu, cpu, severity):
    a, b = (make(name, curve(120), env={"gpu": gpu, "cpu": on}) for name, on in (("a", "fast"), ("b", cpu)))
    found = [(item.key, item.severity, item.topic, item.a, item.b) for item in differences(a, b)]
    clock = severity == "equality"
    assert found == ([("cpu", severity, "clock" if clock else None, "fast", cpu)] if severity else [])
    assert [item.axes for item in obstacles(a, b)] == ([("seconds",)] if clock else [])


def test_on_a_cpu_nothing_falls_back(make):
    cpu = {"device": "cpu", "backends": REFERENCE}
    assert kernels_of(make("a", curve(120), result=cpu)) == "cpu"
    shell = [{**REFERENCE[0], "layers": ["lm"]}]
    assert kernels_of(make("b", curve(120), result={"backends": shell})) == "native"


def test_differences_come_gravest_first_and_miss_nothing(make):
    a = make("a", curve(120))
    b = make(
        "b", curve(120), model="e1", params=90_000, optimizer={"lr": 1e-3},
        env={"packages": {"torch": "2.12"}, "git": "b"}, result={"backends": REFERENCE, "graph": {"used": False}},
    )  # fmt: skip
    found = differences(a, b)
    by_key = {item.key: item.severity for item in found}
    assert by_key == {
        "params": "equality", "kernels": "equality", "optimizer.lr": "training", "model.name": "model",
        "packages.torch": "environment", "graph.used": "environment", "backend of recurrence": "environment",
        "git": "record",
    }  # fmt: skip
    order = [item.severity for item in found]
    assert order == sorted(order, key=["equality", "training", "model", "environment", "record"].index)
    assert differences(a, a) == []


def test_grouping_takes_seeds_together_and_nothing_else(make):
    runs = [
        make("a1", curve(120)), make("a2", curve(120), seed=2), make("a1 again", curve(120)),
        make("b1", curve(120), optimizer={"lr": 1e-3}),
    ]  # fmt: skip
    assert [[run.name for run in group.runs] for group in group_runs(runs)] == [["a1", "a2"], ["a1 again"], ["b1"]]
    assert [group.label for group in group_runs(runs)] == ["e61 (a1)", "e61 (a1 again)", "e61 (b1)"]
    assert len(group_runs(runs, each=True)) == 4
    with pytest.raises(ConfigError, match="nothing but their seed"):
        judge(group_runs(runs[:2]))


def test_many_comparisons_are_corrected(make):
    base = curve(200)
    runs = [make(f"m{k}", base + noise(200, k, 0.3) + shift, model=f"m{k}") for k, shift in enumerate((0, 0, -0.1))]
    found = judge(group_runs(runs), Rules(axes=("steps",)))
    (axis,) = found.axes
    assert axis.ranking[0] == "m2" and len(axis.pairs) == 3
    assert all(pair.p_adjusted >= pair.p for pair in axis.pairs)
    assert max(pair.p_adjusted / pair.p for pair in axis.pairs) == pytest.approx(3)
    assert axis.between("m0", "m2").verdict == "better" and axis.between("m2", "m0").verdict == "worse"
    assert axis.between("m0", "m1").verdict == axis.between("m1", "m0").verdict
    low, high = axis.between("m0", "m2").interval
    assert axis.between("m2", "m0").interval == (-high, -low)


def test_a_failed_run_costs_the_others_no_certainty(make):
    base = curve(200)
    runs = [make(f"m{k}", base + noise(200, k, 0.3), model=f"m{k}") for k in range(3)]
    alone = judge(group_runs(runs), Rules(axes=("steps",))).axes[0].pairs
    bad = [make(f"bad{k}", curve(20), model=f"bad{k}", status="diverged") for k in range(2)]
    joined = judge(group_runs([*runs, *bad]), Rules(axes=("steps",))).axes[0].pairs
    assert tuple(pair for pair in joined if pair.verdict != "failed") == alone
    (only,) = [p for p in judge(group_runs([*runs[:2], bad[0]]), Rules(axes=("steps",))).axes[0].pairs if p.p]
    assert only.p_adjusted is None and only.verdict == compare_runs(*runs[:2]).verdict


def test_non_inferiority_asks_the_whole_interval(make):
    base = curve(200)
    a, b = make("a", base), make("b", base + 0.002 + noise(200, 3, 0, 0.001), model="e1")
    assert compare_runs(a, b, rules=Rules(margin=0.01)).non_inferior is True
    assert compare_runs(a, b, rules=Rules(margin=0.0015)).non_inferior is False
    assert compare_runs(a, b).non_inferior is None


@pytest.mark.parametrize(
    "how", [{"axes": ()}, {"axes": ("miles",)}, {"window": 20}, {"level": 1.0}, {"margin": -1.0}, {"tolerance": -0.1},
            {"allow": frozenset({"everything"})}],
)  # fmt: skip
def test_rules_that_cannot_be_are_refused(how):
    with pytest.raises(ConfigError):
        Rules(**how)


def test_runs_without_steps_or_axis_say_so(make, tmp_path):
    a, empty = make("a", curve(120)), make("b", [], result={"steps": 0})
    with pytest.raises(RunError, match="no steps"):
        compare_runs(a, empty, rules=Rules(allow=frozenset({"pairing"})))
    assert len(read_runs(tmp_path)) == 2


def test_validation_losses_need_seeds_and_equal_ends(make):
    def groups(**how):
        other = {"model": "e1", **how}
        a = [make(f"a{k}", curve(200, k), seed=k, result={"val_loss": 2.0 + k / 100}) for k in (1, 2, 3)]
        b = [make(f"b{k}", curve(200, k), seed=k, result={"val_loss": 1.9 + k / 99}, **other) for k in (1, 2, 3)]
        return Group("a", tuple(a)), Group("b", tuple(b))

    a, b = groups()
    found = compare_runs(a, b, VALIDATION)
    gaps = [1.9 + k / 99 - 2.0 - k / 100 for k in (1, 2, 3)]
    assert found.verdict == "better" and found.budget is None
    assert found.effect == pytest.approx(np.mean(gaps))
    assert found.interval == pytest.approx(scipy.stats.t.interval(0.95, 2, found.effect, scipy.stats.sem(gaps)))
    one = compare_runs(a.runs[0], b.runs[0], VALIDATION)
    assert (one.verdict, one.interval, one.label) == ("inconclusive", None, ONE_SEED) and one.effect < 0
    axes = judge([a, b], Rules(axes=("steps",), validation=True)).axes
    assert [(one.axis, one.pairs[0].verdict) for one in axes][1:] == [(VALIDATION, "better")]
    longer = make("longer", curve(200, 1), seed=1, model="e1", train={"steps": 400}, result={"val_loss": 1.0})
    with pytest.raises(Refused, match="--allow budget"):
        compare_runs(a.runs[0], longer, VALIDATION)
    assert compare_runs(a.runs[0], longer).verdict == "indistinguishable"
    without = compare_runs(a, Group("c", (make("c", curve(200, 1), seed=1, model="e1"),)), VALIDATION)
    assert without.verdict == "inconclusive" and without.notes[-1] == "c has no validation loss"


def test_between_two_steps_losses_are_interpolated_and_windows_not_paired(make):
    base = curve(300)
    a, b = make("a", base), make("b", base - 0.003 + noise(300, 1, 0.5, 0.002), model="e1")
    found = compare_runs(a, b, "tokens", budget=250.25 * BATCH * 16)
    gaps = b.series("loss") - a.series("loss")
    before, after = (np.mean(gaps[end - 100 : end]) for end in (250, 251))
    assert found.method == "unpaired windows" and found.effect == pytest.approx(0.75 * before + 0.25 * after)
    assert compare_runs(a, b, "tokens", budget=250 * BATCH * 16).method == "paired steps"


@pytest.mark.parametrize("other", ["better", "indistinguishable"])
def test_a_reversal_is_decided_only_where_both_orders_are_verdicts(other):
    said = {"steps": Comparison("a", "b", "steps", 1, "worse", effect=0.1)}
    said["seconds"] = Comparison("a", "b", "seconds", 1, other, effect=-0.1)
    axes = [AxisVerdicts(axis, 1.0, {}, (), (pair,)) for axis, pair in said.items()]
    (found,) = _reversals([Group("a", ()), Group("b", ())], axes)
    assert (found.a_ahead, found.b_ahead) == (("steps",), ("seconds",))
    assert found.decided == (other == "better")
