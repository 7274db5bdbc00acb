"""`rnn-lab memory`: for people and for programs."""


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
