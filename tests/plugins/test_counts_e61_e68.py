"""Parameter counts of E61-E68 against the source's, to the last digit, and the sizes that the solver reaches."""

import pytest
import torch
from rnn_lab.config import ModelSection
from rnn_lab.lm import LM, LMConfig, counted_params, lm_n_params
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry

BENCHMARK = {
    "61": (640, 98_532_480, 4_917_760),
    "62": (640, 98_532_480, 4_917_760),
    "63": (512, 84_068_864, 4_196_352),
    "64": (640, 98_532_480, 4_917_760),
    "65": (640, 98_558_080, 4_919_040),
    "66": (640, 114_916_480, 5_736_960),
    "67": (640, 98_558_080, 4_919_040),
    "68": (640, 98_583_680, 4_920_320),
}
"""dim, whole model and one layer in the 100M benchmark: depth 20, expansion 2."""

LADDER = {
    "61": ((25, 49_334_784, 1_967_616), (23, 102_012_672, 4_425_984)),
    "62": ((25, 49_334_784, 1_967_616), (23, 102_012_672, 4_425_984)),
    "63": ((19, 48_732_672, 2_557_440), (17, 98_012_928, 5_753_088)),
    "64": ((25, 49_334_784, 1_967_616), (23, 102_012_672, 4_425_984)),
    "65": ((25, 49_353_984, 1_968_384), (23, 102_039_168, 4_427_136)),
    "66": ((22, 49_918_464, 2_262_528), (20, 102_003_456, 5_089_536)),
    "67": ((25, 49_353_984, 1_968_384), (23, 102_039_168, 4_427_136)),
    "68": ((25, 49_373_184, 1_969_152), (23, 102_065_664, 4_428_288)),
}
"""depth, whole model and one layer of the source's own 50m and 100m shapes: dim 512 and 768, expansion 1.5."""

D, d = 640, 1280
SHELL = 2 * D * d
VARIANTS = {
    "61b": SHELL + 2 * d * d + 2 * d,
    "61c": SHELL + d * d + d,
    "62b": SHELL + 3 * d * d + 3 * d,
    "62c": SHELL + d * d + d,
    "63a": SHELL + 3 * d * d + 2 * d,
    "63b": SHELL + 4 * d * d + 3 * d,
    "63c": SHELL + 6 * d * d + 3 * d,
    "63d": SHELL + 3 * d * d + 2 * d,
    "66r16": SHELL + 2 * d * d + 2 * d * 16 + 2 * d,
    "66r64": SHELL + 2 * d * d + 2 * d * 64 + 2 * d,
    "66r128": SHELL + 2 * d * d + 2 * d * 128 + 2 * d,
    "67d": SHELL + 2 * d * d + 3 * d,
    "67lr": SHELL + 2 * d * d + 2 * d * 160 + 2 * d,
    "68s": SHELL + 2 * d * d + 4 * d,
    "68i": SHELL + 2 * d * d + 4 * d,
}
"""One layer of every other level key at the benchmark's width."""

SIZED = (*BENCHMARK, "61c", "62b", "63c", "66r16", "67lr")
TARGETS = ("1M", "10M", "50M", "100M", "500M", "1B")


def counts(level: str, dim: int, depth: int, expansion: float) -> tuple[int, int]:
    """Whole model and one layer: counted on the meta device, and equal to the closed form."""
    ref, preset = registry().find_model(level)
    layer_cls = ref.load()
    cfg = layer_cls.Config(dim=dim, expansion=expansion, **preset)
    lm_cfg = LMConfig(depth=depth, norm="rms")
    with torch.device("meta"):
        counted = counted_params(LM(layer_cls, cfg, lm_cfg))
    assert counted == lm_n_params(layer_cls, cfg, lm_cfg)
    layer = sum(layer_cls.n_params(cfg).values())
    assert depth * layer == sum(n for name, n in counted.items() if name.startswith("layers."))
    return sum(counted.values()), layer


@pytest.mark.parametrize("level", BENCHMARK)
def test_benchmark(level: str) -> None:
    dim, params, layer = BENCHMARK[level]
    assert counts(level, dim, 20, 2.0) == (params, layer)


@pytest.mark.parametrize("level", LADDER)
def test_ladder(level: str) -> None:
    for dim, (depth, params, layer) in zip((512, 768), LADDER[level], strict=True):
        assert counts(level, dim, depth, 1.5) == (params, layer)


@pytest.mark.parametrize("level", VARIANTS)
def test_variant(level: str) -> None:
    assert counts(level, D, 20, 2.0)[1] == VARIANTS[level]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("level", SIZED)
def test_size(level: str, target: str) -> None:
    spec = model_spec(ModelSection(name=level, target=target), registry())
    assert spec.certificate.deviation is not None
    assert abs(spec.certificate.deviation) <= 0.005
    assert spec.layer_cfg.dim % 16 == 0
    assert 2 <= spec.lm_cfg.depth <= 48
