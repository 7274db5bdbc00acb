"""Each rule on lines made for it, and what a run does with what is found."""

import json
import math

import pytest
from rnn_lab.config import Layer, resolve
from rnn_lab.diagnostics.rule import Facts, Rule, Window
from rnn_lab.diagnostics.training import noise
from rnn_lab.diagnostics.watch import Watch, rules_of
from rnn_lab.errors import ConfigError, Diagnosed, OutOfMemory
from rnn_lab.registry import registry
from rnn_lab.train.step import EagerExecutor

from .conftest import Recorder, resume, run

FINE = {"loss": 2.0, "grad_norm": 1.0, "data_wait_frac": 0.0, "step_ms": 100.0, "seconds": 0.0}


def config(**sections):
    return resolve([Layer("test", {"model": {"name": "e61"}, **sections})]).config


def fired(columns, steps=300, cfg=None, **facts):
    """Ids that hold at the last of `steps` lines whose columns are functions of the step, and their findings."""
    watch = Watch(rules_of(registry()), Facts(cfg=cfg or config(), **{"wider": 512, **facts}), lambda text: None)
    line = {}
    for step in range(1, steps + 1):
        given = {name: value(step) if callable(value) else value for name, value in columns.items()}
        line = {"step": step, **FINE, **given}
        watch.step(line)
    return {key.removeprefix("diag/"): watch.tallies[key.removeprefix("diag/")] for key in line if "diag/" in key}


def at(steps, value, otherwise=None):
    return lambda step: value if step in steps else otherwise


MUON = {"optimizer": {"name": "muon"}}
CASES = {
    "D-DIVERGE": ({"loss": lambda step: 2.0 if step < 250 else 4.0}, {}, "1.8", "optimizer.lr = 0.00015"),
    "D-GNORM-HI": ({"grad_norm": 6.0}, {"train": {"clip": 0}}, "is 6, above 5", "optimizer.lr"),
    "D-GNORM-LO": ({"grad_norm": 0.4}, {}, "is 0.4, below 0.5", "train.clip"),
    "D-GSPIKE": ({"grad_norm": lambda step: 1.0 if step < 300 else 5.5}, {}, "5.5 times the median", "rollback"),
    "D-CLIP": ({"grad_norm": lambda step: 2.0 if step % 3 else 0.9}, {}, "66% of 200 steps", "train.clip = 2"),
    "D-LOADER": ({"data_wait_frac": 0.2, "gpu_util": 50.0}, {}, "20% of 50 steps", "loader.workers = 8"),
    "D-GALORE-RANK": (
        {"galore/energy": at((300,), 0.4)}, {"optimizer": {"name": "galore_muon", "galore_rank": 256}},
        "holds 40%", "optimizer.galore_rank = 512; optimizer.galore_update_freq = 100",
    ),
    "D-GALORE-SLOW": (
        {"galore/refresh_ms": at((300,), 2000.0)}, {"optimizer": {"name": "galore_muon"}}, "takes 10%", "freq = 400",
    ),
    "D-COLLIDER": (
        {"collider_sparsity": 0.69}, {"objective": {"use_collider": True, "collider_mode": "compat"}},
        "69% of the positions", 'collider_mode = "topk"',
    ),
    "D-QUANT": (
        {"quant/rel_err_max": lambda step: 0.06 if step % 100 == 0 else None}, {"optimizer": {"name": "muon8bit"}},
        "off by 6.0%", "optimizer.block_size = 128",
    ),
    "D-ENTROPY": ({"entropy": 0.01}, {}, "is 0.01 nats", "objective.entropy_weight = 0.01"),
}  # fmt: skip


def test_a_larger_rank_is_one_that_still_saves():
    found = fired({"galore/energy": at((300,), 0.4)}, cfg=config(optimizer={"name": "galore_muon"}), wider=None)
    assert found["D-GALORE-RANK"].finding.suggestion == "optimizer.galore_update_freq = 100"


def test_adaptive_subspaces_may_be_refreshed_four_times_as_often():
    slow, fixed = {"galore/refresh_ms": at((300,), 600.0)}, {"name": "galore_muon"}
    assert not fired(slow, cfg=config(optimizer=fixed))
    found = fired(slow, cfg=config(optimizer={**fixed, "galore_adaptive": True}))
    assert "may take 12%" in found["D-GALORE-SLOW"].finding.message


@pytest.mark.parametrize("name", CASES)
def test_the_rule_holds_where_it_should_and_nowhere_else(name):
    columns, sections, says, advice = CASES[name]
    found = fired(columns, cfg=config(**sections))
    assert set(found) == {name}
    assert says in found[name].finding.message and advice in found[name].finding.suggestion
    assert not set(fired({}, cfg=config(**sections)))


def test_limits_are_those_of_bytes():
    assert set(fired({"loss": 5.6, "entropy": 5.52})) == {"D-DIVERGE", "D-ENTROPY"}
    assert not fired({"loss": 4.9, "entropy": 1.5})  # above what is called a collapse at a vocabulary of 50,000
    assert set(fired({"val_entropy": at((300,), 0.02)})) == {"D-ENTROPY"}
    assert set(fired({"gpu_util": 50.0})) == {"D-LOADER"}  # launch-bound
    assert "loader will not help" in fired({"gpu_util": 50.0})["D-LOADER"].finding.message
    assert set(fired({"galore/energy": at((300,), 0.9), "galore/energy_stale": at((300,), 0.5)})) == {"D-GALORE-RANK"}


def test_a_refresh_is_shared_out_over_its_period():
    for spent, ids in ((900.0, set()), (1100.0, {"D-GALORE-SLOW"})):
        found = fired({"galore/refresh_ms": at((300,), spent)}, cfg=config(optimizer={"name": "galore_muon"}))
        assert set(found) == ids  # every 200 steps of 100 ms, of which 5 % may go there


def test_a_loss_rises_above_what_it_was_after_the_warm_up():
    rising = {"loss": lambda step: 1.0 if step <= 100 else 2.5}
    assert not fired(rising, warmup_steps=200) and set(fired(rising, warmup_steps=90)) == {"D-DIVERGE"}


def test_the_warm_up_is_left_out_and_muon_is_told_softly():
    assert not fired({"grad_norm": 6.0}, warmup_steps=250)
    assert fired({"grad_norm": 6.0})["D-GNORM-HI"].finding.severity == "warning"
    assert fired({"grad_norm": 6.0}, cfg=config(**MUON), muon=True)["D-GNORM-HI"].finding.severity == "info"
    share = config(train={"minutes": 1}, schedule={"type": "wsd", "warmup": 0.5})
    timed = {"grad_norm": 6.0, "seconds": lambda step: step / 10}
    assert not fired(timed, cfg=share, warmup_steps=None)
    assert "D-GNORM-HI" in fired({**timed, "seconds": lambda step: float(step)}, cfg=share, warmup_steps=None)


def looked(at, **facts):
    watch = Watch(rules_of(registry()), Facts(**{"cfg": config(), **facts}), lambda text: None)
    if at == "end":
        watch.step({"step": 5, **FINE, "memory_bytes": 95})
    watch.look(at)
    return {row["id"]: row for row in watch.report()}


def test_what_is_wrong_from_the_start():
    assert looked("start") == {}
    assert "30% of the run" in looked("start", warmup_steps=30, total_steps=100)["D-WARMUP"]["message"]
    assert looked("start", warmup_steps=20, total_steps=100) == {}
    assert "ended at step 5" in looked("end", warmup_steps=30)["D-WARMUP"]["message"]
    assert "100%" in looked("start", unsaved=1.0)["D-GALORE-NOSAVE"]["message"]
    assert "D-COLLIDER-NOGAIN" in looked("start", backward=(1.0, 1.1)) and not looked("start", backward=(1.1, 1.0))
    full = {"memory": 100, "needs": {"weights": 95}}
    assert "weights" in looked("start", **full)["D-OOM"]["message"]
    assert "largest use" in looked("end", memory=100)["D-OOM"]["message"] and looked("end", memory=200) == {}


def test_noise_is_told_where_runs_are_compared():
    assert noise(0.01, 0.15, 3) is None
    found = noise(0.3, 0.15, 3)
    assert (found.id, found.severity) == ("D-NOISE", "warning") and "seeds = 12" in found.suggestion


def test_every_hundred_steps_are_told_once_and_all_are_counted():
    notes = []
    watch = Watch(rules_of(registry()), Facts(cfg=config()), notes.append)
    for step in range(1, 401):
        watch.step({"step": step, **FINE, "loss": 5.8})
    (row,) = watch.report()
    assert row["count"] == 251 and row["first_step"] == 150 and row["last_step"] == 400
    assert len(notes) == 3 and "Try: optimizer.lr = 0.00015" in notes[0]
    again = Watch(rules_of(registry()), Facts(cfg=config()), notes.append, saved=json.loads(json.dumps(watch.state())))
    assert again.report() == watch.report()


def test_a_rule_that_fails_is_left_out():
    notes = []
    broken = Rule("D-MINE", "error", "never", lambda window: str(1 / 0), "")
    watch = Watch([broken], Facts(cfg=config()), notes.append, strict=True)
    watch.step({"step": 1, **FINE})
    watch.enforce()
    assert "D-MINE cannot be looked at" in notes[0] and watch.report() == []


def test_missing_figures_hold_nothing():
    window = Window(Facts(cfg=config()), [{"step": 1, "loss": None, "grad_norm": None, "seconds": 0.0}])
    assert window.median("grad_norm", 100) is None and window.smooth is None and math.isnan(float("nan"))
    assert not fired({"grad_norm": None, "loss": 2.0})


def test_a_strict_run_stops_at_an_error_and_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("rnn_lab.diagnostics.rule.SETTLING", 2)
    monkeypatch.setattr("rnn_lab.diagnostics.training.SLOW_START", 1)
    monkeypatch.setattr("rnn_lab.diagnostics.training.UNIFORM", 1.0)
    plan = tiny(train={"steps": 6}, diagnostics={"strict": True})
    with pytest.raises(Diagnosed, match=r"D-DIVERGE \(error\) at step 3: .*diagnostics.strict is on") as caught:
        run(plan, tmp_path / "r")
    assert caught.value.exit_code == 5
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["status"] == "failed" and [row["id"] for row in result["diagnostics"]] == ["D-DIVERGE"]
    seen = Recorder()
    result = run(tiny(train={"steps": 6}, diagnostics={"ignore": ["D-WARMUP"]}), tmp_path / "mild", seen)
    assert result["status"] == "ok" and [line.get("diag/D-DIVERGE") for line in seen.lines] == [None, None, 1, 2, 3, 4]
    assert resume(tmp_path / "mild", steps=8)["diagnostics"][0]["count"] == 6
    with pytest.raises(ConfigError, match="'D-NIX' is no diagnostic"):
        tiny(diagnostics={"ignore": ["D-NIX"]})


def test_out_of_memory_is_on_record_with_what_was_needed(tiny, tmp_path, monkeypatch):
    import torch

    def submit(self, k):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(EagerExecutor, "submit", submit)
    with pytest.raises(OutOfMemory):
        run(tiny(train={"steps": 3}), tmp_path / "r")
    (row,) = json.loads((tmp_path / "r" / "result.json").read_text())["diagnostics"]
    assert (row["id"], row["severity"]) == ("D-OOM", "error") and "optimizer state" in row["message"]
    assert row["suggestion"] == "train.grad_accum = 2; train.checkpoint_every = 1"
