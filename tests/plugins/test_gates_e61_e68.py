"""Gates of E61-E68 near one: under bf16 autocast a slow leak stays a leak."""

import math

import pytest
import torch
from rnn_lab.registry import registry

STEPS = 256
SLOW = 8.0
"""Bias of a gate whose sigmoid, 0.9997, bf16 would round to 1."""


@pytest.mark.parametrize("level", ["61", "61b", "62", "62b", "63", "63b", "65", "66", "67", "68"])
def test_a_slow_leak_still_leaks(level: str) -> None:
    ref, preset = registry().find_model(level)
    layer_cls = ref.load()
    layer = layer_cls(layer_cls.Config(dim=8, expansion=1.0, **preset))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for name, bias in (("leak", SLOW), ("write", -SLOW)):
            if hasattr(layer, name):
                getattr(layer, name).bias.fill_(bias)
        with torch.autocast("cpu", torch.bfloat16):
            _, state = layer(torch.zeros(1, STEPS, 8), {"h": torch.ones(1, 8)})
    leaks = 2 if level == "62b" else 1
    kept = (1 + math.exp(-SLOW)) ** (-STEPS * leaks)
    assert state["h"].flatten().tolist() == pytest.approx([kept] * 8, rel=1e-4)
