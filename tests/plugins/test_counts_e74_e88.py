"""Parameter counts of the matrix-state family against the source's, and the sizes that the solver reaches."""

from typing import Any

import pytest
import torch
from rnn_lab.config import ModelSection
from rnn_lab.lm import LM, LMConfig, counted_params, lm_n_params
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry

N_SCAN = {
    1: 95_012_352,
    2: 95_227_392,
    4: 95_657_472,
    8: 96_517_632,
    16: 98_237_952,
    32: 101_678_592,
    48: 105_119_232,
    64: 108_559_872,
    96: 115_441_152,
}
"""E74 at D 1536, depth 20, by n."""

JANUARY: dict[str, Any] = {"output_norm": True}
SEEDS: tuple[tuple[str, dict[str, Any], int, int, int | None], ...] = (
    ("63m", {"dim": 640}, 20, 82_610_880, 4_121_680),
    ("70", {"dim": 1408}, 20, 98_612_116, 4_911_105),
    ("71", {"dim": 1408}, 20, 104_022_656, 5_181_632),
    ("72", {"dim": 1408}, 20, 104_024_576, 5_181_728),
    ("73", {"dim": 1408}, 20, 104_020_736, 5_181_536),
    *[("74", {"dim": 1536, "n_state": n}, 20, params, None) for n, params in N_SCAN.items()],
    ("74", {"dim": 1536, "n_state": 16}, 20, 98_237_952, 4_890_624),
    ("74", {"dim": 1536, "n_state": 32}, 20, 101_678_592, 5_062_656),
    ("74", {"dim": 1536, "n_state": 48}, 20, 105_119_232, 5_234_688),
    ("74", {"dim": 1536, "n_state": 64}, 20, 108_559_872, 5_406_720),
    ("E74-d-tiedkvq-t", {"dim": 1536}, 20, 103_644_672, 5_160_960),
    ("E74-d-tiedkvq-l", {"dim": 1536}, 20, 103_644_672, 5_160_960),
    ("E74-d-noz-t", {"dim": 1408}, 20, 98_612_096, 4_911_104),
    ("E74-d-full-t", {"dim": 1408}, 20, 104_018_816, None),
    ("e74d", {"dim": 1408, "projection": "full"}, 20, 104_020_736, None),
    ("E74-s-tiedkvq-t", {"dim": 1536}, 20, 103_644_672, 5_160_960),
    ("e74d", {"dim": 1536, "projection": "tied_kvq", "update": "simple"}, 20, 103_646_592, None),
    ("88", JANUARY | {"dim": 3328, "n_heads": 32, "n_state": 48}, 24, 494_227_328, 20_553_840),
    ("88", JANUARY | {"dim": 2944, "n_heads": 44, "n_state": 48}, 20, 500_827_168, 25_000_584),
    ("88", JANUARY | {"dim": 2944, "n_heads": 52, "n_state": 40}, 20, 493_761_728, 24_647_312),
    ("88", JANUARY | {"dim": 3328, "n_heads": 32, "n_state": 48, "gate": "silu"}, 24, 616_910_720, None),
    ("88", JANUARY | {"dim": 2944, "n_heads": 44, "n_state": 48, "gate": "silu"}, 20, 625_181_728, None),
    ("88", {"dim": 1920, "n_heads": 83, "n_state": 32, "gate": "silu"}, 17, 436_697_222, None),
)
"""Level key or seed row, fields, depth, whole model and, where the source gives it, one layer."""

D, d, n, N, r = 64, 128, 12, 5, 8
SHELL = D * d + n * D
FORMS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("63m-full", {"n_slots": N}, D * d + 2 * d * d + 2 * N * d + N * N + 2 * N + N * D),
    ("63m-rnn", {"n_slots": N}, D * d + 2 * d * d + 2 * N * d + 2 * N * N + 2 * N + N * D),
    ("63m-lite", {"n_slots": N}, D * d + 2 * d * d + 3 * N * d + N * N + 2 * N + d * D),
    ("63m-full", {"n_slots": N, "use_conv": True}, D * d + 2 * d * d + 2 * N * d + N * N + 2 * N + N * D + 5 * d),
    *[("74", {"n_state": n, "projection": p}, SHELL + k * n * d) for p, k in (("tied_kq", 2), ("tied_kvq", 1))],
    ("73cp", {"n_state": n}, SHELL + 4 * n * d + n),
    *[("74", {"n_state": n, "gate": g}, SHELL + 3 * n * d + 2 * n) for g in ("state", "retain")],
    ("74", {"n_state": n, "gate": "input"}, SHELL + 4 * n * d + n),
    ("74", {"n_state": n, "update": "simple"}, SHELL + 3 * n * d + 1),
    *[("74", {"n_state": n, "update": u}, SHELL + 4 * n * d + n) for u in ("ema", "retrieved_gate")],
    ("74", {"n_state": n, "update": "residual"}, SHELL + 3 * n * d + n),
    ("74", {"n_state": n, "update": "ntm"}, SHELL + 5 * n * d + 2 * n),
    ("74", {"n_state": n, "block_size": 3}, SHELL + 3 * n * d),
    ("74", {"n_state": n, "state": "low_rank", "rank": r}, SHELL + 3 * n * d + r * n),
    ("75", {"n_state": n}, SHELL + 4 * n * d + n),
    ("e75h4n32", {}, D * d + 4 * 128 * d + 128 + 128 * D),
)
"""Level key, fields and one layer by the closed form of the source's sheet."""

SIZED = ("63m", "63m-lite", "70", "71", "72", "73", "74", "73cp", "e74d", "E74-d-tiedkvq-t", "75", "e75h4n32", "88")
TARGETS = ("1M", "10M", "50M", "100M", "500M", "1B")


def counts(level: str, fields: dict[str, Any], depth: int) -> tuple[int, int]:
    """Whole model and one layer: counted on the meta device, and equal to the closed form."""
    ref, preset = registry().find_model(level)
    layer_cls = ref.load()
    cfg, lm_cfg = layer_cls.Config(**{**preset, **fields}), LMConfig(depth=depth)
    with torch.device("meta"):
        counted = counted_params(LM(layer_cls, cfg, lm_cfg))
    assert counted == lm_n_params(layer_cls, cfg, lm_cfg)
    return sum(counted.values()), sum(layer_cls.n_params(cfg).values())


def name(value: object) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("level", "fields", "depth", "params", "layer"), SEEDS, ids=name)
def test_counts(level: str, fields: dict[str, Any], depth: int, params: int, layer: int | None) -> None:
    whole, one = counts(level, fields, depth)
    assert whole == params
    assert layer in (one, None)


@pytest.mark.parametrize(("level", "fields", "layer"), FORMS, ids=name)
def test_forms(level: str, fields: dict[str, Any], layer: int) -> None:
    assert counts(level, {"dim": D, "expansion": 2.0, **fields}, 2)[1] == layer


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("level", SIZED)
def test_size(level: str, target: str) -> None:
    spec = model_spec(ModelSection(name=level, target=target), registry())
    assert spec.certificate.deviation is not None
    assert abs(spec.certificate.deviation) <= 0.005
    assert spec.layer_cfg.dim % 16 == 0
    assert 2 <= spec.lm_cfg.depth <= 48
