"""What the E3 suite adds, on a GPU: roll-backs of captured steps, figures read behind them, products by halves."""

import json

import pytest
import torch
from rnn_lab.data.batches import ContiguousStreams
from rnn_lab.data.corpus import open_split
from rnn_lab.optim import gram
from rnn_lab.optim.newton_schulz import orthogonalise
from rnn_lab.tensors import relative_error
from rnn_lab.train import run as runs
from rnn_lab.train.metrics import read_metrics

from tests.gpu.test_graph import make, start  # noqa: F401

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
ROLLBACK = {"on_nonfinite": "rollback", "carry_state": True}


def test_three_captured_steps_that_are_not_finite_are_rolled_back(make, tmp_path, monkeypatch):  # noqa: F811
    """Spoiled by their bytes, so that the repeated ones are too: back once, then the end."""
    made = make(optimizer={"name": "adamw", "warmup_steps": 0}, sections={"checkpoint": {"every": 5}}, **ROLLBACK)
    split = open_split(made.resolved.config.data.path, seq_len=32)
    bad = [ContiguousStreams(split.train, 42, 8, 32).batch(k).bytes_BT1[:, :-1] for k in (11, 12, 13)]
    tokens = torch.stack([torch.from_numpy(b) for b in bad]).long().cuda()
    real, left = runs.build, torch.full((), 3.0, device="cuda")

    def build(plan, found):
        model, optimizer = real(plan, found)

        def spoil(module, args, out):
            if args[0].shape != tokens.shape[1:]:  # validation
                return out
            hit = (args[0].long()[None] == tokens).flatten(1).all(1).any() & (left > 0)
            left.sub_(hit.float())
            return out * torch.where(hit, torch.nan, 1.0)

        model.embedding.register_forward_hook(spoil)
        return model, optimizer

    monkeypatch.setattr(runs, "build", build)
    result = start(made, tmp_path / "r")
    assert result["status"] == "ok" and result["graph"]["used"] is True
    (row,) = result["rollbacks"]
    assert (row["at"], row["to"]) == (13, 10)
    lines = list(read_metrics(tmp_path / "r" / "metrics.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, 21)) and not any(line.get("skipped") for line in lines)
    assert lines[9]["lr"] == pytest.approx(3e-3) and lines[10]["lr"] == pytest.approx(1.5e-3)


@pytest.mark.parametrize("optimizer", [{"name": "schedulefree"}, {"name": "muon8bit", "warmup_steps": 0}])
def test_figures_that_wait_leave_the_run_as_it_is(make, tmp_path, optimizer):  # noqa: F811
    losses = []
    for every in (3, 100):
        result = start(make(optimizer=optimizer, sections={"diagnostics": {"every": every}}), tmp_path / str(every))
        lines = list(read_metrics(tmp_path / str(every) / "metrics.jsonl"))
        losses.append([line["loss"] for line in lines])
        assert result["graph"]["used"] is True
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    found = [json.loads(line) for line in (tmp_path / "3" / "metrics.jsonl").read_text().splitlines()][5]
    assert found["param_norm"] > 0 and found["update_rms"] > 0 and found["memory_reserved_bytes"] > 0


def test_galore_updates_within_backward(make, tmp_path):  # noqa: F811
    settings = {"name": "galore_muon", "bits": 8, "galore_force": True, "galore_layerwise": True, "lr": 0.02}
    result = start(make("auto", optimizer=settings, clip=0), tmp_path / "r")
    assert result["status"] == "ok" and result["graph"]["used"] is False
    assert result["optimizer_state"]["bytes"] == result["optimizer_state"]["predicted_bytes"]


@pytest.mark.parametrize("shape", [(8, 800, 800), (4, 1536, 1536), (4, 800, 1600)])
def test_half_of_the_symmetric_products_is_right_and_timed(shape, capsys):
    torch.manual_seed(0)
    u = torch.randn(shape, device="cuda")
    found = orthogonalise(u)
    (choice,) = [made[1] for key, made in gram._chosen.items() if key[0] == u.shape]
    with capsys.disabled():
        print(f"\n{shape}: {choice}")
    wide = u.double()
    wide = wide / wide.norm(dim=(1, 2), keepdim=True)
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * 5:
        A = wide @ wide.mT
        wide = a * wide + (b * A + c * A @ A) @ wide
    assert relative_error(found, wide) < 0.05
