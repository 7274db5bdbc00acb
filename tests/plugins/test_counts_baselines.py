"""Parameter counts of the baselines against the source's, to the last digit, and the sizes that the solver reaches."""

from typing import Any

import pytest
import torch
from rnn_lab.config import ModelSection
from rnn_lab.lm import LM, LMConfig, counted_params, lm_n_params
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry

SEEDS: tuple[tuple[str, dict[str, Any], int, int, int], ...] = (
    ("mamba2", {"dim": 672, "n_state": 64}, 18, 50_928_750, 2_818_399),
    ("mamba2", {"dim": 896, "n_state": 128}, 20, 101_936_528, 5_083_476),
    ("mamba2", {"dim": 1792, "n_state": 128}, 24, 476_939_712, 19_849_640),
    ("fla-gdn", {"dim": 768}, 20, 95_020_016, 4_740_364),
    ("gdn", {"dim": 1664}, 24, 533_779_696, 22_221_338),
    ("gdn", {"dim": 1408}, 30, 477_808_916, 15_913_494),
    ("gdn", {"dim": 1792}, 19, 490_110_228, 25_769_244),
    ("gdn", {"dim": 1920}, 16, 473_801_056, 29_579_806),
    ("gdn", {"dim": 2048}, 16, 539_007_488, 33_653_024),
    ("gated_deltanet", {"dim": 2560}, 20, 1_052_158_240, 52_572_456),
    ("llama", {"dim": 640, "form": "doubly_residual"}, 20, 101_783_680, 5_080_320),
    ("llama", {"dim": 640}, 20, 101_783_680 - 20 * 640, 5_080_320),
    ("mingru", {"dim": 2944}, 14, 243_521_792, 2 * 2944**2),
    ("minlstm", {"dim": 1792}, 31, 299_220_992, 3 * 1792**2),
    ("mingru", {"dim": 640, "expansion": 1.5}, 10, 18_609_920, 3 * 640 * 960),
    ("minlstm", {"dim": 640, "expansion": 1.5}, 10, 24_753_920, 4 * 640 * 960),
    ("gru", {"dim": 384}, 20, 82_781_952, 4_133_376),
    ("cudagru", {"dim": 384}, 20, 82_735_872, 4_131_072),
    ("lstm", {"dim": 384}, 20, 106_405_632, 5_314_560),
    ("cudalstm", {"dim": 384}, 20, 106_344_192, 5_311_488),
)
"""Model, fields, depth, whole model and one layer, in the family's own shell."""

SIZED = ("mamba2", "gdn", "llama", "mingru", "minlstm", "gru", "cudagru", "lstm", "cudalstm")
TARGETS = ("1M", "10M", "50M", "100M", "500M", "1B")


def _id(value: object) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("name", "fields", "depth", "params", "layer"), SEEDS, ids=_id)
def test_counts(name: str, fields: dict[str, Any], depth: int, params: int, layer: int) -> None:
    ref, preset = registry().find_model(name)
    layer_cls = ref.load()
    cfg = layer_cls.Config(**{**preset, **fields})
    lm_cfg = LMConfig(**{**layer_cls.lm_defaults, "depth": depth})
    with torch.device("meta"):
        counted = counted_params(LM(layer_cls, cfg, lm_cfg))
    assert {key: n for key, n in lm_n_params(layer_cls, cfg, lm_cfg).items() if n} == counted
    assert sum(layer_cls.n_params(cfg).values()) == layer
    assert sum(counted.values()) == params


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SIZED)
def test_solver_reaches(name: str, target: str) -> None:
    spec = model_spec(ModelSection(name=name, target=target), registry(), must_reach=False)
    assert spec.certificate.on_target, spec.certificate
    assert spec.layer_cfg.dim % 16 == 0
    assert 2 <= spec.lm_cfg.depth <= 48


@pytest.mark.parametrize(("dim", "heads"), [(64, 1), (256, 2), (272, 2), (768, 6), (1104, 8), (1664, 13), (2032, 8)])
def test_heads_of_gdn(dim: int, heads: int) -> None:
    cfg = registry().models["gdn"].load().Config(dim=dim)
    assert (cfg.heads, cfg.d_key, cfg.d_value) == (heads, dim // heads, 2 * dim // heads)


@pytest.mark.parametrize(("dim", "heads", "hidden"), [(48, 1, 256), (96, 1, 256), (640, 10, 1792), (768, 12, 2048)])
def test_shape_of_llama(dim: int, heads: int, hidden: int) -> None:
    cfg = registry().models["llama"].load().Config(dim=dim)
    assert (cfg.heads, cfg.d_hidden) == (heads, hidden)
