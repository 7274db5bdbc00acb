"""What rows say of runs: which pairs count, what was on, what was not finite; and the file of backward's times."""

import json

import pytest
from rnn_lab.comparison.pairing import replayed, source_of
from rnn_lab.comparison.records import RunRecord
from rnn_lab.e3.backward import BACKWARD, _summary, read, sealed
from rnn_lab.e3.claims import claims
from rnn_lab.e3.facts import _limits, memory
from rnn_lab.e3.measure import Row, features, mean_of, not_finite, paired, rows
from rnn_lab.errors import RnnLabError

TIMES = {"forward_ms": 1.0, "both_ms": 3.0}
MEASURED = {
    "kind": "backward", "header": {"torch": "2"},
    "model": "e61", "dim": 1024, "depth": 4, "params": 9, "batch_size": 8, "seq_len": 64, "sparsity": 0.35,
    "device": "cuda", "gpu": "a GPU", "dtype": "bfloat16", "graph": {"used": True, "reason": None},
    "rounds": [{"dense": TIMES, "filtered": TIMES}],
    "dense": {"forward_ms": 1.0, "backward_ms": 2.0}, "filtered": {"forward_ms": 1.0, "backward_ms": 1.0},
    "backward_reduction": {"value": 0.5, "low": 0.4, "high": 0.6},
    "step_reduction": {"value": 0.3, "low": 0.3, "high": 0.3},
}  # fmt: skip


def run(tmp_path, lines=4, *, label="Baseline", chain="a", status="ok", config=None, figures=None, **result):
    """A run of `lines` steps in memory; `figures` are more columns of each."""
    data = {"bytes": 100, "fingerprint": "f"}
    record = RunRecord(
        tmp_path, label, label, "e61", 42, status=status, chain=chain,
        config={"train": {"carry_state": False, "batch_size": 1, "seq_len": 1}, **(config or {})},
        result={"steps": lines, "data": data, **result},
    )  # fmt: skip
    line = {"tokens": 1, "tokens_per_s": 1.0, "seconds": 1.0, "flops": 1, "loss": 2.0, "grad_norm": 1.0}
    record.__dict__.update(edited=None, lines=[{"step": k + 1, **line, **(figures or {})} for k in range(lines)])
    return record


def test_bounds_are_one_sided_and_the_interval_is_two_sided():
    found = paired([0.0, 1.0, 2.0])
    assert found.upper - 1 == 1 - found.lower == pytest.approx(2.919986 / 3**0.5)
    assert found.high - 1 == pytest.approx(4.302653 / 3**0.5)


def test_runs_of_other_bytes_are_not_paired(tmp_path):
    base = run(tmp_path)
    for chain, values in (("a", 1), ("b", None)):
        found = rows({"Baseline": [base], "X": [run(tmp_path, label="X", chain=chain)]}, "Baseline")[1]
        assert found.ok == 1 and (found.delta and len(found.delta.values)) == values


def test_losses_are_compared_at_equal_steps(tmp_path):
    longer, shorter = run(tmp_path, 8), run(tmp_path, 4, label="X")
    for one in (longer, shorter):
        one.result["data"]["bytes"] = 10_000
        one.__dict__["chain"] = replayed(source_of(one), len(one.lines))
    for line in longer.lines:
        line["loss"] = 10.0 - line["step"]
    assert rows({"Baseline": [longer], "X": [shorter]}, "Baseline")[1].delta.value == 2.0 - 6.0


@pytest.mark.parametrize(
    "config", [{"schedule": {"warmup": 2.0}}, {"schedule": {"warmup": 0.5}}, {"optimizer": {"warmup_steps": 2}}]
)
def test_gradient_norms_of_the_warm_up_do_not_count(tmp_path, config):
    warm = run(tmp_path, config=config)
    for line in warm.lines[:2]:
        line["grad_norm"] = 100.0
    (found,) = rows({"Baseline": [warm]}, "Baseline")
    assert (found.norms, found.calm) == ((1.0, 1.0, 1.0), 1.0)


def test_what_is_left_of_the_peak_is_all_that_has_no_part_of_its_own():
    state = {"weight_bytes": 40, "gradient_bytes": 30, "bytes": 20, "by_category": {"momentum": 20}}
    parts = {
        part.part: part.measured for part in memory(Row("X", "e61", 1, 1, "", {}, state=state, peak=mean_of([100])))
    }
    assert (parts["activations and all else"], parts["peak"]) == (10, 100)


def test_a_feature_that_did_nothing_is_off(tmp_path):
    asked = {
        "objective": {"use_mtp": True, "mtp_variant": "linear", "mtp_n_tokens": 4, "use_collider": True,
                      "collider_mode": "topk", "collider_scorer": "loss", "collider_sparsity": 0.35},
        "optimizer": {"name": "galore_muon", "bits": 8, "galore_rank": 4, "galore_update_freq": 2},
        "loader": {"workers": 2, "prefetch": 4},
    }  # fmt: skip
    acted = {"mtp_k2": 2.0, "collider_sparsity": 0.35, "queue_depth": 0}
    state = {"by_category": {"momentum": 8, "scales": 4, "subspaces": 4}}
    names = ("MTP", "Collider", "reading ahead", "GaLore", "8 bits")
    on = features(run(tmp_path, config=asked, figures=acted, optimizer_state=state))
    assert [on[name] for name in names] == ["linear, n = 4", "topk by loss, s = 0.35", "2 / 4", "r = 4, every 2", "yes"]
    for nothing in ({}, {"collider_sparsity": 0.0}):
        state = {"by_category": {"momentum": 8}}
        off = features(run(tmp_path, config=asked, figures=nothing, optimizer_state=state))
        assert off["Collider"] == "off (never filtered)" and all(off[name].startswith("off (") for name in names)
    assert features(run(tmp_path, 0, config=asked))["Collider"] == on["Collider"]  # it never came to a step


def test_skipped_steps_and_roll_backs_of_every_run_are_counted(tmp_path):
    back = run(
        tmp_path, rollbacks=[{"at": 3, "to": 1, "where": "loss"}], diagnostics=[{"id": "D-NAN", "count": 3}],
    )  # fmt: skip
    dead = run(tmp_path, 2, status="diverged", figures={"skipped": 1})
    found = rows({"Baseline": [back, dead]}, "Baseline")[0]
    assert found.status == "1 ok (1 roll-back), 1 diverged"
    assert (found.skipped, found.rollbacks) == (5, 1) and not_finite(run(tmp_path)) == 0


def test_backward_is_what_both_take_less_forward():
    filtered = {"forward_ms": 1.0, "both_ms": 2.0}
    found = _summary([{"dense": TIMES, "filtered": filtered}] * 2)
    assert (found["dense"]["backward_ms"], found["filtered"]["backward_ms"]) == (2.0, 1.0)
    assert (found["backward_reduction"]["value"], found["step_reduction"]["value"]) == pytest.approx((1 / 2, 1 / 3))


def test_the_file_of_backward_is_read_as_it_was_written_or_not_judged(tmp_path):
    path = tmp_path / BACKWARD
    assert read(tmp_path) is None
    written = sealed(MEASURED)
    path.write_text(json.dumps(written, indent=1))
    assert read(tmp_path) == written
    more = {**written, "backward_reduction": {"value": 0.6, "low": 0.4, "high": 0.6}}
    for edited in (MEASURED, more):  # by hand, and a digit
        path.write_text(json.dumps(edited))
        said = next(claim for claim in claims({}, read(tmp_path), None) if claim.id == "C6")
        assert (said.verdict, said.measured) == ("not run", "") and said.reason.startswith("edited: ")


@pytest.mark.parametrize(
    "change",
    [{"dim": None}, {"dim": "1024"}, {"backward_reduction": {"value": 0.5}}, {"gpu": 1}, {"more": 1},
     {"dense": [1, 2]}, {"step_reduction": {"value": float("nan"), "low": 0.1, "high": 0.2}}],
)  # fmt: skip
def test_a_file_of_backward_with_wrong_keys_is_damaged(tmp_path, change):
    (tmp_path / BACKWARD).write_text(json.dumps(sealed({**MEASURED, **change})))
    with pytest.raises(RnnLabError, match=r"backward\.json: damaged: remove it"):
        read(tmp_path)
    (tmp_path / BACKWARD).write_text("[]" if "dim" in change else json.dumps({"dim": 1}))
    with pytest.raises(RnnLabError, match="damaged"):
        read(tmp_path)


@pytest.mark.parametrize("train, told", [({"minutes": 1.0}, True), ({"steps": 100}, False)])
def test_a_budget_of_time_is_named_among_the_limits(tmp_path, train, told):
    texts = _limits([], [run(tmp_path, config={"train": train})], 100)
    assert any("learning rate is higher at equal steps" in text for text in texts) == told
