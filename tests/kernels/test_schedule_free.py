"""Our schedule-free AdamW against schedulefree's, step by step, and through checkpoints of either."""

from copy import deepcopy

import pytest
import torch
from rnn_lab.config import OptimizerSection
from rnn_lab.train.checkpoint import optimizer_tensors, restore_optimizer
from rnn_lab.train.optimizers import schedule_free_adamw
from rnn_lab.train.schedule import follow, set_factor
from rnn_lab.train.schedule_free import FusedScheduleFree, refuses_fused
from schedulefree import AdamWScheduleFree
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(67, 123), (5,), (64, 64), (1,), (), (33, 2, 7)]
"""More than one chunk, whole chunks, tails, a scalar."""


def optimizers(*, decay="all", **kwargs):
    """Parameters and optimizer of the library, and the same of ours."""
    made = []
    for kind in (AdamWScheduleFree, FusedScheduleFree):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape, device=DEVICE)) for shape in SHAPES]
        groups = [{"params": parameters, "weight_decay": 0.1}]
        if decay == "matrices":
            matrices = [p for p in parameters if p.dim() >= 2]
            others = [p for p in parameters if p.dim() < 2]
            groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimizer = kind(groups, **{"lr": 3e-3, **kwargs})
        optimizer.train()
        made += [parameters, optimizer]
    return made


def give_gradients(step, *sides):
    generator = torch.Generator().manual_seed(step)
    for i, shape in enumerate(SHAPES):
        grad = torch.randn(shape, generator=generator).to(DEVICE) * 10 ** (i - 3)
        for parameters in sides:
            parameters[i].grad = grad.clone()


def assert_equal(theirs, ours, optimizer_theirs, optimizer_ours):
    for p, q in zip(theirs, ours, strict=True):
        torch.testing.assert_close(q, p, rtol=2e-6, atol=2e-7)
    one, two = optimizer_theirs.state_dict(), optimizer_ours.state_dict()
    for mine, other in zip(two["param_groups"], one["param_groups"], strict=True):
        assert mine.keys() == other.keys() and mine["params"] == other["params"]
        for name in ("k", "weight_sum", "lr_max", "scheduled_lr", "train_mode", "warmup_steps", "lr", "betas"):
            assert mine[name] == pytest.approx(other[name], rel=1e-12), name
    assert two["state"].keys() == one["state"].keys()
    for index, entries in one["state"].items():
        for name, tensor in entries.items():
            torch.testing.assert_close(
                two["state"][index][name], tensor, rtol=2e-5, atol=1e-12 if name != "z" else 1e-6
            )


CASES = [
    (50, {"decay": "matrices", "warmup_steps": 20, "betas": (0.95, 0.9)}),
    (11, {}),
    (11, {"betas": (0.5, 0.0), "eps": 1e-3}),
    (11, {"lr": 1e-170}),
]


@pytest.mark.parametrize(
    ("steps", "case"), CASES, ids=["groups-warmup", "plain", "no-second-moment", "weights-underflow"]
)
def test_every_step_is_the_librarys(steps, case):
    theirs, library, ours, fused = optimizers(**case)
    for step in range(steps):
        give_gradients(step, theirs, ours)
        kept = [q.grad.clone() for q in ours]
        library.step()
        fused.step()
        assert all(torch.equal(q.grad, g) for q, g in zip(ours, kept, strict=True)), "a gradient was overwritten"
        assert fused.lr_now.item() == pytest.approx(library.param_groups[0]["scheduled_lr"], rel=1e-12)
        if step in (0, 1, 7, steps - 1):
            assert_equal(theirs, ours, library, fused)
        if step % 10 == 9:
            for optimizer in (library, fused):
                optimizer.eval()
                optimizer.eval()
            for p, q in zip(theirs, ours, strict=True):
                torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)
            for optimizer in (library, fused):
                optimizer.train()


@pytest.mark.parametrize("forth", [True, False], ids=["theirs-to-ours", "ours-to-theirs"])
def test_a_checkpoint_of_one_goes_on_with_the_other(forth):
    case = {"decay": "matrices", "warmup_steps": 8}
    theirs, library, ours, fused = optimizers(**case)
    for step in range(6):
        give_gradients(step, theirs, ours)
        library.step()
        fused.step()
    tensors, values = optimizer_tensors(library if forth else fused)
    fresh = optimizers(**case)
    parameters, optimizer = fresh[2:] if forth else fresh[:2]
    restore_optimizer(optimizer, {name: t.clone() for name, t in tensors.items()}, values)
    with torch.no_grad():
        for new, old in zip(parameters, theirs if forth else ours, strict=True):
            new.copy_(old)
    for step in range(6, 15):
        give_gradients(step, theirs, ours, parameters)
        for each in (library, fused, optimizer):
            each.step()
    assert_equal(theirs, parameters, library, optimizer) if forth else assert_equal(parameters, ours, optimizer, fused)


def test_a_state_of_ours_goes_on_to_the_last_bit():
    whole, a, parts, b = optimizers(warmup_steps=3)
    del whole, a
    for step in range(5):
        give_gradients(step, parts)
        b.step()
    tensors, values = optimizer_tensors(b)
    _, _, again, c = optimizers(warmup_steps=3)
    restore_optimizer(c, {name: t.clone() for name, t in tensors.items()}, values)
    with torch.no_grad():
        for new, old in zip(again, parts, strict=True):
            new.copy_(old)
    for step in range(5, 9):
        give_gradients(step, parts, again)
        b.step()
        c.step()
    assert all(torch.equal(p, q) for p, q in zip(parts, again, strict=True))


def test_a_skipped_step_touches_nothing_and_the_clip_is_folded_in():
    theirs, library, ours, fused = optimizers(warmup_steps=3)
    scale = torch.tensor(0.25, device=DEVICE)
    for step in range(4):
        give_gradients(step, theirs, ours)
        for p in theirs:
            p.grad *= 0.25
        library.step()
        fused.gated_step(scale, torch.zeros((), device=DEVICE))
    assert_equal(theirs, ours, library, fused)
    before = [q.detach().clone() for q in ours]
    state = [t.clone() for q in ours for t in fused.state[q].values()]
    for q in ours:
        q.grad.fill_(torch.nan)
    fused.gated_step(torch.tensor(torch.nan, device=DEVICE), torch.ones((), device=DEVICE))
    assert all(torch.equal(p, q) for p, q in zip(before, ours, strict=True))
    assert all(
        torch.equal(t, u) for t, u in zip(state, (t for q in ours for t in fused.state[q].values()), strict=True)
    )
    assert fused.state_dict()["param_groups"][0]["k"] == 4


def test_a_run_may_be_slowed_down_for_a_while():
    """Ours by a scalar on the device, the library's by the rates of its groups; either resumes from the other."""
    theirs, library, ours, fused = optimizers(decay="matrices")
    factor = torch.ones((), dtype=torch.float64, device=DEVICE)
    assert follow(fused, factor) and not follow(library, factor)
    for step, value in enumerate((1.0, 0.5, 0.5, 1.0)):
        factor.fill_(value)
        set_factor(library, value)
        give_gradients(step, theirs, ours)
        library.step()
        fused.step()
        if step == 2:
            fused.load_state_dict(deepcopy(library.state_dict()))
    for p, q in zip(theirs, ours, strict=True):
        torch.testing.assert_close(q, p, rtol=2e-6, atol=2e-7)


def test_parameters_without_gradient_and_odd_addresses():
    theirs, library, ours, fused = optimizers()
    for step in range(3):
        give_gradients(step, theirs, ours)
        for parameters in (theirs, ours):
            parameters[1].grad = None
        storage = torch.empty(ours[2].numel() + 1, device=DEVICE)
        odd = storage[1:].view(SHAPES[2])
        odd.copy_(ours[2].grad)
        ours[2].grad = odd
        library.step()
        fused.step()
    assert odd.data_ptr() % 16 != 0 and fused.state_dict()["state"][1] == {}
    assert_equal(theirs, ours, library, fused)


def test_evaluation_weights_are_not_trained():
    _, _, ours, fused = optimizers()
    give_gradients(0, ours)
    fused.eval()
    with pytest.raises(RuntimeError, match=r"call train\(\)"):
        fused.step()


def test_the_implementation_follows_the_parameters():
    model = nn.Linear(4, 4).to(DEVICE)
    assert type(schedule_free_adamw(model, OptimizerSection())) is FusedScheduleFree
    assert type(schedule_free_adamw(model.double(), OptimizerSection())) is AdamWScheduleFree
    assert "not fp32" in refuses_fused(model.parameters())
    fused = FusedScheduleFree(nn.Linear(4, 4).to(DEVICE).parameters())
    saved = fused.state_dict()
    saved["param_groups"][0]["r"] = 0.5
    with pytest.raises(ValueError, match="r = 0"):
        fused.load_state_dict(saved)
