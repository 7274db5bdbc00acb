"""Several ranks train the run that one process trains: same data, same losses, whichever way they share the model.

Losses are held to the tolerances of fp32, 1e-5, and 1e-4 for gradients: sums are made in another order. What a
checkpoint holds is equal to the last bit, whoever wrote it and whoever takes it up.
"""

import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rnn_lab.train.checkpoint import load_checkpoint
from rnn_lab.train.rundir import list_checkpoints
from rnn_lab_cli.main import cli, main

from .ranks import Ranks, values

pytestmark = pytest.mark.slow  # all in one process of several: what ranks are forked from takes seconds to start
TOLERANCE = {"loss": 1e-5, "param_norm": 1e-5, "grad_norm": 1e-4, "update_rms": 1e-4}
OTHERS = {"mtp_total": 1e-5, "collider_kept_ce": 1e-5, "galore/energy": 1e-4, "quant/rel_err_median": 1e-2}
"""What only some runs tell; 8-bit codes round apart where sums do."""
FSDP = {"mode": "fsdp"}
STATEFUL = {"model": {"use_conv": True}, "train": {"carry_state": True, "grad_accum": 2}, "eval": {"tokens": 240}}
MUON = {"model": {"name": "e1", "dim": 64}, "optimizer": {"name": "muon8bit", "aux_8bit": True}}
GALORE = {
    "model": {"name": "e1", "dim": 64},
    "optimizer": {"name": "galore_muon", "galore_rank": 8, "galore_update_freq": 4, "galore_force": True},
}


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return Ranks()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "bytes.bin"
    path.write_bytes(b"\x1e".join(b"the quick brown fox jumps over %d lazy dogs" % (i * i) for i in range(400)))
    return path


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def assert_same_curve(one: Path, other: Path, figures=tuple(TOLERANCE)) -> None:
    a, b = lines(one), lines(other)
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for x, y in zip(a, b, strict=True):
        for name in figures:
            assert (name in x) == (name in y), name
            close = name not in x or math.isclose(x[name], y[name], rel_tol=(TOLERANCE | OTHERS)[name])
            assert close, (x["step"], name, x[name], y[name])
    assert result(one)["data_chain"] == result(other)["data_chain"]
    assert math.isclose(result(one)["val_loss"], result(other)["val_loss"], rel_tol=1e-5)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    saved = load_checkpoint(path)
    return {f"{group}/{name}": t for group, some in saved.tensors.items() for name, t in some.items()}


def assert_same_state(one: Path, other: Path) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def newest(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1][1]


def test_one_two_and_four_ranks_give_one_curve(ranks, corpus, tmp_path):
    def job(name, mode="ddp", accum=2):
        train = {**STATEFUL["train"], "grad_accum": accum}
        return tmp_path / name, values(corpus, **{**STATEFUL, "train": train}, parallel={"mode": mode})

    assert ranks.several(1, job("ddp1")) == [[0]]
    assert ranks.several(2, job("ddp2"), job("fsdp2", "fsdp")) == [[0, 0]] * 2
    assert ranks.several(4, job("ddp4", accum=1)) == [[0] * 4]
    for name in ("ddp2", "ddp4", "fsdp2"):
        assert_same_curve(tmp_path / "ddp1", tmp_path / name)
    for line, other in zip(lines(tmp_path / "ddp2"), lines(tmp_path / "fsdp2"), strict=True):
        assert math.isclose(line["loss"], other["loss"], rel_tol=1e-6)
    found = result(tmp_path / "fsdp2")
    assert found["parallel"]["ranks"] == len(found["parallel"]["peak_memory_bytes"]) == 2
    assert found["optimizer_state"]["bytes"] <= 0.55 * found["optimizer_state"]["predicted_bytes"]
    assert sum(path.name.startswith("metrics") for path in (tmp_path / "ddp2").iterdir()) == 1


def test_optimizers_of_matrices_have_owners_under_fsdp(ranks, corpus, tmp_path):
    """Their updates, figures and state are those of one process, at any number of ranks."""
    kinds, run = {"muon": MUON, "galore": GALORE}, tmp_path / "run"
    jobs = [(tmp_path / f"{name}1", values(corpus, **kind)) for name, kind in kinds.items()]
    assert ranks.several(1, *jobs) == [[0]] * 2
    jobs = [(tmp_path / f"{name}2", values(corpus, **kind, parallel=FSDP)) for name, kind in kinds.items()]
    begun = values(corpus, **MUON, parallel=FSDP, train={"steps": 3})
    assert ranks.several(2, *jobs, (run, begun)) == [[0, 0]] * 3
    for name, shown in (("muon", "quant/rel_err_median"), ("galore", "galore/energy")):
        assert_same_curve(tmp_path / f"{name}1", tmp_path / f"{name}2", ("loss", "grad_norm", shown))
        whole, own = (result(tmp_path / f"{name}{size}")["optimizer_state"]["bytes"] for size in (1, 2))
        assert own < 0.85 * whole
    assert not any(ranks.rewrite(4, run, tmp_path / "four"))
    assert_same_state(newest(run), tmp_path / "four" / "step_3")
    assert ranks(2, run, extend={"steps": 6}) == [0, 0]
    assert_same_curve(tmp_path / "muon1", run, ("loss", "grad_norm"))


def test_a_run_goes_on_with_another_number_of_ranks(ranks, corpus, tmp_path):
    train = {**STATEFUL["train"], "grad_accum": 1}
    sections = values(corpus, **{**STATEFUL, "train": train, "eval": {"tokens": 240, "every": 6}}, parallel=FSDP)
    whole, run, again, done = (tmp_path / name for name in ("whole", "run", "again", "done"))
    assert not any(ranks(2, whole, {**sections, "checkpoint": {"every": 2, "keep": 9}}))
    for copy, last in ((run, 2), (again, 2), (done, 6)):
        shutil.copytree(whole, copy)
        for step, path in list_checkpoints(copy / "checkpoints"):
            if step > last:
                shutil.rmtree(path)
        (copy / "result.json").unlink()
    # To the last bit: two ranks' checkpoint written again by four and by one, and two that go on as they were.
    assert not any([*ranks.rewrite(4, run, tmp_path / "four"), *ranks.rewrite(1, run, tmp_path / "single")])
    assert (newest(run) / "shards").is_dir() and not (tmp_path / "single" / "step_2" / "shards").exists()
    assert_same_state(newest(run), tmp_path / "four" / "step_2")
    assert_same_state(newest(run), tmp_path / "single" / "step_2")
    # A run whose every step was done has nothing left but to say so.
    assert ranks.several(2, (again,), (done,)) == [[0, 0]] * 2
    assert_same_state(newest(whole), newest(again))
    assert result(done)["val_loss"] == result(whole)["val_loss"]
    assert not any([*ranks(1, run, extend={"steps": 4}), *ranks(4, run, extend={"steps": 6})])
    assert_same_curve(whole, run)
    exported = CliRunner().invoke(cli, ["export", str(run), str(tmp_path / "out"), "--json"])
    assert exported.exit_code == 0, exported.output
    assert_same_state(newest(run), tmp_path / "out" / "step_6")
    assert (tmp_path / "out" / "step_6" / "model.safetensors").is_file()
    assert main(["export", str(run), str(tmp_path / "out")]) == 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_dies_ends_the_run_by_name_at_a_checkpoint(ranks, corpus, tmp_path, lost):
    whole, run = tmp_path / "whole", tmp_path / "run"
    sections = values(corpus, checkpoint={"every": 4})
    endless = {**sections, "train": {**sections["train"], "steps": 1000}}
    codes = ranks(2, run, endless, rank=lost, step=5, signals=[signal.SIGKILL])
    assert codes[lost] == -signal.SIGKILL and codes[1 - lost] == 1
    assert "RankLost: a rank of 2 is gone" in (tmp_path / f"run.{1 - lost}.err").read_text()
    if lost == 1:
        assert result(run)["status"] == "failed" and "a rank of 2 is gone" in result(run)["error"]
    assert newest(run).name == "step_4"
    assert ranks.several(1, (whole, sections), (run, None, {"extend": {"steps": 6}})) == [[0]] * 2
    assert_same_curve(whole, run)


def test_ranks_of_different_runs_and_a_full_disk_are_told(ranks, corpus, tmp_path):
    other, full = tmp_path / "other", tmp_path / "full"
    codes = ranks.several(
        2,
        (other, values(corpus), {"own": {"optimizer": {"lr": 0.03}}}),
        (full, values(corpus, checkpoint={"every": 2}), {"room": 1 << 13}),
    )
    assert codes == [[1, 1]] * 2
    assert not other.exists()
    for rank in (0, 1):
        told = (tmp_path / f"other.{rank}.err").read_text()
        assert "rank 1 on" in told and "optimizer.lr is 0.03 there and 0.0003 on rank 0" in told
    assert "File too large" in result(full)["error"] and result(full)["status"] == "failed"
    assert not [*(full / "checkpoints").glob(".*.tmp")]


def test_a_rank_that_hangs_is_given_up(ranks, corpus, tmp_path):
    act = {"rank": 1, "step": 3, "signals": [signal.SIGSTOP], "timeout": 1.0, "patience": 0.1}
    codes = ranks(2, tmp_path / "run", values(corpus, train={"steps": 1000}), **act)
    assert codes == [1, -signal.SIGKILL], "the harness ends the stopped rank, as torchrun does"
    assert "did not answer within 1 s" in result(tmp_path / "run")["error"]


def test_signals_and_divergence_end_all_ranks_at_one_step(ranks, corpus, tmp_path):
    hot = {"model": {"name": "e1"}, "optimizer": {"name": "adamw", "lr": 100.0}, "train": {"clip": 0.0, "steps": 40}}
    asked = {"rank": 1, "step": 3, "signals": [signal.SIGTERM, signal.SIGTERM]}  # by torchrun, and whom it asked for
    jobs = [
        (tmp_path / "stopped", values(corpus, train={"steps": 1000}), asked),
        (tmp_path / "ddp", values(corpus, **hot)),
        (tmp_path / "fsdp", values(corpus, **hot, parallel=FSDP)),
        (tmp_path / "spoilt", values(corpus, parallel=FSDP), {"rank": 1, "step": 3, "poison": True}),
    ]
    assert ranks.several(2, *jobs) == [[130, 130], [1, 1], [1, 1], [1, 1]]
    found = result(tmp_path / "stopped")
    assert (
        found["status"] == "interrupted" and newest(tmp_path / "stopped").name == f"step_{found['steps']}" == "step_3"
    )
    for name, told in (("ddp", ""), ("fsdp", ""), ("spoilt", "first not finite: parameter embedding.weight")):
        texts = [(tmp_path / f"{name}.{rank}.err").read_text().strip().splitlines()[-1] for rank in range(2)]
        assert texts[0] == texts[1] and "Diverged: step" in texts[0] and told in texts[0]
        assert result(tmp_path / name)["status"] == "diverged"


def test_a_captured_step_sends_gradients_too(ranks, corpus, tmp_path):
    sections = values(corpus, optimizer={"name": "adamw", "warmup_steps": 2}, train={"steps": 15, "grad_accum": 2})
    assert ranks(1, tmp_path / "one", sections) == [0]
    jobs = [
        (tmp_path / "two", sections, {"graph": True}),
        (tmp_path / "cut", {**sections, "parallel": FSDP}, {"graph": True}),
        (tmp_path / "failed", sections, {"graph": True, "spoilt": 1}),
    ]
    assert ranks.several(2, *jobs) == [[0, 0]] * 3
    assert result(tmp_path / "two")["graph"] == {"used": True, "reason": None}
    assert "FSDP2 allocates and frees" in result(tmp_path / "cut")["graph"]["reason"]
    assert "rank 1: the capture failed: RuntimeError: planted" in result(tmp_path / "failed")["graph"]["reason"]
    for name in ("two", "cut", "failed"):
        assert_same_curve(tmp_path / "one", tmp_path / name, ("loss", "grad_norm"))


def test_ranks_that_make_the_same_update_make_it_by_the_same_product(ranks, tmp_path):
    assert ranks.choose_products(2, tmp_path / "chosen") == [0, 0]
    found = [(tmp_path / f"chosen.{rank}").read_text() for rank in range(2)]
    assert found[0] == found[1] and "rank 1: slower on rank 1" in found[0]


def test_objectives_and_the_loader_are_shared_out(ranks, corpus, tmp_path):
    """What one process does with its whole batch: heads further ahead, filtered positions, batches read by threads."""
    ahead = {"use_mtp": True, "mtp_n_tokens": 3, "mtp_variant": "sequential"}
    kept = {"use_collider": True, "collider_min_dim": 0, "collider_start_step": 2, "collider_scorer": "random"}
    both = {
        "train": {"carry_state": True, "grad_accum": 2, "checkpoint_every": 1, "on_nonfinite": "rollback", "steps": 4},
        "objective": {**ahead, **kept, "label_smoothing": 0.1, "entropy_weight": 0.01},
        "loader": {"workers": 2},
    }
    assert ranks(1, tmp_path / "one", values(corpus, **both)) == [0]
    jobs = [(tmp_path / mode, values(corpus, **both, parallel={"mode": mode})) for mode in ("ddp", "fsdp")]
    assert ranks.several(2, *jobs) == [[0, 0]] * 2
    for mode in ("ddp", "fsdp"):
        assert_same_curve(tmp_path / "one", tmp_path / mode, ("loss", "grad_norm", "mtp_total", "collider_kept_ce"))
