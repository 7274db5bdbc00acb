"""`fit --gpus N` as a person runs it, and what sharing costs by its shapes."""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rnn_lab.config import Layer, ModelSection, OptimizerSection, resolve
from rnn_lab.data.corpus import open_split
from rnn_lab.errors import ConfigError, RankLost
from rnn_lab.modelspec import model_spec
from rnn_lab.parallel.costs import BUCKET, Costs, costs
from rnn_lab.parallel.launch import Machines, judged
from rnn_lab.parallel.sharded import owners
from rnn_lab.parallel.sharing import Sharing
from rnn_lab.parallel.world import Ranks, World, check_gpus, launched
from rnn_lab.registry import registry
from rnn_lab.train.evaluate import evaluate
from rnn_lab.train.setup import check_ranks
from rnn_lab_cli.main import main

FIT = [
    *("--model", "e61", "--dim", "16", "--depth", "1", "--batch-size", "4", "--seq-len", "16", "--device", "cpu"),
    *("-o", "eval.tokens=64", "--quiet"),
]


def rank_pid(parent: int, rank: int) -> int:
    """The process below `parent` that is this rank."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = [c for c in children if f"\0RANK={rank}\0".encode() in Path(f"/proc/{c}/environ").read_bytes()]
    return int(found)


def started(run, *options):
    """A run on two ranks without an end, when it has written checkpoints; old ones go."""
    command = [sys.executable, "-m", "rnn_lab_cli", "fit", *FIT, "--steps", "100000", "--gpus", "2", *options]
    child = subprocess.Popen(
        [*command, "--checkpoint-every", "2", "--out", str(run)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while (
        not any(int(p.name[5:]) >= 4 for p in run.glob("checkpoints/step_*"))
        and time.monotonic() < until
        and child.poll() is None
    ):
        time.sleep(0.05)
    return child


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds ranks in /proc")
def test_ranks_whose_launcher_was_killed_end_in_order(tmp_path):
    run = tmp_path / "run"
    child = started(run)
    ranks = [Path(f"/proc/{rank_pid(child.pid, rank)}") for rank in (0, 1)]
    child.kill()
    child.communicate(timeout=90)
    until = time.monotonic() + 60
    while any(rank.exists() for rank in ranks) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(rank.exists() for rank in ranks)
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "interrupted" and (run / "checkpoints" / f"step_{result['steps']}").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds ranks in /proc")
def test_a_killed_rank_is_named_and_the_run_goes_on_alone(tmp_path):
    run = tmp_path / "run"
    child = started(run)
    os.kill(rank_pid(child.pid, 1), signal.SIGKILL)
    out, err = child.communicate(timeout=90)
    assert child.returncode == 1, (out, err)
    assert f"rank 1 of 2 was ended by SIGKILL; go on with: rnn-lab resume {run}" in err
    assert "a rank of 2 is gone" in json.loads((run / "result.json").read_text())["error"]
    steps = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] + 2
    assert main(["resume", str(run), "--steps", str(steps), "--quiet"]) == 0
    assert json.loads((run / "result.json").read_text())["steps"] == steps


def test_a_rank_that_failed_by_itself_is_the_reason():
    """Torchrun ends the others by SIGTERM; any other signal, or that one alone, comes from elsewhere."""
    assert judged({0: 2, 1: -signal.SIGTERM}, 2) == judged({1: 2, 0: -signal.SIGTERM}, 2) == 2
    for failures in ({0: 1, 1: -signal.SIGKILL}, {1: -signal.SIGTERM}):
        with pytest.raises(RankLost, match=r"rank 1 of 2 was ended by SIG(KILL|TERM)"):
            judged(failures, 2)


@pytest.mark.slow
def test_what_only_ranks_find_out_is_told_once_with_its_own_code(tmp_path):
    """And nothing is offered to go on with: there is no folder."""
    command = [sys.executable, "-m", "rnn_lab_cli", "fit", *FIT, "--steps", "3", "--gpus", "2"]
    lost = tmp_path / "lost.txt"
    done = subprocess.run(
        [*command, "--data", str(lost), "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1 and f"{lost} does not exist" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--gpus 3", "need a multiple of 3"),
        (
            "--gpus 2 -o optimizer.name=galore_adamw -o optimizer.galore_layerwise=true -o train.clip=0",
            "before its gradient is averaged",
        ),
        ("--gpus 2 --nodes 2", "say where they meet with --rdzv-endpoint"),
        ("--nodes 2", "--nodes needs --gpus"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_before_anything_starts(tmp_path, capsys, options, told):
    assert main(["fit", *FIT, "--out", str(tmp_path / "run"), *options.split()]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_graph_and_cut_parameters_exclude_each_other_on_several_gpus():
    cfg = resolve(
        [Layer("test", {"model": {"name": "e61"}, "train": {"graph": "on"}, "parallel": {"mode": "fsdp"}})]
    ).config
    check_ranks(cfg, 1)
    with pytest.raises(ConfigError, match=r"train\.graph = on and parallel\.mode = fsdp"):
        check_ranks(cfg, 2)


def test_whoever_validates_or_leaves_is_watched_and_not_given_up_early(tmp_path, monkeypatch):
    (tmp_path / "bytes").write_bytes(bytes(range(256)) * 2)
    val = open_split(str(tmp_path / "bytes"), seq_len=16).val
    model = model_spec(ModelSection(name="e61", depth=1, fields={"dim": 16}), registry()).build()
    sharing, ticks = Sharing(model), []
    monkeypatch.setattr(sharing.world, "tick", lambda: ticks.append(1))
    evaluate(model, val, seq_len=16, batch_size=1, tokens=32, dtype=torch.float32, sharing=sharing)
    assert len(ticks) == 2, "one for each batch"
    told, world = [], World.__new__(Ranks)
    world.timeout = 2.0
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **options: told.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: told.append("off"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: told.append("leave"))
    world.close()
    assert told == [3.0, "leave", "off"]


def test_torchruns_options_are_passed_on():
    assert Machines(2, 1, {}).options()[:3] == ["--standalone", "--nproc-per-node", "2"]
    found = Machines(8, 2, {"rdzv-endpoint": "a:1", "node-rank": "1"}).options()
    assert {"--rdzv-endpoint=a:1", "--node-rank=1", "--rdzv-backend=c10d", "--rdzv-id=rnn-lab"} <= set(found)
    with pytest.raises(ConfigError, match="rdzv-endpoint"):
        Machines(8, 2, {}).options()
    with pytest.raises(ConfigError, match="is one device"):
        check_gpus("cuda:0", 2)
    assert launched({}) is None and launched({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}) == 4


def test_slices_of_the_batch_cover_it_once():
    rows = []
    for rank in range(4):
        world = World.__new__(Ranks)
        world.rank, world.size = rank, 4
        rows += range(*world.rows(12).indices(12))
    assert rows == list(range(12)) and World().rows(12) == slice(0, 12)


def test_owners_hold_equal_shares():
    sizes = [100, 60, 50, 40, 30, 20, 1, 1]
    found = owners(sizes, 3)
    held = [sum(n for n, who in zip(sizes, found, strict=True) if who == rank) for rank in range(3)]
    assert sum(held) == sum(sizes) and max(held) <= 4 / 3 * sum(sizes) / 3, "the bound of this rule"


def meta_model(name="e61", **fields):
    with torch.device("meta"):
        return model_spec(ModelSection(name=name, depth=4, fields={"dim": 64, **fields}), registry()).build()


def test_bytes_sent_and_held_follow_from_the_shapes():
    model, adamw = meta_model(), OptimizerSection(name="schedulefree")
    n = sum(p.numel() for p in model.parameters())
    ddp, fsdp = (costs(model, adamw, mode, 4, grad_accum=2) for mode in ("ddp", "fsdp"))
    assert ddp.sent == {"all-reduce": 6 * n} and sum(fsdp.sent.values()) == 2 * 9 * n
    assert ddp.as_dict()["held_bytes"] == 16 * n
    block = sum(p.numel() for p in model.layers[0].parameters())
    assert fsdp.as_dict()["held_bytes"] == pytest.approx(4 * n + 20 * block, rel=0.02)
    muon = costs(model, OptimizerSection(name="muon"), "fsdp", 4)
    assert muon.sent["owners"] == round(8 * n * 3 / 16) and muon.held["owned"] == 2 * n
    assert "power iterations" in costs(meta_model("e1"), adamw, "fsdp", 2).sent
    assert "power iterations" not in fsdp.sent


def test_what_is_not_hidden_behind_computation_costs_time():
    ddp = Costs("ddp", 2, {"all-reduce": 4 * BUCKET}, {}, BUCKET)
    second = BUCKET  # bytes per second at which a bucket takes one
    assert ddp.exposed(100.0, second) == 1.0, "the last bucket has nothing left to hide behind"
    assert ddp.exposed(3.0, second) == 2.0, "two of its four seconds are behind backward"
    assert ddp.speedup(99.0, second) == pytest.approx(1.98)
    sent = {"all-gather, forward": BUCKET, "all-gather, backward": BUCKET, "reduce-scatter": BUCKET}
    assert Costs("fsdp", 2, sent, {}, BUCKET).exposed(30.0, second) == 0.0
    assert Costs("fsdp", 2, sent, {}, BUCKET).exposed(1.5, second) == pytest.approx(0.5 + 1.0)
