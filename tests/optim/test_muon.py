"""Muon against torch's own, its orthogonalisation, its scaling, and AdamW for the rest against torch's."""

import pytest
import torch
from rnn_lab.config import ModelSection, OptimizerSection
from rnn_lab.errors import ConfigError
from rnn_lab.modelspec import model_spec
from rnn_lab.optim import gram
from rnn_lab.optim.factories import muon
from rnn_lab.optim.muon import MuonRule
from rnn_lab.optim.newton_schulz import POLAR_EXPRESS, flops, orthogonalise
from rnn_lab.registry import registry
from rnn_lab.train.optimizers import GatedOptimizer, current_lr
from torch import nn

from .small import gradients, made, small, train

HIDDEN = ("up.weight", "down.weight", "square.weight")


def singular_values(kind, steps=5, dtype=None):
    u = torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(0))
    return torch.linalg.svdvals(orthogonalise(u, steps, kind, dtype).float())


def test_singular_values_come_near_one():
    s = singular_values("ns")
    assert s.max() < 1.25 and s.median() > 0.65
    s = singular_values("polar_express")
    assert s.max() < 1.2 and s.min() > 0.8
    assert singular_values("ns", dtype=torch.bfloat16).max() < 1.3


def test_polar_express_begins_at_a_norm_of_just_below_one():
    u = torch.randn(1, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    U, s, V = torch.linalg.svd(u, full_matrices=False)
    x = s / (1.01 * s.norm() + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        x = a * x + b * x**3 + c * x**5
    torch.testing.assert_close(orthogonalise(u, 5, "polar_express"), (U * x) @ V, rtol=0, atol=1e-10)


def test_tall_is_wide_transposed_and_zeros_stay_zeros():
    u = torch.randn(2, 12, 7, dtype=torch.float64)
    torch.testing.assert_close(orthogonalise(u.mT.contiguous()), orthogonalise(u).mT, rtol=1e-12, atol=1e-12)
    for kind in ("ns", "polar_express"):
        assert not orthogonalise(torch.zeros(1, 4, 6), 5, kind).any()


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_it_steps_as_torchs_muon_and_adamw(scale, monkeypatch):
    # torch's has its products in bf16 everywhere; ours follows it for once.
    monkeypatch.setattr(MuonRule, "direction", lambda rule, u: orthogonalise(u, rule.steps, "ns", torch.bfloat16))
    model, ours = made("muon", muon_scale=scale)
    other = small()
    parameters = dict(other.named_parameters())
    matrices = [p for name, p in parameters.items() if name.endswith(HIDDEN)]
    rest = [p for name, p in parameters.items() if not name.endswith(HIDDEN)]
    theirs = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn=scale)
    aux = torch.optim.AdamW(rest, lr=3e-4, weight_decay=0.1)
    for step in range(6):
        gradients(model, step)
        gradients(other, step)
        ours.step()
        theirs.step()
        aux.step()
    for name, p in model.named_parameters():
        matrix = name.endswith(HIDDEN)
        torch.testing.assert_close(p, parameters[name], rtol=0, atol=4e-3 if matrix else 1e-6, msg=name)


def test_the_definition_in_fp64():
    model, optimizer = made("muon", torch.float64)
    weight = model.layers[0].up.weight
    W, m = weight.detach().clone(), torch.zeros_like(weight)
    for step in range(4):
        gradients(model, step)
        g = weight.grad.clone()
        m = 0.95 * m + 0.05 * g
        direction = orthogonalise((0.05 * g + 0.95 * m).unsqueeze(0)).squeeze(0)
        W = (1 - 0.02 * 0.1) * W - 0.02 * (24 / 16) ** 0.5 * direction
        optimizer.step()
    torch.testing.assert_close(weight.detach(), W, rtol=1e-12, atol=1e-12)


def test_heads_are_orthogonalised_one_by_one_where_asked():
    spec = model_spec(ModelSection(name="e3", fields={"dim": 16, "form": "low_rank", "rank": 4}, depth=1), registry())
    for heads in (False, True):
        model = spec.build()
        U = model.layers[0].U
        optimizer = muon(model, OptimizerSection(lr=0.02, weight_decay=0.0, muon_heads=heads))
        before = U.detach().clone()
        train(model, optimizer, [0])
        moved = (before - U.detach()) / 0.02
        if heads:
            factor = max(1.0, U.shape[1] / U.shape[2]) ** 0.5
            torch.testing.assert_close(moved, factor * orthogonalise(U.grad), rtol=1e-3, atol=1e-4)
        else:
            assert moved.abs().max() < 0.02, "AdamW's steps are no longer than its rate"


def test_rate_warm_up_and_schedule():
    model, optimizer = made("muon", warmup_steps=4)
    seen = []
    for step, factor in enumerate([None, 1.0, 1.0, 0.5, 0.25]):
        optimizer.lr_factor = None if factor is None else torch.tensor(factor, dtype=torch.float64)
        train(model, optimizer, [step])
        seen.append(current_lr(optimizer))
    assert seen == pytest.approx([0.005, 0.01, 0.015, 0.01, 0.005])
    assert optimizer.lr_now.item() == pytest.approx(0.005)


@pytest.mark.parametrize("settings", [{}, {"bits": 8}, {"bits": 8, "quant": "dynamic"}, {"bits": 8, "aux_8bit": True}])
def test_a_skipped_step_touches_nothing(settings):
    model, optimizer = made("muon", sizes={"dim": 64, "wide": 96, "vocab": 64}, **settings)
    assert isinstance(optimizer, GatedOptimizer)
    train(model, optimizer, range(3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state, lr = optimizer.state_dict(), optimizer.lr_now.item()
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    optimizer.gated_step(torch.tensor(torch.nan), torch.ones(()))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    after = optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"] and optimizer.lr_now.item() == lr
    for index, entries in state["state"].items():
        assert all(torch.equal(after["state"][index][name], t) for name, t in entries.items())
    train(model, optimizer, [3])
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_skipped_first_step_leaves_a_fresh_optimizer():
    one, two = made("muon", bits=8, aux_8bit=True), made("muon", bits=8, aux_8bit=True)
    gradients(one[0], 0)
    one[1].gated_step(torch.tensor(torch.inf), torch.ones(()))
    for side in (one, two):
        train(*side, range(2))
    assert all(torch.equal(p, q) for p, q in zip(one[0].parameters(), two[0].parameters(), strict=True))


def test_clipping_reweights_the_momentum_only():
    (one, first), (two, second) = made("muon"), made("muon")
    for step in range(3):
        gradients(one, step)
        gradients(two, step)
        first.gated_step(torch.tensor(0.5), torch.zeros(()))
        for p in two.parameters():
            p.grad.mul_(0.5)
        second.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_parameters_without_a_gradient_stay():
    model, optimizer = made("muon")
    model.layers[1].up.weight.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients(model, 0)
    model.layers[1].up.weight.grad = model.embedding.weight.grad = None
    optimizer.step()
    for name in ("layers.1.up.weight", "embedding.weight"):
        assert torch.equal(dict(model.named_parameters())[name], before[name])
    assert not torch.equal(model.layers[0].up.weight, before["layers.0.up.weight"])


def test_only_what_may_be_replayed_is_gated():
    assert isinstance(made("muon8bit", aux_8bit=True)[1], GatedOptimizer)
    assert not isinstance(made("galore_muon", galore_force=True)[1], GatedOptimizer)


def test_a_model_without_matrices_is_refused():
    with pytest.raises(ConfigError, match="no matrices"):
        muon(nn.Linear(3, 3), OptimizerSection(name="muon"))


def test_a_cpu_leaves_symmetric_products_to_the_library_and_says_why():
    X = torch.randn(1, 4, 6)
    assert gram.product(X) is gram.library and gram.choices() == []
    assert dict(gram._chosen[X.shape, X.dtype, X.device][1].refused) == {"triton": "products are in float32"}
    assert flops(64, 64) == 30 * 64**3 and flops(64, 128) == 5 * (4 * 64 * 64 * 128 + 2 * 64**3)
