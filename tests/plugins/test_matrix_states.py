"""What the docstrings of the matrix-state family say beyond their equations."""

import math
from typing import Any, Literal, get_args, get_origin
from unittest import mock

import pytest
import torch
from rnn_lab.kernels.dispatch import REFERENCE, Choice, Op
from rnn_lab.layer import Layer
from rnn_lab.registry import registry
from rnn_lab.testing.checks import check_model

STEPS, SLOW = 256, 8.0
"""SLOW is the bias of a gate whose sigmoid, 0.9997, bf16 would round to 1."""


def build(level: str, **fields: Any) -> Layer:
    torch.manual_seed(5)
    ref, preset = registry().find_model(level)
    layer_cls = ref.load()
    return layer_cls(layer_cls.Config(**{**preset, **fields}))


MEET = {"nonlinearity": ("rmsnorm", "frobnorm"), "update": ("retrieved_gate",)}
"""Choices of e74 that see the whole matrix at every step."""


def variants(level: str) -> list[dict[str, Any]]:
    """Every value of every choice, one at a time."""
    found = registry().find_model(level)[0].load().Config.model_fields.items()
    kinds = [(key, field.annotation) for key, field in found]
    several = {key: get_args(kind) for key, kind in kinds if get_origin(kind) is Literal}
    several |= {key: (False, True) for key, kind in kinds if kind is bool}
    return [{key: value} for key, values in several.items() for value in values]


@pytest.mark.parametrize(
    ("level", "fields"),
    [("71", {}), ("72", {}), ("73", {}), ("74", {}), ("75", {"n_heads": 2}), ("88", {"n_heads": 2, "expansion": 2.0})],
)
def test_rows_never_meet_unless_the_cell_says_so(level: str, fields: dict[str, Any]) -> None:
    """What is an expression over independent rows is one kernel per direction on a GPU."""
    calls: list[tuple[Any, ...]] = []

    def select(op: Any, *args: Any) -> tuple[Any, Choice]:
        calls.extend([args] if op.name == "recurrence" else [])
        return op.reference, Choice(op.name, REFERENCE)

    for variant in variants(level):
        if variant == {"tie_kv": True}:
            fields = {**fields, "expansion": 1.0}
        layer = build(level, dim=8, n_state=4, **fields, **variant)
        calls.clear()
        with mock.patch.object(Op, "select", select):
            layer(torch.randn(1, 2, 8))
        assert calls or variant == {"nonlinearity": "linear"}
        for cell, h, streams, _ in calls:
            found = cell.matrix(h, streams)
            meeting = any(value in MEET.get(key, ()) for key, value in variant.items())
            assert isinstance(found, str) == (level == "74" and meeting), (variant, found)


@pytest.mark.parametrize(
    ("level", "gate", "fields"),
    [
        ("63m", "W_alpha", {"n_slots": 4}),
        ("71", "W_alpha", {"n_state": 4}),
        ("72", "W_alpha", {"n_state": 4}),
        ("74", "W_a", {"n_state": 4, "update": "ema", "nonlinearity": "linear"}),
        ("e74d", "W_a", {"n_state": 4, "update": "ema", "nonlinearity": "linear"}),
        ("75", "W_beta", {"n_state": 4, "nonlinearity": "linear"}),
    ],
)
def test_a_slow_leak_still_leaks_under_autocast(level: str, gate: str, fields: dict[str, Any]) -> None:
    layer = build(level, dim=8, **fields)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        getattr(layer, gate).bias.fill_(SLOW)
        state = {key: torch.ones_like(tensor) for key, tensor in layer.init_state(1).items()}
        with torch.autocast("cpu", torch.bfloat16):
            _, state = layer(torch.zeros(1, STEPS, 8), state)
    kept = (1 + math.exp(-SLOW)) ** -STEPS
    assert state["h"].flatten().tolist() == pytest.approx([kept] * state["h"].numel(), rel=1e-4)


def test_e70_keeps_its_decay_and_the_norm_of_its_matrices() -> None:
    layer = build("70", dim=16, n_state=8)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(20):
        layer.prepare()
        optimizer.zero_grad()
        y_BTD, _ = layer(torch.randn(2, 5, 16))
        y_BTD.square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert layer.get_parameter("decay").item() == pytest.approx(0.9)
    for _ in range(100):
        layer.prepare()
    for name in ("W_k", "W_v"):
        effective = layer.get_submodule(name)()
        assert torch.linalg.matrix_norm(effective, 2).item() == pytest.approx(0.5, rel=1e-3)


def test_e70_and_its_power_iterations_survive_a_checkpoint() -> None:
    saved = build("70", dim=16, n_state=8, decay=0.5).state_dict()
    assert saved["decay"].item() == 0.5
    assert {"W_k.u", "W_k.v", "W_v.u", "W_v.v"} <= saved.keys()


def test_e74_low_rank_is_the_full_delta_rule_on_its_factors() -> None:
    layer = build("74", dim=16, n_state=6, state="low_rank", rank=3, nonlinearity="linear").double()
    V = layer.get_buffer("V")
    assert V.shape == (6, 3)
    assert 0 < V.abs().max() < 0.1
    assert torch.equal(layer.state_dict()["V"], V)
    with torch.no_grad():
        V.copy_(torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64)).Q)
        layer.get_submodule("W_kr").weight.copy_(V.T)
        full = build("74", dim=16, n_state=6, nonlinearity="linear").double()
        shared = {name: t for name, t in layer.state_dict().items() if name in full.state_dict()}
        full.load_state_dict(shared)
        # Keys and queries within the span of V, so that projecting them on it loses nothing.
        for name in ("W_k", "W_q"):
            weight = V @ V.T @ layer.get_submodule(name).weight
            for other in (layer, full):
                other.get_submodule(name).weight.copy_(weight)
        x_BTD = torch.randn(2, 7, 16, dtype=torch.float64)
        (y_BTD, state), (expected, S) = layer(x_BTD), full(x_BTD)
    torch.testing.assert_close(state["h"] @ V.T, S["h"])
    torch.testing.assert_close(y_BTD, expected)


@pytest.mark.parametrize("form", ["column", "row", "full"])
def test_e73_is_linear_decay_under_tanh_when_z_is_constant(form: str) -> None:
    layer = build("73", dim=8, n_state=4, form=form).double()
    with torch.no_grad():
        for name in ("W_k", "W_v", "W_z"):
            layer.get_submodule(name).weight.zero_()
        layer.get_submodule("W_z").bias.copy_(torch.tensor([0.1, 0.4, 0.9, 2.0]))
        S = torch.randn(1, 4, 4, dtype=torch.float64)
        _, state = layer(torch.zeros(1, 1, 8, dtype=torch.float64), {"h": S})
    z = torch.tanh(layer.get_submodule("W_z").bias)
    Z = {"column": z[None, :].expand(4, 4), "row": z[:, None].expand(4, 4), "full": torch.outer(z, z)}[form]
    torch.testing.assert_close(state["h"], torch.tanh(S * Z))


def test_e75_with_one_head_is_e74_once_its_gate_is_open() -> None:
    e75, e74 = build("75", dim=16, n_state=6), build("74", dim=16, n_state=6)
    with torch.no_grad():
        e75.get_submodule("W_beta").weight.zero_()
        e75.get_submodule("W_beta").bias.fill_(100.0)
    e74.load_state_dict({name: t for name, t in e75.state_dict().items() if name in e74.state_dict()})
    x_BTD = torch.randn(2, 7, 16)
    torch.testing.assert_close(e75(x_BTD)[0], e74(x_BTD)[0])


def test_the_linear_fused_diagonal_diverges_as_it_declares() -> None:
    ref, preset = registry().find_model("e74-d-tiedkvq-l")
    layer_cls = ref.load()
    assert layer_cls.diverges(layer_cls.Config(**preset))
    for stable in ({"nonlinearity": "tanh"}, {"update": "simple"}, {"definition": "cell"}):
        assert layer_cls.diverges(layer_cls.Config(**{**preset, **stable})) is None
    (result,) = check_model("e74-d-tiedkvq-l", only=["learns"])
    assert result.status == "skip"
    assert result.message.startswith("diverges at step ")


def test_e88_has_the_balance_ratio_and_the_defaults_of_both_generations() -> None:
    config = registry().models["e88"].load().Config
    studied = {(3328, 32, 48): 0.4615, (2944, 44, 48): 0.7174, (2944, 52, 40): 0.7065}
    for (dim, heads, state), ratio in studied.items():
        assert config(dim=dim, n_heads=heads, n_state=state).balance_ratio == pytest.approx(ratio, abs=5e-5)
    may = {"expansion": 1.0, "use_conv": False, "gate": "none", "output_norm": False, "decay": "mamba"}
    may |= {"use_silu": True, "l2_norm": True, "head_mix": "concat", "write_gate": False, "value_residual": False}
    assert config(dim=64).model_dump().items() >= may.items()
    january = {"expansion": 2.0, "use_conv": True, "gate": "sigmoid", "output_norm": True}
    assert config(dim=64, **january).d_value == 64
