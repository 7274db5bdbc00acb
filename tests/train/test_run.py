"""A run from plan to result: metrics, buckets, budgets, validation, trackers."""

import json
import math

import numpy as np
import pytest
import torch
from rnn_lab.data.corpus import open_split
from rnn_lab.errors import BudgetTooSmall, ConfigError
from rnn_lab.registry import registry
from rnn_lab.train.budget import Budget
from rnn_lab.train.clock import BUCKETS, Clock
from rnn_lab.train.metrics import MetricsLog, read_metrics
from rnn_lab.train.run import build, load_trained

from .conftest import Recorder, run

STEP_KEYS = {"step", "loss", "tokens", "flops", "seconds", "grad_norm", "lr", "tokens_per_s", "last100", "bpb"}


def test_metrics_and_result_of_a_run(tiny, tmp_path):
    plan = tiny(train={"steps": 5})
    result = run(plan, tmp_path / "r")
    lines = list(read_metrics(tmp_path / "r" / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0].keys() >= STEP_KEYS
    assert [line["tokens"] for line in lines] == [64 * k for k in range(1, 6)]
    assert lines[-1]["flops"] == 3 * plan.spec.flops_per_token(16) * 64 * 5
    assert lines[0]["seconds"] == 0 < lines[1]["seconds"] < lines[4]["seconds"]
    assert result == json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["status"] == "ok" and result["steps"] == 5 and result["tokens"] == 320
    assert result["params"] == result["certificate"]["params"] == sum(result["certificate"]["breakdown"].values())
    assert result["val_bpb"] == pytest.approx(result["val_loss"] / math.log(2))
    assert result["last100"] is None and result["bpb"] is None
    ran = {row["op"]: (row["backend"], row["layers"]) for row in result["backends"]}
    assert ran == {
        "recurrence": ("reference", [0, 1]),
        "residual_norm": ("reference", ["lm"]),
        "cross_entropy": ("reference", ["lm"]),
    }
    assert result["tokens_per_s"] == pytest.approx(4 * 64 / result["clock"]["buckets"]["train"])


def test_loss_is_the_mean_next_byte_cross_entropy_of_the_stated_batch(tiny, tmp_path):
    plan = tiny(train={"steps": 1, "grad_accum": 2})
    run(plan, tmp_path / "r")
    (line,) = read_metrics(tmp_path / "r" / "metrics.jsonl")
    model, _ = build(plan, registry())
    model.prepare()
    split = open_split(plan.resolved.config.data.path, seq_len=16)
    # Batch 1 by its definition: raw Philox words of key [seed, step] times span, high 64 bits.
    span = len(split.train) - 16 - 16
    words = np.random.Philox(key=[42, 1]).random_raw(4)
    starts = [int(w) * span >> 64 for w in words]
    windows = torch.tensor(np.stack([split.train.array[s : s + 17] for s in starts]).astype(np.int64))
    log_p = model(windows[:, :-1])[0].log_softmax(-1)
    expected = -log_p.gather(-1, windows[:, 1:, None]).mean()
    assert line["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_last100_is_the_mean_of_the_last_100_steps_and_null_before(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for step in range(1, 151):
        log.add_loss(float(step))
        log.write({"step": step, "loss": float(step)})
        assert log.last100 == (None if step < 100 else sum(range(step - 99, step + 1)) / 100)
    log.close()
    again = MetricsLog(tmp_path / "m.jsonl", step=120)
    assert again.last100 == sum(range(21, 121)) / 100
    again.close()


def test_lines_past_the_checkpoint_and_torn_lines_are_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    MetricsLog(path, step=1).close()
    assert path.read_text() == '{"step": 1, "loss": 1.0}\n'


def test_buckets_sum_to_the_wall_time(tiny, tmp_path):
    result = run(tiny(train={"steps": 4}, eval={"tokens": 256, "every": 2}, checkpoint={"every": 1}), tmp_path / "r")
    buckets = result["clock"]["buckets"]
    assert set(buckets) == set(BUCKETS)
    assert sum(buckets.values()) == pytest.approx(result["clock"]["total"])
    assert all(buckets[name] > 0 for name in ("startup", "warmup", "train", "eval", "checkpoint", "other"))


def test_clock_books_every_second_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock({"train": 5.0})
    now[0] += 1
    clock.switch("other")
    with clock.book("train"):
        now[0] += 2
        with clock.book("eval"):
            now[0] += 4
        now[0] += 8
    now[0] += 16
    expected = {"startup": 1, "train": 15, "eval": 4, "other": 16, "warmup": 0, "checkpoint": 0}
    assert clock.seconds() == expected and clock.train == 15


def test_token_budget_never_exceeds_its_limit(tiny, tmp_path):
    assert run(tiny(train={"tokens": 64 * 3 + 63}), tmp_path / "r")["tokens"] == 64 * 3


def test_token_budget_below_one_step_is_refused(tiny):
    with pytest.raises(BudgetTooSmall, match=r"63 is less than one step of 4 x 16 = 64 bytes"):
        tiny(train={"tokens": 63})


def test_time_budget_counts_training_seconds_only(tiny, tmp_path):
    result = run(tiny(train={"minutes": 0.01}, eval={"tokens": 256, "every": 5}), tmp_path / "r")
    buckets = result["clock"]["buckets"]
    assert result["status"] == "ok" and result["steps"] > 3
    assert 0.6 <= buckets["train"] < 1.2
    assert result["clock"]["total"] > buckets["train"] + buckets["eval"]


def test_time_budget_below_one_step_is_refused(tiny, tmp_path):
    with pytest.raises(BudgetTooSmall, match="one step takes"):
        run(tiny(train={"minutes": 1e-9}), tmp_path / "r")
    assert json.loads((tmp_path / "r" / "result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("limits", "done", "allowed"),
    [
        (Budget(3, None, None, 10), 2, True),
        (Budget(3, None, None, 10), 3, False),
        (Budget(None, 30, None, 10), 2, True),
        (Budget(None, 39, None, 10), 3, False),
        (Budget(None, None, 5.0, 10), 99, True),
        (Budget(100, None, 4.0, 10), 1, False),
    ],
)
def test_budget_ends_at_whichever_limit_comes_first(limits, done, allowed):
    assert limits.allows(done, 4.5) is allowed


def test_grad_accumulation_gives_the_same_run(tiny, tmp_path):
    whole = run(tiny(train={"steps": 4}), tmp_path / "a")
    parts = run(tiny(train={"steps": 4, "grad_accum": 4}), tmp_path / "b")
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert parts["data_chain"] == whole["data_chain"]


def test_grad_accumulation_must_divide_the_batch(tiny):
    with pytest.raises(ConfigError, match="does not divide"):
        tiny(train={"grad_accum": 3})


def test_the_data_chain_names_data_seed_and_steps(tiny, tmp_path):
    chains = [
        run(tiny(train={"steps": n, "seed": seed}, model={"name": name}), tmp_path / f"{n}{seed}{name}")["data_chain"]
        for n, seed, name in [(3, 1, "e61"), (3, 1, "e1"), (3, 2, "e61"), (2, 1, "e61")]
    ]
    assert chains[0] == chains[1] and len(set(chains)) == 3


def test_validation_does_not_change_the_run(tiny, tmp_path):
    runs = [
        run(tiny(train={"steps": 6}, eval={"tokens": 256, **extra}), tmp_path / str(i))
        for i, extra in enumerate(({}, {"every": 1}))
    ]
    assert runs[0]["loss"] == runs[1]["loss"] and runs[0]["val_loss"] == runs[1]["val_loss"]


def test_validation_uses_the_averaged_weights(tiny, tmp_path):
    run(tiny(train={"steps": 30}), tmp_path / "r")
    model, plan, step = load_trained(tmp_path / "r", registry(), "cpu", print)
    saved = json.loads((tmp_path / "r" / "result.json").read_text())["val_loss"]
    split = open_split(plan.resolved.config.data.path, seq_len=16)
    from rnn_lab.train.evaluate import evaluate

    again = evaluate(model, split.val, seq_len=16, batch_size=4, tokens=256, dtype=torch.float32)
    assert step == 30 and again.loss == pytest.approx(saved, rel=1e-6)
    from rnn_lab.train.checkpoint import load_latest

    raw = load_latest(tmp_path / "r" / "checkpoints", print)
    model.load_state_dict(raw.tensors["model"])
    training = evaluate(model, split.val, seq_len=16, batch_size=4, tokens=256, dtype=torch.float32)
    assert abs(training.loss - saved) > 1e-6


def test_carried_state_reaches_the_next_step_and_resets_at_documents(tiny, tmp_path):
    carried = run(tiny(train={"steps": 6, "carry_state": True}), tmp_path / "a")
    fresh = run(tiny(train={"steps": 6}), tmp_path / "b")
    assert carried["status"] == "ok" and carried["loss"] != fresh["loss"]
    assert carried["data_chain"] != fresh["data_chain"]
    split = run(tiny(train={"steps": 6, "carry_state": True, "grad_accum": 2}), tmp_path / "c")
    assert split["loss"] == pytest.approx(carried["loss"], rel=1e-4)


def test_bf16_autocast_keeps_fp32_master_weights(tiny, tmp_path):
    plan = tiny(train={"steps": 2, "dtype": "bf16"})
    result = run(plan, tmp_path / "r")
    assert result["dtype"] == "bfloat16" and math.isfinite(result["loss"])
    model, _, _ = load_trained(tmp_path / "r", registry(), "cpu", print)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_tensorboard_gets_scalars_and_hparams_in_the_run_folder(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tiny(train={"steps": 3}, log={"trackers": ["tensorboard"]}), tmp_path / "r")
    assert len(list((tmp_path / "r").glob("events.*"))) == 1
    events = EventAccumulator(str(tmp_path / "r"))
    events.Reload()
    assert {"loss/ce", "training/grad_norm", "throughput/tokens_per_sec", "final/val_loss"} <= set(
        events.Tags()["scalars"]
    )
    losses = [line["loss"] for line in read_metrics(tmp_path / "r" / "metrics.jsonl")]
    assert [e.value for e in events.Scalars("loss/ce")] == pytest.approx(losses)
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_a_run_never_overwrites_another(tiny, tmp_path):
    run(tiny(train={"steps": 1}), tmp_path / "r")
    with pytest.raises(ConfigError, match="is already a run: `rnn-lab resume"):
        run(tiny(train={"steps": 1}), tmp_path / "r")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        run(tiny(train={"steps": 1}), tmp_path / "other")


def test_observer_sees_every_step(tiny, tmp_path):
    seen = Recorder()
    run(tiny(train={"steps": 3}), tmp_path / "r", seen)
    assert [line["step"] for line in seen.lines] == [1, 2, 3]


def test_optimizer_defaults_are_the_documented_ones(tiny):
    _, optimizer = build(tiny(), registry())
    (group,) = optimizer.param_groups
    shown = {key: group[key] for key in ("lr", "weight_decay", "betas", "eps", "warmup_steps")}
    assert type(optimizer).__name__ == "AdamWScheduleFree"
    assert shown == {"lr": 3e-4, "weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "warmup_steps": 0}
    assert tiny().resolved.config.train.clip == 1.0


def test_decay_of_matrices_leaves_vectors_alone(tiny):
    _, optimizer = build(tiny(optimizer={"decay": "matrices", "name": "adamw", "warmup_steps": 4}), registry())
    by_decay = {group["weight_decay"]: {p.dim() for p in group["params"]} for group in optimizer.param_groups}
    assert by_decay == {0.1: {2}, 0.0: {1}}


def test_adamw_warms_up_linearly(tiny, tmp_path):
    run(tiny(train={"steps": 6}, optimizer={"name": "adamw", "warmup_steps": 4, "lr": 0.4e-3}), tmp_path / "r")
    lrs = [line["lr"] for line in read_metrics(tmp_path / "r" / "metrics.jsonl")]
    assert lrs == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4, 4e-4, 4e-4])


def test_an_optimizer_tells_of_its_state_now_and_then(tiny, tmp_path):
    observer = Recorder()
    plan = tiny(model={"dim": 64}, train={"steps": 7}, optimizer={"name": "muon8bit"}, diagnostics={"every": 3})
    run(plan, tmp_path / "r", observer)
    told = [line["step"] for line in observer.lines if "quant/rel_err_max" in line]
    assert told == [3, 6] == [line["step"] for line in observer.lines if "update_rms" in line]
