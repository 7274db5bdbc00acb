"""The seeds as data: every row of every table is there, and every count is ours."""

import re
import time
from functools import cache

import pytest
from rnn_lab.config import ModelSection, resolve
from rnn_lab.modelspec import model_spec
from rnn_lab.presets import Preset, all_presets
from rnn_lab.registry import registry
from rnn_lab_cli.layers import preset_layer

TABLES: dict[str, dict[str, str]] = {
    "seed000": {
        "Reference Results": "mamba2_50m e5_d1536_r270 e5_d2048_r200 e5_d1024_r404 e1_50m e5_d768_r539",
        "E5 Dimension Scaling Results": "e5_d1536_r270 e5_d2048_r200 e5_d3072_r133 e5_d4096_r99 e5_d6144_r65",
        "E1 Depth vs Width (at ~27M params)": "e1_d1024 e1_d512",
    },
    "seed001": {
        "Configurations": "baseline mtp_only muon_8bit galore2 full",
        "Baseline vs E3 Full": "expected_data_efficiency expected_optimizer_memory expected_gpu_utilization "
        "expected_throughput expected_quality",
        "Memory Breakdown (3B model)": "memory_model_weights memory_optimizer_state memory_activations memory_total",
    },
    "seed002": {
        "E88 Does Not Match Baselines at 500M Scale": "mamba2 fla-gdn e88_d24_h32_n48 e88_d20_h44_n48 e88_d20_h52_n40",
        "Best by n_state": "overnight_n48 overnight_n40 overnight_n32 overnight_n24 overnight_n16",
        "Best by depth": "overnight_d20 overnight_d24 overnight_d28 overnight_d32 overnight_d36 overnight_d40",
        "Best E88 Configuration at 500M": "e88_d24_h32_n48",
        "Linear vs Tanh: NOT the Problem": "e88_tanh e88_linear",
        "SiLU Gating: Partial Improvement": "e88_silu_gate e88_no_gate e88_sigmoid_gate",
        "Updated comparison (30 min)": "mamba2 fla-gdn e88_silu_gate e88_no_gate",
    },
    "seed003": {
        f"=== {name} ===": name for name in ("e0_stock", "e1_baseline", "e4_1.5x", "e4_2x", "e4_3x", "e4_4x", "mamba2")
    },
    "seed004": {
        "Best Performing Models": "mamba2 e61 e67 e68 e62 e65 e63 e56 e1 e42 e64 e66 llama",
        "E74 Full Matrix (Delta Rule Associative Memory)": "e74_n16 e74_n32 e74_n48 e74_n64",
        "E74 Diagonal (Simple Delta Rule)": "e74-d-tiedkvq-t e74-d-noz-t e74-d-full-t e74-s-tiedkvq-t e74-d-tiedkvq-l",
        "Failed/Unstable Models": "e70 e71 e72 e73 e63m fla-gdn",
    },
}
"""Rows of the seed documents by table, as the presets call them."""

EXACT = {
    "seed000/mamba2_50m": 50_928_750,
    "seed000/e1_50m": 49_714_944,
    "seed000/e1_d1024": 26_493_952,
    "seed000/e1_d512": 27_689_472,
    "seed000/e5_d768_r539": 49_918_464,
    "seed000/e5_d1024_r404": 49_969_152,
    "seed000/e5_d1536_r270": 50_254_848,
    "seed000/e5_d2048_r200": 49_803_264,
    "seed000/e5_d3072_r133": 50_006_016,
    "seed000/e5_d4096_r99": 49_963_008,
    "seed000/e5_d6144_r65": 49_876_992,
    "seed002/e88_d24_h32_n48": 494_227_328,
    "seed002/e88_d20_h44_n48": 500_827_168,
    "seed002/e88_d20_h52_n40": 493_761_728,
    "seed002/mamba2": 476_939_712,
    "seed002/fla-gdn": 533_779_696,
    "seed003/e0_stock": 48_742_912,
    "seed003/e1_baseline": 49_714_944,
    "seed003/e4_1.5x": 50_941_696,
    "seed003/e4_2x": 49_187_840,
    "seed003/e4_3x": 49_954_816,
    "seed003/e4_4x": 53_368_832,
    "seed003/mamba2": 50_928_750,
    "seed004/mamba2": 101_936_528,
    "seed004/llama": 131_425_920 - 256 * 640,
    **dict.fromkeys(("seed004/e61", "seed004/e62", "seed004/e64"), 98_532_480),
    **dict.fromkeys(("seed004/e65", "seed004/e67"), 98_558_080),
    "seed004/e68": 98_583_680,
    "seed004/e63": 84_068_864,
    "seed004/e66": 114_916_480,
    **dict.fromkeys(("seed004/e1", "seed004/e56"), 114_890_880),
    "seed004/e42": 94_615_296,
    "seed004/e63m": 82_610_880,
    "seed004/e70": 98_612_116,
    "seed004/e71": 104_022_656,
    "seed004/e72": 104_024_576,
    "seed004/e73": 104_020_736,
    "seed004/e74_n16": 98_237_952,
    "seed004/e74_n32": 101_678_592,
    "seed004/e74_n48": 105_119_232,
    "seed004/e74_n64": 108_559_872,
    **dict.fromkeys(
        ("seed004/e74-d-tiedkvq-t", "seed004/e74-d-tiedkvq-l", "seed004/e74-s-tiedkvq-t"), 103_644_672
    ),
    "seed004/e74-d-noz-t": 98_612_096,
    "seed004/e74-d-full-t": 104_018_816,
}  # fmt: skip


@cache
def presets() -> dict[str, Preset]:
    return all_presets(registry())


def configured() -> list[str]:
    return [name for name, preset in presets().items() if preset.row.config is not None]


@pytest.mark.parametrize("seed", TABLES)
def test_every_row_of_every_table_is_a_preset(seed: str) -> None:
    wanted = {f"{seed}/{row}" for rows in TABLES[seed].values() for row in rows.split()}
    assert {name for name, preset in presets().items() if preset.seed == seed} == wanted
    printed = {
        (printed.table.removesuffix(": E74 diagonal"), name)
        for name, preset in presets().items()
        if preset.seed == seed
        for printed in preset.row.printed
    }
    assert printed == {(table, f"{seed}/{row}") for table, rows in TABLES[seed].items() for row in rows.split()}


def test_every_plugin_reads_its_files_without_a_problem() -> None:
    presets()
    assert not [info.problems for info in registry().plugins if info.problems]


def test_every_seed_row_is_counted_or_says_why_not() -> None:
    rows = {name for name, preset in presets().items() if preset.seed != "elman"}
    assert {name for name in configured() if name in rows} == set(EXACT)
    assert all(len(presets()[name].row.reason or "") > 10 for name in rows - set(EXACT))


@pytest.mark.parametrize("name", EXACT)
def test_counts_are_exact_and_match_what_was_printed(name: str) -> None:
    preset = presets()[name]
    assert preset.count(registry()) == EXACT[name]
    assert preset.row.params in (None, EXACT[name])
    assert preset.matches(EXACT[name]) is not False
    assert (preset.printed_params is None) or preset.matches(EXACT[name]) is True


@pytest.mark.parametrize("name", configured())
def test_a_preset_builds_and_its_recipe_is_a_configuration(name: str) -> None:
    preset = presets()[name]
    config = resolve([preset_layer(name, registry(), with_recipe=True)]).config
    assert config.train.minutes or config.train.steps
    assert config.model.target is None or preset.row.config is None or "dim" not in preset.row.config
    small = {"dim": 64, "depth": 1, "rank": 8, "n_heads": 2, "n_state": 8, "head_dim": 32, "hidden_dim": 64}
    table = {**(preset.row.config or {}), "dim": 64, "depth": 1}
    table |= {key: value for key, value in small.items() if key in table}
    own = {key: table.pop(key) for key in ("name", "depth", "norm", "shell") if key in table}
    spec = model_spec(ModelSection(**own, fields=table), registry())
    assert spec.certificate.params == sum(p.numel() for p in spec.build().parameters())


def test_seed_rows_say_how_they_were_run() -> None:
    silent = [name for name, p in presets().items() if p.seed not in ("elman", "seed001") and not p.history]
    assert not silent
    assert all(printed.loss or printed.other for p in presets().values() for printed in p.row.printed)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("seed000/e5_d3072_r133", "half the bytes"),
        ("seed000/e5_d6144_r65", "quarter of the bytes"),
        ("seed002/e88_linear", "kernel with tanh"),
        ("seed002/overnight_n48", "mean over the whole run"),
        ("seed002/e88_d20_h44_n48", "output norm"),
        ("seed003/e1_baseline", "not comparable"),
        ("seed004/e61", "not reproducible"),
        ("seed004/e63m", "64 slots"),
        ("seed004/e71", "reference equations train"),
        ("seed004/e74-d-noz-t", "no autograd"),
        ("seed004/fla-gdn", "second-next byte"),
        ("seed004/llama", "second-next byte"),
        ("seed004/mamba2", "Mamba-1"),
    ],
)
def test_wrong_or_confounded_rows_carry_a_note(name: str, word: str) -> None:
    assert any(word in note for note in presets()[name].notes)


def test_e74_rows_have_the_seeds_shell() -> None:
    rows = [preset for name, preset in presets().items() if re.match(r"seed004/e74", name)]
    assert len(rows) == 9
    for preset in rows:
        config = preset.row.config
        assert config is not None and config["shell"] == "e74"
        alias = registry().find_model(config["name"])[1]
        assert {**alias, **config}["activation"] == "none"


def test_listing_all_presets_is_quick() -> None:
    found = registry()
    began = time.process_time()
    for preset in all_presets(found).values():
        preset.count(found)
    assert time.process_time() - began < 3
