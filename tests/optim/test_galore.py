"""GaLore: its subspaces, its steps against Muon and against the definition, its state, its resume."""

import pytest
import torch
from rnn_lab.optim.newton_schulz import orthogonalise
from rnn_lab.optim.projector import energy, leading_vectors, saves
from rnn_lab.train.optimizers import current_lr

from .small import assert_equal, gradients, made, reloaded, train

FORCED = {"galore_force": True}


def decaying(m, n, power=0.5):
    U = torch.linalg.qr(torch.randn(m, m, generator=torch.Generator().manual_seed(1)))[0]
    V = torch.linalg.qr(torch.randn(n, m, generator=torch.Generator().manual_seed(2)))[0]
    return (U * torch.arange(1, m + 1) ** -power) @ V.T


def test_the_randomised_subspace_is_nearly_the_best():
    G = decaying(96, 128).unsqueeze(0)
    U = leading_vectors(G, 24, seed=0)
    torch.testing.assert_close(U.mT @ U, torch.eye(24).unsqueeze(0), rtol=0, atol=1e-5)
    best = energy(torch.linalg.svd(G)[0][..., :24], G)
    assert 0.97 * best < energy(U, G) <= best * (1 + 1e-5)
    assert torch.equal(U, leading_vectors(G, 24, seed=0)) and not torch.equal(U, leading_vectors(G, 24, seed=1))


def test_a_projection_is_idempotent():
    G = decaying(24, 40).double().unsqueeze(0)
    U = leading_vectors(G, 6, seed=0)
    once = U @ (U.mT @ G)
    torch.testing.assert_close(U @ (U.mT @ once), once, rtol=1e-12, atol=1e-12)
    assert energy(U, once).item() == pytest.approx(1) and energy(U, torch.zeros_like(G)) == 0


@pytest.mark.parametrize("settings", [{}, {"muon_scale": "match_rms_adamw", "orthogonalizer": "polar_express"}])
def test_at_full_rank_it_is_muon(settings):
    plain = made("muon", torch.float64, **settings)
    projected = made("galore_muon", torch.float64, galore_rank=64, galore_update_freq=4, **FORCED, **settings)
    train(*plain, range(10))
    train(*projected, range(10))
    assert {rule.rank for _, rule in projected[1].rules if hasattr(rule, "rank")} == {16}, "no more than a side"
    for p, q in zip(plain[0].parameters(), projected[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["galore_muon", "galore_adamw"])
def test_tall_and_wide_are_mirrored(kind):
    model, optimizer = made(kind, torch.float64, galore_rank=4, galore_update_freq=2, muon_scale="match_rms_adamw",
                            **FORCED)  # fmt: skip
    block = model.layers[0]
    with torch.no_grad():
        block.down.weight.copy_(block.up.weight.T)
    for step in range(5):
        gradients(model, step)
        # Both start from the same probes only if they are of one batch, so they get subspaces that are unique.
        block.up.weight.grad = decaying(16, 24, 2.0 + step).double().T.contiguous()
        block.down.weight.grad = block.up.weight.grad.T.contiguous()
        optimizer.step()
    torch.testing.assert_close(block.up.weight.T, block.down.weight, rtol=0, atol=2e-3)


def test_bytes_are_four_r_times_m_plus_n():
    model, optimizer = made("galore_muon", galore_rank=5, **FORCED)
    state = optimizer.state[model.layers[0].up.weight]
    assert sum(t.numel() * t.element_size() for t in state.values()) == 4 * 5 * (16 + 24)
    sizes = {"dim": 256, "wide": 256}
    model, optimizer = made("galore_muon", sizes=sizes, bits=8, galore_rank=32, **FORCED)
    state = optimizer.state[model.layers[0].up.weight]
    assert state["0.U"].dtype == torch.bfloat16 and state["0.codes"].dtype == torch.int8
    assert sum(t.numel() * t.element_size() for t in state.values()) == 2 * 32 * 256 + 32 * 256 + 4 * 32


def test_what_saves_nothing_is_not_projected():
    assert not saves(256, 512, 512) and saves(256, 768, 768) and not saves(512, 1024, 1024)
    rows = {row[0]: row[3:] for row in made("galore_muon", galore_min_dim=4, galore_rank=10)[1].routing()}
    assert (
        rows["layers.*.square.weight"][0] == "Muon" and "saves nothing of 16 x 16" in rows["layers.*.square.weight"][1]
    )
    rows = {row[0]: row[3:] for row in made("galore_muon")[1].routing()}
    assert "below galore_min_dim 256" in rows["layers.*.up.weight"][1]
    rows = {row[0]: row[3:] for row in made("galore_adamw", galore_min_dim=4)[1].routing()}
    assert rows["layers.*.up.weight"] == ("GaLore-AdamW", "a linear map's weight, rank 4")
    assert rows["layers.*.decay"] == ("AdamW", "no matrix product") == rows["layers.*.heads"]


RESUMED = [
    ("galore_muon", {}),
    ("galore_muon", {"bits": 8, "aux_8bit": True, "galore_on_refresh": "reset", "galore_rank": 56}),
    ("galore_muon", {"galore_adaptive": True, "galore_on_refresh": "keep", "galore_update_freq": 8}),
    ("galore_muon", {"galore_debias": "gum", "galore_gum_share": 0.5}),
    ("galore_adamw", {"galore_proj_dtype": "bf16"}),
]


@pytest.mark.parametrize(("kind", "settings"), RESUMED, ids=["muon", "hybrid", "adaptive", "gum", "adamw"])
@pytest.mark.parametrize("stop", [4, 6])
def test_a_resumed_run_goes_on_bit_for_bit(kind, settings, stop):
    settings = {"galore_update_freq": 4, "galore_rank": 8, "sizes": {"dim": 64, "wide": 80}, **FORCED, **settings}
    whole, before, after = (made(kind, **settings) for _ in range(3))
    train(*whole, range(11))
    train(*before, range(stop))
    after[0].load_state_dict(before[0].state_dict())
    reloaded(before[1], after[1])
    assert current_lr(after[1]) == current_lr(before[1])
    train(*after, range(stop, 11))
    assert_equal(whole[0], after[0])
    one, two = (side[1].state_dict()["state"] for side in (whole, after))
    assert all(torch.equal(t, two[i][name]) for i, entries in one.items() for name, t in entries.items())
    entries = whole[1].state[whole[0].layers[0].up.weight]
    codes = [t.dtype for name, t in entries.items() if name == "0.codes" and "0.U" in entries and "0.scales" in entries]
    assert codes == ([torch.int8] if settings.get("bits") == 8 else [])


def test_another_rank_is_refused():
    saved, other = (made("galore_muon", galore_rank=rank, **FORCED) for rank in (4, 6))
    with pytest.raises(ValueError, match="galore_rank = 4"):
        reloaded(saved[1], other[1])


def test_adamw_in_a_subspace_is_the_definition():
    model, optimizer = made("galore_adamw", torch.float64, galore_rank=4, galore_update_freq=3,
                            galore_on_refresh="keep", **FORCED)  # fmt: skip
    weight = model.layers[0].square.weight
    W, m, v = weight.detach().clone(), 0.0, 0.0
    for step in range(7):
        gradients(model, step)
        G = weight.grad.clone()
        optimizer.step()
        U = optimizer.state[weight]["0.U"][0]
        if step % 3 == 0:
            best = torch.linalg.svdvals(G)[:4].square().sum()
            assert (U.T @ G).square().sum() > 0.9 * best
        g = U.T @ G
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step_r = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        W = (1 - 0.02 * 0.1) * W - 0.02 * 0.25 * U @ step_r
    torch.testing.assert_close(weight.detach(), W, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["galore_muon", "galore_adamw"])
def test_a_reset_leaves_the_gradient_of_the_refresh_alone(kind):
    model, optimizer = made(kind, torch.float64, galore_rank=4, galore_update_freq=3, galore_on_refresh="reset",
                            **FORCED)  # fmt: skip
    weight, share = model.layers[0].square.weight, 0.05 if kind == "galore_muon" else 0.1
    for step in range(7):
        train(model, optimizer, [step])
        state = optimizer.state[weight]
        g = state["0.U"][0].T @ weight.grad
        assert torch.allclose(state["0.momentum"][0], share * g, rtol=1e-12, atol=1e-12) == (step % 3 == 0)
        if kind == "galore_adamw":
            assert torch.allclose(state["0.second"][0], 0.001 * g**2, rtol=1e-12, atol=1e-12) == (step % 3 == 0)


def test_what_a_refresh_shows():
    model, optimizer = made("galore_muon", galore_rank=4, galore_update_freq=3, bits=8, **FORCED,
                            sizes={"dim": 64, "wide": 80})  # fmt: skip
    assert optimizer.diagnostics() == {"galore/refresh_ms": 0.0}
    train(model, optimizer, range(4))
    shown = optimizer.diagnostics()
    assert 0 < shown["galore/energy_stale"] < shown["galore/energy"] < 1
    assert 0 < shown["galore/subspace_overlap"] < 1 and shown["galore/refresh_ms"] > 0
    train(*(side := made("muon8bit", sizes={"dim": 64, "wide": 80})), range(2))
    shown = side[1].diagnostics()
    assert 0 < shown["quant/rel_err_median"] <= shown["quant/rel_err_max"] < 0.05


def test_an_adaptive_refresh_follows_the_gradient():
    def refreshes(adaptive, same):
        model, optimizer = made("galore_muon", galore_rank=2, galore_update_freq=8, galore_adaptive=adaptive, **FORCED)
        for step in range(8):
            gradients(model, 0 if same else step)
            optimizer.step()
        return max(rule.watch.refreshes for _, rule in optimizer.rules if hasattr(rule, "watch"))

    assert refreshes(False, False) == 1
    assert refreshes(True, False) > 1


@pytest.mark.parametrize(("share", "refreshes"), [(0.7, 1), (0.6, 2)])
def test_a_subspace_is_lost_by_the_cosine(share, refreshes):
    """1 - cos(G, UU'G) is 0.16 where a subspace holds 0.7 of |G|², and 0.23 where it holds 0.6."""
    model, optimizer = made("galore_muon", galore_rank=4, galore_update_freq=8, galore_adaptive=True, **FORCED)
    for step in range(3):  # the second look comes after two steps
        gradients(model, step)
        outside = 0.01 if step == 0 else (1 / share - 1) ** 0.5
        for block in model.layers:
            block.square.weight.grad = torch.diag(torch.tensor([1.0] * 4 + [outside] * 4 + [0.0] * 8))
        optimizer.step()
    rule = next(r for _, r in optimizer.rules if r.members[0].parameter is model.layers[0].square.weight)
    assert rule.watch.refreshes == refreshes


WAITING = [
    ("galore_muon", {}),
    ("galore_muon", {"galore_adaptive": True}),
    ("galore_adamw", {}),
    ("galore_muon", {"galore_debias": "gum", "galore_gum_share": 0.5}),
]


@pytest.mark.parametrize(("kind", "settings"), WAITING, ids=["muon", "adaptive", "adamw", "gum"])
@pytest.mark.parametrize("zero", [range(2), range(8, 10)], ids=["at first", "later"])
def test_a_gradient_of_zeros_makes_no_subspace(kind, settings, zero):
    def step(side, n):
        gradients(side[0], n)
        weight = side[0].layers[0].up.weight
        if n in zero:
            weight.grad.zero_()
        before = side[1].state[weight]["0.U"].clone()
        side[1].step()
        return weight.grad, before, side[1].state[weight]["0.U"]

    side, other = (made(kind, torch.float64, galore_rank=4, galore_update_freq=8, **FORCED, **settings) for _ in "ab")
    for n in range(zero.stop):
        G, before, U = step(side, n)
        if n in zero:
            assert torch.equal(U, before)
    assert all(value < 1 - 1e-9 for name, value in side[1].diagnostics().items() if "energy" in name)
    other[0].load_state_dict(side[0].state_dict())
    reloaded(side[1], other[1])
    G, before, U = step(side, zero.stop)
    step(other, zero.stop)
    assert_equal(side[0], other[0])
    best = torch.linalg.svd(G.T)[0][:, :4]
    torch.testing.assert_close(U[0] @ U[0].T, best @ best.T, rtol=0, atol=0.02)
    _, before, U = step(side, zero.stop + 1)
    assert settings.get("galore_adaptive") or torch.equal(U, before)
    assert "waiting" not in side[1].state_dict()["param_groups"][0]


def test_gum_is_unbiased():
    """In the full space R grows by q (G - UU'G) / q + (1 - q) UU'G / (1 - q) = G in the mean."""
    q, beta, seen = 0.3, 0.9, set()
    settings = {"galore_debias": "gum", "galore_gum_share": q, "galore_update_freq": 2, "galore_rank": 4}
    model, optimizer = made("galore_muon", torch.float64, muon_momentum=beta, **settings, **FORCED)
    rules = [rule for _, rule in optimizer.rules if hasattr(rule, "full")]
    weight = model.layers[0].square.weight
    rule, expected = next(rule for rule in rules if rule.members[0].parameter is weight), None
    for step in range(24):
        train(model, optimizer, [step])
        U, G = rule.U[0], weight.grad
        new = (G - U @ (U.T @ G)) / q if rule.full else U.T @ G / (1 - q)
        expected = new if step % 2 == 0 else beta * expected + new
        torch.testing.assert_close(rule.value[0], expected)
        seen.add((rule.full, len({each.full for each in rules}) == 1))
    assert {full for full, _ in seen} == {True, False}, "both kinds of period occur"
    assert not all(alike for _, alike in seen), "parameters draw by themselves"


def test_a_refused_state_leaves_gum_as_it_was():
    settings = {"galore_debias": "gum", "galore_gum_share": 0.5, "galore_update_freq": 2, "galore_rank": 4, **FORCED}
    (_, saved), (model, optimizer) = (
        made("galore_muon", **settings),
        made("galore_muon", **{**settings, "galore_rank": 3}),
    )
    train(model, optimizer, range(3))
    state = saved.state_dict()
    state["param_groups"][0]["settings"] = optimizer.state_dict()["param_groups"][0]["settings"]
    before = [t.clone() for _, _, t in optimizer.states()]
    with pytest.raises(ValueError, match="another block size, rank or rule"):
        optimizer.load_state_dict(state)
    assert all(torch.equal(old, t) for old, (_, _, t) in zip(before, optimizer.states(), strict=True))


def test_a_step_of_gum_is_its_orthogonalised_momentum():
    settings = {"galore_debias": "gum", "galore_gum_share": 0.5, "galore_update_freq": 3, "galore_rank": 4}
    model, optimizer = made("galore_muon", torch.float64, muon_momentum=0.9, **settings, **FORCED)
    weight, seen = model.layers[0].square.weight, set()
    rule = next(rule for _, rule in optimizer.rules if rule.members[0].parameter is weight)
    R = None
    for step in range(18):
        W = weight.detach().clone()
        train(model, optimizer, [step])
        U, G = rule.U[0], weight.grad
        new = (G - U @ (U.T @ G)) / 0.5 if rule.full else U.T @ G / 0.5
        R = new if step % 3 == 0 else 0.9 * R + new
        moved = orthogonalise(R.unsqueeze(0)).squeeze(0)
        W = (1 - 0.02 * 0.1) * W - 0.02 * (moved if rule.full else U @ moved)
        torch.testing.assert_close(weight.detach(), W, rtol=0, atol=1e-10)
        seen.add(rule.full)
    assert seen == {True, False}, "both kinds of period occur"


def test_gum_is_of_galore_muon_alone():
    with pytest.raises(ValueError, match="galore_muon"):
        made("muon", galore_debias="gum")
    with pytest.raises(ValueError, match="fp32 momentum"):
        made("galore_muon", galore_debias="gum", bits=8)
