"""8-bit momentum and 8-bit AdamW: codes, bytes, resume, and what they cost in loss."""

import importlib.util

import pytest
import torch
from rnn_lab.config import ModelSection, OptimizerSection
from rnn_lab.errors import ConfigError
from rnn_lab.modelspec import model_spec
from rnn_lab.optim.adamw import Adam8bit, AdamRule, adam
from rnn_lab.optim.factories import muon8bit
from rnn_lab.optim.library import bitsandbytes
from rnn_lab.optim.moments import CodedMomentum, momentum
from rnn_lab.optim.plan import decisions, settled
from rnn_lab.optim.quantise import Blockwise, _values
from rnn_lab.registry import registry
from torch import nn
from torch.nn import functional as F

from .small import assert_equal, gradients, made, reloaded, small, train

WIDE = {"dim": 64, "wide": 96, "vocab": 64}


@pytest.mark.parametrize("block", [64, 256, 2048])
def test_a_round_trip_is_off_by_half_a_step_at_most(block):
    codec = Blockwise(block)
    x = torch.randn(3, 50, 41, generator=torch.Generator().manual_seed(0)) * torch.tensor([[[1e-12]], [[1.0]], [[1e6]]])
    codes, scales = codec.encode(x)
    assert codes.dtype == torch.int8 and scales.shape == (3, codec.blocks(50 * 41))
    error = (codec.decode(codes, scales, x.shape) - x).abs()
    flat = F.pad(x.flatten(1), (0, -x[0].numel() % block)).view(3, -1, block)
    limit = (flat.abs().amax(-1, keepdim=True) / 254).expand_as(flat).flatten(1)[:, : x[0].numel()].view_as(x)
    assert (error <= limit * (1 + 1e-5)).all()
    measured = (error.square().sum((1, 2)) / x.square().sum((1, 2))).sqrt()
    torch.testing.assert_close(codec.relative_error(codes, scales), measured, rtol=0.1, atol=0)


def test_zeros_are_zeros_in_every_code():
    for kind in ("linear", "dynamic", "dynamic_unsigned"):
        codec = Blockwise(64, kind)
        codes, scales = codec.encode(torch.zeros(1, 130))
        assert (scales == 1).all() and not codec.decode(codes, scales, (1, 130)).any()
        fresh, ones = codec.zeros(1, 130, torch.device("cpu"))
        assert fresh.dtype == codes.dtype and torch.equal(fresh, codes) and torch.equal(ones, scales)


def test_the_dynamic_map_is_that_of_the_paper():
    for kind in ("dynamic", "dynamic_unsigned"):
        values = _values(kind)
        assert values.numel() == 256 and (values.diff() > 0).all() and values[-1] == 1 and 0 in values
        x = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
        x = x.abs() if kind == "dynamic_unsigned" else x
        codec = Blockwise(256, kind)
        codes, scales = codec.encode(x)
        nearest = (x.view(16, 256, 1) / scales.view(16, 1, 1) - values).abs().argmin(-1).view(1, -1)
        assert (codes.int() - nearest).abs().max() <= 1 and (codes != nearest).float().mean() < 1e-3


def test_without_momentum_it_is_muon_bit_for_bit():
    plain, coded = made("muon", muon_momentum=0.0, sizes=WIDE), made("muon8bit", muon_momentum=0.0, sizes=WIDE)
    train(*plain, range(4))
    train(*coded, range(4))
    assert_equal(plain[0], coded[0])


@pytest.mark.parametrize(("numel", "coded"), [(4095, False), (4096, True)])
def test_tensors_below_4096_values_have_no_codes(numel, coded):
    assert isinstance(momentum((2, 1, numel), Blockwise(), torch.float32, torch.device("cpu")), CodedMomentum) == coded
    (rule,) = adam([nn.Parameter(torch.zeros(numel))], AdamRule(), eight=True)
    assert isinstance(rule, Adam8bit) == coded


@pytest.mark.parametrize(("block", "quant"), [(64, "linear"), (256, "linear"), (2048, "linear"), (256, "dynamic")])
def test_bytes_are_one_and_four_per_block(block, quant):
    model, optimizer = made("muon8bit", sizes=WIDE, block_size=block, quant=quant)
    state = optimizer.state[model.layers[0].up.weight]
    n = 64 * 96
    assert {name: t.numel() * t.element_size() for name, t in state.items()} == {
        "0.codes": -(-n // block) * block, "0.scales": 4 * -(-n // block)
    }  # fmt: skip
    little = made("muon8bit")  # 16 x 24 is below 4096 values
    assert little[1].state[little[0].layers[0].up.weight]["0.momentum"].dtype == torch.float32


@pytest.mark.parametrize(
    "settings", [{}, {"quant": "dynamic"}, {"aux_8bit": True}, {"orthogonalizer": "polar_express", "block_size": 128}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_goes_on_bit_for_bit(settings, dtype):
    whole, before, after = (made("muon8bit", dtype, WIDE, **settings) for _ in range(3))
    train(*whole, range(6))
    train(*before, range(3))
    after[0].load_state_dict(before[0].state_dict())
    reloaded(before[1], after[1])
    codes = after[1].state[after[0].layers[0].up.weight]["0.codes"]
    assert codes.dtype == (torch.uint8 if settings.get("quant") == "dynamic" else torch.int8) and codes.any()
    train(*after, range(3, 6))
    assert_equal(whole[0], after[0])
    assert all(p.dtype == dtype for p in after[0].parameters())


@pytest.mark.parametrize(
    ("kind", "settings", "complaint"),
    [
        ("muon8bit", {"block_size": 128}, "block_size = 256.*set optimizer.block_size back"),
        ("muon8bit", {"quant": "dynamic"}, "quant = linear"),
        ("muon", {}, "bits = 8"),
    ],
)
def test_another_form_of_state_is_refused_before_anything_is_loaded(kind, settings, complaint):
    saved, other = made("muon8bit", sizes=WIDE), made(kind, sizes=WIDE, **settings)
    train(*saved, range(2))
    before = [t.clone() for _, _, t in other[1].states()]
    with pytest.raises(ValueError, match=complaint):
        reloaded(saved[1], other[1])
    assert all(torch.equal(old, t) for old, (_, _, t) in zip(before, other[1].states(), strict=True))


def test_another_shape_is_refused():
    saved, other = made("muon8bit", sizes=WIDE), made("muon8bit", sizes={**WIDE, "wide": 80})
    with pytest.raises(ValueError, match="another block size, rank or rule"):
        reloaded(saved[1], other[1])


class Bigram(nn.Module):
    """Next byte from the last one through one hidden layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(64, 64)
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])

    def forward(self, x):
        return F.linear(self.layers[1](F.gelu(self.layers[0](self.embedding(x)))), self.embedding.weight)


def last100(settings):
    model = Bigram()
    optimizer = muon8bit(model, OptimizerSection(lr=0.01, **settings)) if settings is not None else None
    if optimizer is None:
        from rnn_lab.optim.factories import muon

        optimizer = muon(model, OptimizerSection(lr=0.01))
    table = torch.softmax(2 * torch.randn(64, 64, generator=torch.Generator().manual_seed(5)), -1)
    losses = []
    for step in range(300):
        generator = torch.Generator().manual_seed(step)
        x = torch.randint(0, 64, (64,), generator=generator)
        y = torch.multinomial(table[x], 1, generator=generator).squeeze(1)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    return sum(losses[-100:]) / 100


def test_three_hundred_steps_lose_nothing():
    plain = last100(None)
    assert abs(last100({"aux_8bit": True}) - plain) < 0.02


def test_8bit_adamw_follows_adamw():
    (plain, one), (coded, two) = made("muon", sizes=WIDE), made("muon", sizes=WIDE, aux_8bit=True)
    train(plain, one, range(8))
    train(coded, two, range(8))
    assert two.state[coded.embedding.weight]["exp_avg.codes"].dtype == torch.uint8
    moved = (plain.embedding.weight - small(**WIDE).embedding.weight).norm()
    assert (plain.embedding.weight - coded.embedding.weight).norm() < 0.05 * moved
    assert torch.equal(plain.norm.weight, coded.norm.weight), "too small to be coded"


def test_8bit_adamw_sees_clipped_gradients():
    (one, first), (two, second) = (made("muon8bit", sizes=WIDE, aux_8bit=True) for _ in "ab")
    for step, scale in enumerate((1.0, 0.25, 0.5)):
        gradients(one, step)
        gradients(two, step)
        first.gated_step(torch.tensor(scale), torch.zeros(()))
        for p in two.parameters():
            p.grad.mul_(scale)
        second.step()
    assert torch.equal(one.embedding.weight, two.embedding.weight)
    found, expected = first.state[one.embedding.weight], second.state[two.embedding.weight]
    assert "exp_avg.codes" in found and all(torch.equal(t, expected[name]) for name, t in found.items())


def test_what_stays_in_fp32_is_not_called_8_bit():
    spec = model_spec(ModelSection(name="gdn", fields={"dim": 48}, depth=1), registry())
    for settings, rules in (
        ({"name": "muon8bit"}, ("8-bit Muon", "8-bit Muon", "Muon")),
        ({"name": "galore_muon", "bits": 8, "galore_rank": 8, "galore_force": True}, ("GaLore-Muon",) * 3),
    ):
        section = OptimizerSection(**settings)
        found = decisions(spec.build(), section.name, settled(section.name, section))
        told = [found[f"layers.0.{name}.weight"] for name in ("g_proj", "qkv_proj", "a_proj")]
        assert tuple(each.rule for each in told) == rules
        if section.name == "muon8bit":
            said = "momentum in fp32: fewer than 4096 values"
            assert [each.reason for each in told] == [
                "a matrix", f"3 stacked matrices, some {said}", f"a matrix, {said}"
            ]  # fmt: skip


def test_the_name_decides_the_bits():
    with pytest.raises(ConfigError, match="contradicts"):
        made("muon8bit", bits=32)
    assert made("muon", bits=8)[1].settings["bits"] == 8
    with pytest.raises(ConfigError, match="galore_adamw"):
        made("galore_adamw", bits=8)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_library_is_named_with_its_cure():
    with pytest.raises(ConfigError, match="rnn-lab-core\\[optim\\]"):
        made("muon8bit", aux_8bit=True, aux_library="bitsandbytes")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_updates_and_resumes():
    bitsandbytes()
    settings = {"aux_8bit": True, "aux_library": "bitsandbytes"}
    whole, before, after = (made("muon8bit", sizes=WIDE, **settings) for _ in range(3))
    own = made("muon8bit", sizes=WIDE, aux_8bit=True)
    for side in (whole, own):
        train(*side, range(6))
    train(*before, range(3))
    after[0].load_state_dict(before[0].state_dict())
    reloaded(before[1], after[1])
    train(*after, range(3, 6))
    assert_equal(whole[0], after[0])
    torch.testing.assert_close(own[0].embedding.weight, whole[0].embedding.weight, rtol=0, atol=2e-4)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.filterwarnings("ignore")
def test_8bit_adamw_has_torchaos_codes():
    from rnn_lab.optim.batch import Signals
    from torchao.optim.adam import single_param_adam
    from torchao.optim.subclass_8bit import OptimState8bit

    p = nn.Parameter(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
    theirs, taken = p.detach().clone(), torch.zeros(())
    m, v = (OptimState8bit.zeros((64, 128), signed, 256) for signed in (True, False))
    ours, one = Adam8bit(p, AdamRule()), torch.ones((), dtype=torch.float64)
    for step in range(5):
        p.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(step))
        taken += 1
        with torch.no_grad():
            single_param_adam(
                theirs, p.grad.clone(), taken, m, v, None, torch.tensor(1e-3), 0.9, 0.999, 0.1, 1e-8, True, False
            )
            ours.step(Signals(one, torch.tensor(False), one, one * 1e-3), 0.1, taken)
        assert torch.equal(ours.first.view(-1), m.codes.view(-1)) and torch.equal(
            ours.second.view(-1), v.codes.view(-1)
        )
    torch.testing.assert_close(p.detach(), theirs, rtol=1e-5, atol=1e-6)
