"""Small language models in fp64 whose parameters all matter, and windows of bytes."""

import torch
from rnn_lab.lm import LM, LMConfig
from rnn_lab.registry import registry
from rnn_lab.testing.subject import Subject

NAMES = sorted(registry().models)


def model_of(name="e61", *, depth=2, seed=0, **fields) -> LM:
    ref, alias = registry().find_model(name)
    subject = Subject(ref, {**alias, **fields})
    cfg = subject.variants[0].cfg
    torch.manual_seed(seed)
    model = LM(subject.model, cfg, LMConfig(**{**subject.model.lm_defaults, "depth": depth}))
    with torch.no_grad():  # initial zeros, such as an output projection's, would hide what lies behind them
        for p in model.layers.parameters():
            p.add_(torch.randn(p.shape) * (0.3 / max(1, p.shape[-1] if p.dim() else 1) ** 0.5))
    model.prepare()
    return model.double()


def windows(B=4, T=12, ahead=1, seed=0):
    return torch.randint(97, 123, (B, T + ahead), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(one, other, atol=0.0):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(one[name], other[name], rtol=0, atol=atol), (
            name, (one[name] - other[name]).abs().max()
        )  # fmt: skip
