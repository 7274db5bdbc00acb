"""Updates within backward: the same steps, one gradient at a time, and what cannot go with it."""

import pytest
import torch
from rnn_lab.errors import ConfigError, Diverged
from rnn_lab.optim.quantise import Blockwise

from tests.optim.small import gradients, made

from .conftest import Recorder, resume, run
from .test_diverged import poison
from .test_resume import assert_same_run, facts

LAYERWISE = {"galore_layerwise": True, "galore_force": True}


@pytest.mark.parametrize("kind", ["galore_muon", "galore_adamw"])
def test_it_is_the_same_optimizer(kind):
    """At full rank nothing depends on what is drawn, so that steps are those of the whole batch."""
    results = []
    for layerwise in (False, True):
        model, optimizer = made(kind, torch.float64, galore_force=True, galore_rank=64, galore_layerwise=layerwise)
        for step in range(1, 6):
            gradients(model, step)
            given = [p.grad for p in model.parameters()]
            if layerwise:
                for p in model.parameters():
                    p.grad = None
                optimizer.begin()
                sum((p * g).sum() for p, g in zip(model.parameters(), given, strict=True)).backward()
                norm, sound = optimizer.end()
                assert sound and all(p.grad is None for p in model.parameters())
                assert norm.item() == pytest.approx(torch.nn.utils.get_total_norm(given).item())
            else:
                optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def plan(tiny, steps=6, **train):
    return tiny(
        train={"steps": steps, "clip": 0, **train}, checkpoint={"every": 3, "keep": 9},
        optimizer={"name": "galore_muon", "bits": 8, "aux_8bit": True, "galore_update_freq": 2, **LAYERWISE},
    )  # fmt: skip


def test_a_run_trains_resumes_and_is_not_captured(tiny, tmp_path):
    whole = run(plan(tiny), tmp_path / "whole")
    run(plan(tiny, 3), tmp_path / "parts")
    resume(tmp_path / "parts", steps=6)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 6)
    assert whole["optimizer_state"]["bytes"] == whole["optimizer_state"]["predicted_bytes"]
    assert facts(tmp_path / "whole")[5]["grad_norm"] > 0


def test_it_refuses_what_needs_all_gradients(tiny):
    for train in ({"clip": 1.0}, {"grad_accum": 2}):
        with pytest.raises(ConfigError, match=r"train\.clip = 0 and train\.grad_accum = 1"):
            plan(tiny, **train)
    with pytest.raises(ConfigError, match="on_nonfinite = stop"):
        plan(tiny, on_nonfinite="rollback")
    with pytest.raises(ConfigError, match="of galore_muon and galore_adamw, not of muon"):
        made("muon", galore_layerwise=True)


def test_a_gradient_that_is_not_finite_ends_the_run(tiny, tmp_path, monkeypatch):
    poison(monkeypatch, "layers.0.value.weight:grad", 4, float("inf"))
    with pytest.raises(Diverged, match=r"step 4: .*gradient of layers\.0\.value\.weight\."):
        run(plan(tiny), tmp_path / "r", Recorder())


def test_stochastic_rounding_is_right_on_average():
    codec = Blockwise(64, "linear", stochastic=True)
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = torch.stack([codec.decode(*codec.encode(x), x.shape) for _ in range(2000)])
    step = x.abs().max() / 127
    assert (found - x).abs().max() <= step * 1.0001
    assert (found.mean(0) - x).abs().max() < 0.06 * step  # five standard errors of at most half a step
    nearest = Blockwise(64).decode(*Blockwise(64).encode(x), x.shape)
    assert (nearest - x).abs().max() > 0.3 * step
    codes, scale = codec.encode(torch.randn(1, 6400))
    wide = torch.randn(1, 6400)
    codes, scale = codec.encode(wide)
    error = (codec.decode(codes, scale, wide.shape) - wide).norm() / wide.norm()
    assert codec.relative_error(codes, scale).item() == pytest.approx(error.item(), rel=0.05)
    with pytest.raises(ConfigError, match="quant = linear"):
        made("muon8bit", stochastic_rounding=True, quant="dynamic")
