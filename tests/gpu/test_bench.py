"""bench on a GPU: every mode gives figures, and they hold together."""

import json

import pytest
import torch
from rnn_lab_cli.main import main

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def page(capsys):
    def call(text):
        assert main(["bench", *text.split(), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_kernels_are_measured_in_a_graph_and_eagerly(page):
    found = page("kernels --model e61:dim=64 --model e1:dim=128,expansion=1 --batch 4 --seq-len 32 --seconds 0.02")
    loops = [row for row in found["rows"] if row["implementation"] == "reference" and row["op"] == "recurrence"]
    assert [row["mode"] for row in loops] == ["graph", "eager"] * 2
    assert all(row["status"] == "ok" for row in loops), loops
    assert all(0 < row["forward"]["ms"]["median"] <= row["forward_backward"]["ms"]["median"] for row in loops)
    assert loops[0]["input_sets"] > 1
    cudnn = [row for row in found["rows"] if str(row["implementation"]).startswith("cuDNN")]
    assert cudnn and all(row["status"] == "ok" for row in cudnn if row.get("mode") == "eager"), cudnn
    assert found["ceilings"]["copy_bytes_per_s"] > 1e11 and found["header"]["driver"]


def test_training_steps_are_measured_in_a_graph_and_eagerly(page):
    found = page("train --model e61:dim=64,depth=2 --model llama:dim=64,depth=2 --batch-size 4 --seq-len 32 --steps 5")
    assert [row["mode"] for row in found["rows"]] == ["eager", "graph"] * 2
    assert all(row["status"] == "ok" for row in found["rows"]), found["rows"]
    for eager, graph in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        assert graph["loss"] == pytest.approx(eager["loss"], rel=1e-2)
        assert 0 <= graph["launch_overhead"] < 1 and graph["gpu_busy_ms"] > 0


def test_generation_is_measured_in_a_graph_and_eagerly(page):
    found = page("decode --model e61:dim=64,depth=2 --batch-size 1,4 --tokens 16")
    assert [(row["batch"], row["mode"]) for row in found["rows"]] == [
        (1, "graph"), (1, "eager"), (4, "graph"), (4, "eager"),
    ]  # fmt: skip
    assert all(row["status"] == "ok" for row in found["rows"]), found["rows"]
