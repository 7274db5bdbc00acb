"""`rnn-lab memory`: for people and for programs."""

import json

import pytest


def test_memory_is_predicted_per_optimizer(rnn_lab, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        '[model]\nname = "e61"\ndim = 1024\ndepth = 2\n[optimizer]\nname = "muon8bit"\nblock_size = 128\n'
    )
    page = rnn_lab("memory", "--config", str(config), "--json").json
    assert page["params"] == page["matrix_params"] + page["aux_params"] == page["weight_bytes"] // 4
    own = page["configured"]["state"]
    assert own["by_category"]["scales"] == 4 * own["by_category"]["momentum"] // 128
    assert own["bytes"] == sum(own["by_category"].values()) and 0.72 < own["vs_muon"] < 0.75
    assert {row["label"] for row in page["variants"]} >= {"Muon", "AdamW", "8-bit GaLore-Muon, 8-bit AdamW"}
    assert any(row["rule"] == "8-bit Muon" and row["name"] == "layers.*.leak.weight" for row in page["routing"])
    shown = rnn_lab("memory", "e61", "--dim", "64", "--depth", "2", "-o", "optimizer.galore_rank=8").out
    assert "state by optimizer" in shown and "schedule-free AdamW" in shown and "routing" not in shown


def test_an_unknown_optimizer_is_named(rnn_lab):
    done = rnn_lab("memory", "e61", "--dim", "64", "--optimizer", "muno")
    assert done.code == 2 and "muon" in done.err


@pytest.mark.parametrize("heads", ["linear", "sequential", "layer"])
def test_heads_count_as_a_run_has_them(rnn_lab, corpus, tmp_path, heads):
    """What is predicted of a file is what training by the same file measures, to the byte."""
    config, out = tmp_path / "c.toml", tmp_path / "run"
    config.write_text(
        '[model]\nfamily = "e61"\ndim = 32\ndepth = 5\n[training]\ntotal_steps = 2\nbatch_size = 2\nseq_length = 32\n'
        "use_8bit_optim = true\nuse_galore = true\ngalore_rank = 4\ngalore_min_dim = 16\nuse_mtp = true\n"
        f'mtp_variant = "{heads}"\nmtp_match_params = {str(heads == "layer").lower()}\nschedule_type = "constant"\n'
    )
    page = rnn_lab("memory", "--config", str(config), "--json").json
    assert rnn_lab("fit", "--config", str(config), "--data", str(corpus), "--out", str(out), "--quiet").code == 0
    measured = json.loads((out / "result.json").read_text())["optimizer_state"]
    assert page["configured"]["state"]["by_category"] == measured["by_category"]
    assert [page[f"{each}_bytes"] for each in ("weight", "gradient")] == [
        measured[f"{each}_bytes"] for each in ("weight", "gradient")
    ]
