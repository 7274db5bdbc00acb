"""torch's fused AdamW with its rate on the device against the plain one, and checkpoints of either."""

import pytest
import torch
from rnn_lab.train.checkpoint import optimizer_tensors, restore_optimizer
from rnn_lab.train.clock import Clock
from rnn_lab.train.optimizers import FusedAdamW, GatedOptimizer, WarmupAdamW, current_lr
from torch import nn


def made(kind):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(3))]
    groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "weight_decay": 0.0}]
    return parameters, kind(groups, lr=1e-2, warmup_steps=6)


def train(sides, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        grads = [torch.randn(p.shape, generator=generator) for p in sides[0][0]]
        for parameters, optimizer in sides:
            for p, g in zip(parameters, grads, strict=True):
                p.grad = g.clone()
            optimizer.step()


def assert_equal(one, two):
    for p, q in zip(one[0], two[0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_it_steps_as_the_plain_one():
    plain, fused = made(WarmupAdamW), made(FusedAdamW)
    for step in range(12):
        train([plain, fused], [step])
        assert_equal(plain, fused)
        assert fused[1].lr_now.item() == pytest.approx(current_lr(plain[1]), rel=1e-12)
    assert isinstance(fused[1], GatedOptimizer) and not isinstance(plain[1], GatedOptimizer)


@pytest.mark.parametrize("kinds", [(WarmupAdamW, FusedAdamW), (FusedAdamW, WarmupAdamW), (FusedAdamW, FusedAdamW)])
def test_a_checkpoint_of_one_goes_on_with_the_other(kinds):
    before, after = made(kinds[0]), made(kinds[1])
    train([before], range(4))
    tensors, values = optimizer_tensors(before[1])
    restore_optimizer(after[1], {name: t.clone() for name, t in tensors.items()}, values)
    assert after[1].param_groups[0]["fused"] is made(kinds[1])[1].param_groups[0]["fused"]
    with torch.no_grad():
        for new, old in zip(after[0], before[0], strict=True):
            new.copy_(old)
    train([before, after], range(4, 9))
    assert_equal(before, after)
    one, two = optimizer_tensors(before[1]), optimizer_tensors(after[1])
    assert one[0].keys() == two[0].keys() and one[1]["groups"][0].keys() == two[1]["groups"][0].keys()


def test_a_skipped_step_touches_nothing():
    parameters, optimizer = made(FusedAdamW)
    train([(parameters, optimizer)], range(3))
    before = [p.detach().clone() for p in parameters]
    tensors = {name: t.clone() for name, t in optimizer_tensors(optimizer)[0].items()}
    for p in parameters:
        p.grad = torch.full_like(p, torch.nan)
    optimizer.gated_step(torch.tensor(torch.nan), torch.ones(()))
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))
    after, values = optimizer_tensors(optimizer)
    assert all(torch.equal(after[name], t) for name, t in tensors.items())
    assert values["groups"][0]["steps_taken"] == 3 and values["groups"][0]["lr"] == pytest.approx(0.5e-2)


def test_a_device_claims_no_more_time_than_there_was(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock()
    clock.switch("other")
    now[0] += 8
    clock.claim("train", 3)
    assert (clock.seconds()["other"], clock.train) == (5, 3)
    clock.claim("train", 99)
    assert (clock.seconds()["other"], clock.train) == (0, 8)
