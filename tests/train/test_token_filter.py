"""Filtered products against what they stand for: a filtered position's products are constants."""

import pytest
import torch
from rnn_lab import parts, token_filter
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams
from rnn_lab.registry import registry
from rnn_lab.sections import ObjectiveSection
from rnn_lab.token_filter import TokenFilter, linear
from rnn_lab.train.filter_check import cosines
from rnn_lab.train.objective import Objective, random_scores

from .models import NAMES, assert_equal, gradients, model_of, windows

B, T, D = 3, 8, 5


def leaves(dtype=torch.float64, bias=True):
    torch.manual_seed(1)
    x, w = torch.randn(B, T, D, dtype=dtype), torch.randn(4, D, dtype=dtype)
    return [t.requires_grad_() for t in (x, w, *([torch.randn(4, dtype=dtype)] if bias else []))]


def kept(K=5):
    return torch.stack([torch.randperm(T, generator=torch.Generator().manual_seed(b))[:K] for b in range(B)])


def filtered(held, choose, tensors):
    with held.during():
        y = linear(*tensors)
    choose()
    return torch.autograd.grad((y * y).sum(), tensors), y


@pytest.mark.parametrize("bias", [True, False])
def test_nothing_chosen_is_the_dense_product(bias):
    tensors = leaves(bias=bias)
    found, y = filtered(TokenFilter((B, T)), lambda: None, tensors)
    dense = torch.nn.functional.linear(*tensors)
    assert torch.equal(y, dense)
    for one, other in zip(found, torch.autograd.grad((dense * dense).sum(), tensors), strict=True):
        assert (one - other).abs().max() < 1e-12


@pytest.mark.parametrize("how", ["rows", "mask"])
def test_filtered_gradients_are_those_of_constants(how):
    tensors, held = leaves(), TokenFilter((B, T))
    mask = torch.zeros(B, T, dtype=torch.bool).scatter(1, kept(), True)
    choose = {"rows": lambda: held.keep(kept()), "mask": lambda: held.keep_where(mask)}[how]
    found, y = filtered(held, choose, tensors)
    dense = torch.nn.functional.linear(*tensors)
    oracle = torch.where(mask[..., None], dense, dense.detach())
    for one, other in zip(found, torch.autograd.grad((oracle * y.detach() * 2).sum(), tensors), strict=True):
        assert (one - other).abs().max() < 1e-12
    assert held.maps == 1 and torch.equal(held.mask_BT, mask)


@pytest.mark.parametrize("how", ["rows", "mask", "nothing"])
def test_several_maps_of_the_same_rows_are_each_for_itself(how):
    """One pass through `linears` is one through `linear` for each; what no result is asked of has zeros."""
    (x, w), v = leaves(bias=False), torch.randn(3, D, dtype=torch.float64).requires_grad_()
    found = []
    for maps in (lambda: token_filter.linears(x, (w, v)), lambda: (linear(x, w), linear(x, v))):
        held = TokenFilter((B, T))
        with held.during():
            y, z = maps()
        if how == "rows":
            held.keep(kept())
        elif how == "mask":
            held.keep_where(torch.zeros(B, T, dtype=torch.bool).scatter(1, kept(), True))
        assert held.maps == 2
        both = torch.autograd.grad((y * y).sum() + z.sin().sum(), (x, w, v), retain_graph=True)
        found.append((y, z, *both, *torch.autograd.grad(z.sum(), (x, w, v), allow_unused=True)))
    for one, other in zip(*found, strict=True):
        assert (one - (0 if other is None else other)).abs().max() < 1e-12


def test_autocast_keeps_dtypes_and_several_rows_per_position():
    tensors = [t.detach().float().requires_grad_() for t in leaves()]
    heads = tensors[0].detach()[:, :, None].repeat(1, 1, 2, 1).requires_grad_()
    held = TokenFilter((B, T))
    with held.during(), torch.autocast("cpu", torch.bfloat16):
        y = linear(heads, *tensors[1:])
    assert y.dtype == torch.bfloat16 and y.shape == (B, T, 2, 4)
    held.keep(kept())
    y.float().square().sum().backward()
    assert heads.grad.dtype == tensors[1].grad.dtype == tensors[2].grad.dtype == torch.float32
    assert torch.equal(heads.grad.abs().sum((2, 3)) > 0, held.mask_BT)


@pytest.mark.parametrize("name", NAMES)
def test_every_token_wise_map_of_a_model_is_the_constant_of_a_filtered_position(name, monkeypatch):
    """The whole model against plain torch with every map's filtered outputs detached."""
    model, window = model_of(name), windows()
    held = TokenFilter((4, 12))
    picked = torch.arange(12).view(1, 12).expand(4, 12)[:, ::2]

    def loss(product):
        with held.during():
            logits, _ = model(window[:, :-1])
        product()
        return (logits.log_softmax(-1)[:, ::2] ** 2).mean()

    ours = gradients(model, loss(lambda: held.keep(picked)))
    assert held.maps >= 2 * 1 + 1
    mask = held.mask_BT

    def detached(self, x, weights, bias=None):
        results = [torch.nn.functional.linear(x, weight, bias) for weight in weights]
        return [torch.where(mask.view(*mask.shape, *[1] * (y.dim() - 2)), y, y.detach()) for y in results]

    monkeypatch.setattr(TokenFilter, "products", detached)
    assert_equal(ours, gradients(model, loss(lambda: None)), atol=1e-12)


def test_a_family_can_veto_a_map(monkeypatch):
    cls = registry().find_model("e61")[0].load()
    monkeypatch.setattr(cls, "token_filter_exclude", ("in_proj",))
    model, held = model_of("e61", depth=1), TokenFilter((4, 12))
    counted = []
    for vetoed in (True, False):
        model.layers[0].in_proj.filtered = model.layers[0].in_proj.filtered if vetoed else True
        held.maps = 0
        with held.during():
            model(windows()[:, :-1])
        counted.append(held.maps)
    assert counted[0] == counted[1] - 1


def objective(**values):
    return Objective(ObjectiveSection(use_collider=True, **values), seed=3)


@pytest.mark.parametrize("scorer", ["loss", "random"])
def test_exactly_so_many_positions_of_each_sequence_are_kept(scorer):
    model, window = model_of(), windows(T=40)
    for sparsity in (0.2, 0.35, 0.5):
        made = objective(collider_sparsity=sparsity, collider_scorer=scorer)
        told = dict(zip(made.columns, made(model, window, None, None, filtering=True).figures, strict=True))
        assert abs(told["collider_sparsity"].item() - sparsity) <= 1 / 40
        if scorer == "loss":
            assert told["collider_kept_ce"] > told["collider_filtered_ce"]


def test_no_sparsity_is_the_plain_loss():
    model, window = model_of(), windows()
    plain = gradients(model, model.loss(window)[0])
    made = objective(collider_sparsity=0.0)(model, window, None, None, filtering=True)
    assert_equal(plain, gradients(model, made.objective))


def test_compat_is_the_rule_of_the_seeds():
    model, window = model_of(), windows(T=40)
    made = objective(collider_mode="compat")
    parts_ = made(model, window, None, None, filtering=True)
    logits, _ = model(window[:, :-1])
    nll = torch.nn.functional.cross_entropy(logits.mT, window[:, 1:].long(), reduction="none")
    scores = (nll - nll.amin(1, keepdim=True)) / (nll.amax(1, keepdim=True) - nll.amin(1, keepdim=True))
    keep = scores >= scores.quantile(0.35, 1, keepdim=True).clamp(min=0.3)
    assert parts_.objective.item() == pytest.approx(nll[keep].mean().item(), rel=1e-6)
    assert parts_.loss.item() == pytest.approx(nll.mean().item())


def test_excess_keeps_what_the_reference_model_finds_easier():
    model, other, window = model_of(), model_of(seed=5), windows(T=20)
    made = Objective(
        ObjectiveSection(use_collider=True, collider_scorer="excess", collider_reference="x"), reference=other
    )
    got = made(model, window, None, None, filtering=True).objective
    nll = [
        torch.nn.functional.cross_entropy(m(window[:, :-1])[0].mT, window[:, 1:].long(), reduction="none")
        for m in (model, other)
    ]
    top = (nll[0] - nll[1]).topk(13, 1).indices
    assert got.item() == pytest.approx(nll[0].gather(1, top).mean().item())
    got.backward()
    assert all(p.grad is None for p in other.parameters())


def test_random_scores_follow_from_seed_step_row_and_position():
    like, k = torch.zeros(8, 400), torch.tensor(7)
    scores = random_scores(like, 3, k, 0)
    assert torch.equal(scores[4:], random_scores(like[:4], 3, k, 4))
    assert not torch.equal(scores, random_scores(like, 3, k + 1, 0))
    assert not torch.equal(scores, random_scores(like, 4, k, 0))
    assert not torch.isin(scores, random_scores(like, 4, k - 1, 0)).any(), "seed and step are no sum"
    assert scores.min() >= 0 and scores.max() < 1 and scores.mean().item() == pytest.approx(0.5, abs=0.02)
    assert scores.unique().numel() == scores.numel()


def test_the_random_scorer_keeps_other_positions_at_another_step():
    model, window, made = model_of(), windows(T=40), objective(collider_scorer="random")

    def kept_ce(step):
        parts_ = made(model, window, None, None, filtering=True, step=torch.tensor(step))
        return dict(zip(made.columns, parts_.figures, strict=True))["collider_kept_ce"].item()

    assert kept_ce(7) == kept_ce(7) != kept_ce(8)


def test_regularisers_are_over_kept_positions():
    model, window = model_of(), windows(T=40)
    made = objective(entropy_weight=0.03, label_smoothing=0.1)
    parts_ = made(model, window, None, None, filtering=True)
    log_p = model(window[:, :-1])[0].log_softmax(-1)
    nll = -log_p.gather(-1, window[:, 1:, None].long())[..., 0]
    top = nll.topk(26, 1).indices
    ce, spread, entropy = (
        values.gather(1, top).mean().item() for values in (nll, -log_p.mean(-1), -(log_p.exp() * log_p).sum(-1))
    )
    assert dict(zip(made.columns, parts_.figures, strict=True))["entropy"].item() == pytest.approx(entropy, rel=1e-9)
    assert parts_.objective.item() == pytest.approx(0.9 * ce + 0.1 * spread - 0.03 * entropy, rel=1e-9)


def test_outside_of_a_pass_nothing_is_filtered():
    held = TokenFilter((B, T))
    with pytest.raises(RuntimeError), held.during():
        raise RuntimeError
    assert token_filter.active() is None and parts.linear is linear


def test_cosines_fall_with_sparsity():
    model, window = model_of(), windows(B=4, T=40)
    found = [cosines(model, objective(collider_sparsity=s, collider_scorer="random"), window) for s in (0.1, 0.5)]
    assert 1 > found[0].filtered_masked > found[1].filtered_masked > 0.5
    assert 1 > found[0].masked_dense > found[1].masked_dense > 0.3
    none = cosines(model, objective(collider_sparsity=0.0), window)
    assert none.filtered_masked == pytest.approx(1) and none.masked_dense == pytest.approx(1)
    assert all(p.grad is None for p in model.parameters())


def plain(h, x, w, decay):
    return torch.tanh(x + h @ w.T) * decay


def doubled(x, z, bias):
    return (x * z + bias,)


@pytest.mark.parametrize("before", [None, doubled])
@pytest.mark.parametrize("how", ["rows", "mask"])
def test_recurrent_matrices_learn_from_kept_positions_where_asked(how, before):
    """The recurrence against plain torch with W detached where a position is filtered; all else is the same."""
    generator = torch.Generator().manual_seed(0)
    h, w, decay, x, z, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((B, 5), (5, 5), (5,), (B, T, 5), (B, T, 5), (5,))
    )
    reset = torch.rand(B, T, generator=generator) < 0.2
    inputs, biases = ((x,), ()) if before is None else ((x, z), (bias,))
    leaves = [h, w, decay, x, *inputs[1:], *biases]
    cell, streams = Cell(plain, before=before), Streams(inputs, (w, decay), (), biases)
    held = TokenFilter((B, T), recurrent="kept")
    with held.during():
        y, _ = RECURRENCE({}, cell, h, streams, reset)
    held.keep(kept())
    if how == "mask":
        held.keep_where(held.mask_BT)
    found = torch.autograd.grad(y.square().sum(), leaves)
    mask, state, out = held.mask_BT, h, []
    for t in range(T):
        state = torch.where(reset[:, t, None], 0, state)
        x_t = x[:, t] if before is None else doubled(x[:, t], z[:, t], bias)[0]
        state = torch.where(mask[:, t, None], plain(state, x_t, w, decay), plain(state, x_t, w.detach(), decay))
        out.append(state)
    torch.testing.assert_close(y, torch.stack(out, 1))
    wanted = torch.autograd.grad(torch.stack(out, 1).square().sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_a_whole_model_learns_its_recurrence_from_kept_positions():
    window = windows()
    cases = [("e1", "full"), ("e1", "kept"), ("e61", "full"), ("e61", "kept")]
    found = {}
    for name, how in cases:
        model = model_of(name)
        made = objective(collider_recurrent=how)(model, window, None, None, filtering=True)
        found[name, how] = gradients(model, made.objective)
    changed = {k for k, g in found["e1", "full"].items() if not torch.allclose(g, found["e1", "kept"][k], atol=1e-12)}
    assert changed and all("W_h" in name for name in changed)
    assert_equal(found["e61", "full"], found["e61", "kept"])  # it has no recurrent matrix
