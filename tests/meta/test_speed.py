"""Tables of speed say what the recorded pages say."""

import json
import sys

import pytest
from rnn_lab.system.atomic import write_text_atomic
from rnn_lab_cli.main import main

from .source import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import speed

sys.path.pop(0)

SPREAD = {"median": 0.2, "q1": 0.19, "q3": 0.21, "n": 20}
FIGURES = {"ms": SPREAD, "bytes": 1, "flops": 0, "copy_share": 0.83, "matmul_share": None}
FORWARD = {**FIGURES, "ms": {**SPREAD, "median": 0.05}}
WIDE = {"dim": 640, "expansion": 2.0}
HEADER = {
    "date": "2026-01-02 03:04 UTC", "device": "GPU", "driver": "1", "python": "3", "torch": "2", "cuda": "13",
    "cudnn": 9, "triton": "3", "peers": {"mamba-ssm": None, "flash-linear-attention": "0.6"}, "commit": "0123456789ab",
}  # fmt: skip


def table(headers, rows):
    return "\n".join("|".join(map(str, row)) for row in (headers, *rows))


def row(**changes):
    return {
        "model": "e61", "fields": WIDE, "op": "recurrence", "recurrent": True, "state": [32, 32],
        "implementation": "fused", "mode": "graph", "implementation_kind": "backend", "status": "ok", "note": None,
        "forward": FORWARD, "forward_backward": FIGURES, **changes,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    def put(name, *rows, **changes):
        page = {
            "kind": "bench-kernels", "header": HEADER, "setting": speed.REFERENCE_SIZE,
            "ceilings": {"copy_bytes_per_s": 3e12, "matmul_flops_per_s": 7.8e14}, "rows": rows, **changes,
        }  # fmt: skip
        write_text_atomic(tmp_path / name, json.dumps(page))
        return tmp_path

    return put


def took(ms):
    return {**FIGURES, "ms": {**SPREAD, "median": ms}}


def outcomes(folder):
    """By the model of every row of the floors, and its other fields."""
    return {line.split("|")[1]: line.split("|")[-1] for line in speed.floors_block(folder, table).splitlines()}


def test_the_outcome_is_our_best_backend_under_a_graph(folder):
    where = folder(
        "a.json",
        row(implementation="slow", forward_backward=took(0.3)),
        row(),
        row(implementation_kind="peer", forward_backward=took(0.1)),
        row(implementation="mamba-ssm", forward_backward=took(0.1)),
        row(mode="eager", forward_backward=took(0.1)),
        row(op="causal_conv", forward_backward=took(0.1)),
        row(fields={**WIDE, "dim": 64}, forward_backward=took(0.1)),
        {**row(model="e68", status="wrong", reason="off"), "forward_backward": {}},
        row(model="e74", fields={"n_state": 64, "nonlinearity": "tanh"}),
        row(model="e74", fields={"n_state": 32, "nonlinearity": "linear"}),
        setting=speed.REFERENCE_SIZE | {"only implementation": "fused or slow"},
    )
    found = outcomes(where)
    assert found["e61:dim=640,expansion=2.0"] == "0.2 (83% of copy)"
    assert found["e68:dim=640,expansion=2.0"] == found["e74:n_state=32,nonlinearity=tanh"] == "not measured"
    assert found["e74:n_state=64,nonlinearity=tanh"] == "0.2 (83% of copy)"


def test_the_outcome_is_of_the_newest_page_that_has_it(folder):
    folder("a.json", row(forward_backward=took(0.4)), header={**HEADER, "date": "2026-01-03 00:00 UTC"})
    folder("b.json", row(forward_backward=took(0.5)), header={**HEADER, "date": "2026-01-01 00:00 UTC"})
    where = folder("c.json", row(model="e64"), header={**HEADER, "date": "2026-01-04 00:00 UTC"})
    assert outcomes(where)["e61:dim=640,expansion=2.0"].startswith("0.4 ")


@pytest.mark.parametrize(
    "changes", [{"setting": {**speed.REFERENCE_SIZE, "batch": 2}}, {"header": {**HEADER, "device": "CPU"}}]
)
def test_other_sizes_and_cpus_are_no_outcome(folder, changes):
    assert "0.2 (" not in speed.floors_block(folder("a.json", row(), **changes), table)


def test_a_page_becomes_a_table_with_its_machine(folder):
    text = speed.kernels_block(
        folder("a.json", row(), row(status="wrong", reason="r = 1", forward={}, forward_backward={})), table
    )
    assert (
        "2026-01-02 03:04 UTC, GPU, driver 1, torch 2" in text
        and "flash-linear-attention 0.6, commit 0123456789, batch 32, seq_len 512, dtype bfloat16" in text
        and "copy 3.00 TB/s, matmul 780 TFLOP/s" in text
    )
    assert "e61|32 x 32|recurrence|fused|graph|0.05 (0.19 to 0.21)|0.2 (0.19 to 0.21)|0.391|83.0%||" in text
    assert "e61|32 x 32|recurrence|fused|graph||||||wrong: r = 1" in text


@pytest.mark.parametrize("block", [speed.kernels_block, speed.train_block, speed.decode_block])
def test_without_pages_nothing_is_claimed(block, tmp_path):
    assert block(tmp_path, table).startswith("Not measured")


def test_what_the_commands_write_can_be_shown(tmp_path, capsys):
    sizes = {
        "kernels": "--batch 2 --seq-len 4 --seconds 0.001",
        "train": "--batch-size 2 --seq-len 4 --steps 3",
        "decode": "--batch-size 1 --tokens 3",
    }
    for name, options in sizes.items():
        out = str(tmp_path / f"{name}.json")
        model = "mamba2:dim=64" if name == "kernels" else "mamba2:dim=64,depth=1"
        assert main(["bench", name, "--device", "cpu", "--model", model, *options.split(), "--out", out]) == 0
    assert "|ssd|reference|eager|" in speed.kernels_block(tmp_path, table)
    assert "refused: it needs a CUDA device" in speed.train_block(tmp_path, table)
    assert "mamba2:dim=64,depth=1|1|eager|" in speed.decode_block(tmp_path, table)
