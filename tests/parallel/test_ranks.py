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

TOLERANCE = {"loss": 1e-5, "param_norm": 1e-5, "grad_norm": 1e-4, "update_rms": 1e-4}
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
            close = name not in x or math.isclose(x[name], y[name], rel_tol=TOLERANCE[name])
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
    for size, mode, accum in ((1, "ddp", 2), (2, "ddp", 2), (4, "ddp", 1), (2, "fsdp", 2)):
        train = {**STATEFUL["train"], "grad_accum": accum}
        sections = values(corpus, **{**STATEFUL, "train": train}, parallel={"mode": mode})
        assert not any(ranks(size, tmp_path / f"{mode}{size}", sections))
    for name in ("ddp2", "ddp4", "fsdp2"):
        assert_same_curve(tmp_path / "ddp1", tmp_path / name)
    for line, other in zip(lines(tmp_path / "ddp2"), lines(tmp_path / "fsdp2"), strict=True):
        assert math.isclose(line["loss"], other["loss"], rel_tol=1e-6)
    found = result(tmp_path / "fsdp2")
    assert found["parallel"]["ranks"] == len(found["parallel"]["peak_memory_bytes"]) == 2
    assert found["optimizer_state"]["bytes"] <= 0.55 * found["optimizer_state"]["predicted_bytes"]
    assert sum(path.name.startswith("metrics") for path in (tmp_path / "ddp2").iterdir()) == 1


@pytest.mark.parametrize("sections", [MUON, GALORE], ids=["8-bit-muon", "galore"])
def test_optimizers_of_matrices_have_owners_under_fsdp(ranks, corpus, tmp_path, sections):
    assert ranks(1, tmp_path / "one", values(corpus, **sections)) == [0]
    assert ranks(2, tmp_path / "two", values(corpus, **sections, parallel=FSDP)) == [0, 0]
    assert_same_curve(tmp_path / "one", tmp_path / "two", ("loss", "grad_norm"))
    whole, own = (result(tmp_path / name)["optimizer_state"]["bytes"] for name in ("one", "two"))
    assert own < 0.85 * whole


def test_a_run_goes_on_with_another_number_of_ranks(ranks, corpus, tmp_path):
    train = {**STATEFUL["train"], "grad_accum": 1}
    sections = values(corpus, **{**STATEFUL, "train": train}, checkpoint={"every": 2, "keep": 9}, parallel=FSDP)
    whole, run, again = tmp_path / "whole", tmp_path / "run", tmp_path / "again"
    assert not any(ranks(2, whole, sections))
    for copy in (run, again):
        shutil.copytree(whole, copy)
        for step, path in list_checkpoints(copy / "checkpoints"):
            if step > 2:
                shutil.rmtree(path)
        (copy / "result.json").unlink()
    # To the last bit: two ranks' checkpoint written again by four and by one, and two that go on as they were.
    assert not any([*ranks.rewrite(4, run, tmp_path / "four"), *ranks.rewrite(1, run, tmp_path / "single")])
    assert (newest(run) / "shards").is_dir() and not (tmp_path / "single" / "step_2" / "shards").exists()
    assert_same_state(newest(run), tmp_path / "four" / "step_2")
    assert_same_state(newest(run), tmp_path / "single" / "step_2")
    assert not any(ranks(2, again))
    assert_same_state(newest(whole), newest(again))
    assert not any([*ranks(1, run, extend={"steps": 4}), *ranks(4, run, extend={"steps": 6})])
    assert_same_curve(whole, run)
    done = CliRunner().invoke(cli, ["export", str(run), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert_same_state(newest(run), tmp_path / "out" / "step_6")
    assert (tmp_path / "out" / "step_6" / "model.safetensors").is_file()
    assert main(["export", str(run), str(tmp_path / "out")]) == 2


def test_owners_state_is_exact_at_any_number_of_ranks(ranks, corpus, tmp_path):
    run = tmp_path / "run"
    assert not any(ranks(2, run, values(corpus, **MUON, parallel=FSDP, train={"steps": 3})))
    assert not any(ranks.rewrite(4, run, tmp_path / "four"))
    assert_same_state(newest(run), tmp_path / "four" / "step_3")
    assert ranks(1, tmp_path / "one", values(corpus, **MUON)) == [0]
    assert ranks(2, run, extend={"steps": 6}) == [0, 0]
    assert_same_curve(tmp_path / "one", run, ("loss", "grad_norm"))


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_dies_ends_the_run_by_name_at_a_checkpoint(ranks, corpus, tmp_path, lost):
    whole, run = tmp_path / "whole", tmp_path / "run"
    sections = values(corpus, checkpoint={"every": 4})
    assert ranks(1, whole, sections) == [0]
    act = {"rank": lost, "step": 5, "signal": signal.SIGKILL}
    codes = ranks(2, run, {**sections, "train": {**sections["train"], "steps": 1000}}, act=act)
    assert codes[lost] == -signal.SIGKILL and codes[1 - lost] == 1
    assert "RankLost: a rank of 2 is gone" in (tmp_path / f"run.{1 - lost}.err").read_text()
    if lost == 1:
        assert result(run)["status"] == "failed" and "a rank of 2 is gone" in result(run)["error"]
    assert newest(run).name == "step_4"
    assert ranks(1, run, extend={"steps": 6}) == [0]
    assert_same_curve(whole, run)


def test_a_rank_that_hangs_is_given_up(ranks, corpus, tmp_path):
    act = {"rank": 1, "step": 3, "signal": signal.SIGSTOP, "timeout": 1.0, "patience": 3}
    codes = ranks(2, tmp_path / "run", values(corpus, train={"steps": 1000}), act=act)
    assert codes == [1, -signal.SIGKILL], "the harness ends the stopped rank, as torchrun does"
    assert "did not answer within 1 s" in result(tmp_path / "run")["error"]


def test_a_signal_to_any_rank_stops_all_at_one_step(ranks, corpus, tmp_path):
    act = {"rank": 1, "step": 3, "signal": signal.SIGTERM}
    assert ranks(2, tmp_path / "run", values(corpus, train={"steps": 1000}), act=act) == [130, 130]
    found = result(tmp_path / "run")
    assert found["status"] == "interrupted" and newest(tmp_path / "run").name == f"step_{found['steps']}" == "step_3"


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_divergence_is_seen_by_all_ranks_at_once(ranks, corpus, tmp_path, mode):
    hot = {"model": {"name": "e1"}, "optimizer": {"name": "adamw", "lr": 100.0}, "parallel": {"mode": mode}}
    codes = ranks(2, tmp_path / "run", values(corpus, **hot, train={"clip": 0.0, "steps": 40}))
    texts = [(tmp_path / f"run.{rank}.err").read_text().strip().splitlines()[-1] for rank in range(2)]
    assert codes == [1, 1] and texts[0] == texts[1] and "Diverged: step" in texts[0]
    assert result(tmp_path / "run")["status"] == "diverged"


def test_a_captured_step_sends_gradients_too(ranks, corpus, tmp_path):
    sections = values(corpus, optimizer={"name": "adamw", "warmup_steps": 2}, train={"steps": 15, "grad_accum": 2})
    assert ranks(1, tmp_path / "one", sections) == [0]
    assert ranks(2, tmp_path / "two", sections, act={"graph": True}) == [0, 0]
    assert ranks(2, tmp_path / "cut", {**sections, "parallel": FSDP}, act={"graph": True}) == [0, 0]
    assert result(tmp_path / "two")["graph"] == {"used": True, "reason": None}
    assert "FSDP2 allocates and frees" in result(tmp_path / "cut")["graph"]["reason"]
    assert_same_curve(tmp_path / "one", tmp_path / "two", ("loss", "grad_norm"))
    assert_same_curve(tmp_path / "one", tmp_path / "cut", ("loss", "grad_norm"))
