"""Family e0_e5: the source's exact parameter counts, and sizes that the solver reaches."""

from typing import Any

import pytest
import torch
from rnn_lab.lm import LM, LMConfig, counted_params, lm_n_params
from rnn_lab.registry import registry
from rnn_lab.sizing import solve

SEEDS: dict[str, tuple[str, dict[str, Any], int, str, int, int]] = {
    "e0_stock": ("e0", {"dim": 512}, 19, "layer", 48_742_912, 2_557_440),
    "e1_baseline": ("e1", {"dim": 512}, 21, "layer", 49_714_944, 2_360_064),
    "e1_d1024": ("e1", {"dim": 1024, "expansion": 1.0}, 5, "layer", 26_493_952, 5_243_904),
    "e1_d512": ("e1", {"dim": 512, "expansion": 1.0}, 21, "layer", 27_689_472, 1_311_232),
    "E1 100M": ("e1", {"dim": 640, "expansion": 2.0}, 20, "rms", 114_890_880, 5_735_680),
    "e2 50m": ("e2", {"dim": 512}, 21, "layer", 49_715_112, 2_360_072),
    "e3 50m": ("e3", {"dim": 512}, 28, "layer", 49_899_744, 1_776_392),
    "e4_1.5x": ("e4", {"dim": 512}, 25, "layer", 50_941_696, 2_031_360),
    "e4_2x": ("e4", {"dim": 512, "expansion": 2.0}, 17, "layer", 49_187_840, 2_884_608),
    "e4_3x": ("e4", {"dim": 512, "expansion": 3.0}, 10, "layer", 49_954_816, 4_981_248),
    "e4_4x": ("e4", {"dim": 512, "expansion": 4.0}, 7, "layer", 53_368_832, 7_604_224),
    "e5 50m": ("e5", {"dim": 512}, 48, "layer", 9_643_008, 197_120),
    "e5_d768_r539": ("e5", {"dim": 768, "rank": 539}, 20, "layer", 49_918_464, 2_484_480),
    "e5_d1024_r404": ("e5", {"dim": 1024, "rank": 404}, 20, "layer", 49_969_152, 2_483_200),
    "e5_d1536_r270": ("e5", {"dim": 1536, "rank": 270}, 20, "layer", 50_254_848, 2_489_856),
    "e5_d2048_r200": ("e5", {"dim": 2048, "rank": 200}, 20, "layer", 49_803_264, 2_459_648),
    "e5_d3072_r133": ("e5", {"dim": 3072, "rank": 133}, 20, "layer", 50_006_016, 2_454_528),
    "e5_d4096_r99": ("e5", {"dim": 4096, "rank": 99}, 20, "layer", 49_963_008, 2_437_120),
    "e5_d6144_r65": ("e5", {"dim": 6144, "rank": 65}, 20, "layer", 49_876_992, 2_402_304),
    "E42 100M": ("e42", {"dim": 768}, 20, "rms", 94_615_296, 4_720_128),
    "E56 100M": ("e56", {"dim": 640}, 20, "rms", 114_890_880, 5_735_680),
}
"""Model, fields, depth and norm; parameters of the language model and of one layer."""

LADDER = {
    "e0": ((19, 48_732_672), (17, 98_012_928)),
    "e1": ((21, 49_703_680), (19, 101_093_760)),
    "e2": ((21, 49_703_848), (19, 101_093_912)),
    "e3": ((28, 49_884_896), (25, 100_008_776)),
    "e4": ((25, 50_928_384), (22, 100_804_608)),
    "e5": ((48, 9_617_920), (48, 21_504_768)),
    "e42": ((36, 49_722_880), (32, 99_349_248)),
    "e56": ((21, 49_703_680), (19, 101_093_760)),
}
"""Depth and parameters of the source's shapes for 50M (D 512) and 100M (D 768), expansion 1.5, RMSNorm."""

TARGETS = (1_000_000, 10_000_000, 50_000_000, 100_000_000, 500_000_000, 1_000_000_000)


def counts(name: str, fields: dict[str, Any], depth: int, norm: str) -> tuple[int, int]:
    """Parameters of the language model and of a layer, counted on the meta device and equal to the closed form."""
    model = registry().models[name].load()
    cfg, lm_cfg = model.Config(**fields), LMConfig(depth=depth, norm=norm)  # type: ignore[arg-type]
    with torch.device("meta"):
        lm = LM(model, cfg, lm_cfg)
    assert counted_params(lm) == lm_n_params(model, cfg, lm_cfg)
    return sum(p.numel() for p in lm.parameters()), sum(p.numel() for p in lm.layers[0].parameters())


@pytest.mark.parametrize("row", SEEDS)
def test_counts_of_the_seeds(row: str) -> None:
    name, fields, depth, norm, total, layer = SEEDS[row]
    assert counts(name, fields, depth, norm) == (total, layer)


@pytest.mark.parametrize("name", LADDER)
def test_counts_of_the_ladder(name: str) -> None:
    expansion = {} if name == "e5" else {"expansion": 1.5}
    for dim, (depth, total) in zip((512, 768), LADDER[name], strict=True):
        assert counts(name, {"dim": dim, **expansion}, depth, "rms")[0] == total


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LADDER)
def test_the_solver_reaches_the_target(name: str, target: int) -> None:
    model = registry().models[name].load()
    cfg, lm_cfg = solve(model, {}, {}, target)
    params = sum(lm_n_params(model, cfg, lm_cfg).values())
    assert abs(params - target) <= 0.005 * target
    assert cfg.dim % 16 == 0
    assert 2 <= lm_cfg.depth <= 48
