"""Latencies of clusters: the kernels compile, and the floor moves with every figure that it is made of."""

import json
from dataclasses import replace

import pytest
import torch
from rnn_lab.bench import floor, latencies
from rnn_lab.bench.cases import Source
from rnn_lab.bench.latencies import Latencies, floor_us
from rnn_lab.config import ModelSection
from rnn_lab.kernels import cuda_jit
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry

FOUND = Latencies({8: 0.62, 16: 0.68}, {8: 0.5, 16: 0.55}, {8: 80e9, 16: 80e9}, 0.105, 0.35, 4e12)
"""About what one H100 has."""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_every_kernel_compiles_and_spills_nothing(arch):
    if reason := cuda_jit.missing():
        pytest.skip(reason)
    found = cuda_jit.resources(latencies.source(), arch)
    assert found.keys() == latencies.SIGNATURES.keys()
    assert all(one.spilled == one.stack == 0 for one in found.values()), found


def test_the_floor_by_hand():
    # 7 clusters of 16 for 32 sequences: 5 rows, padded to 8; the other way 3 rows in each of 15 of 8.
    product = 2 * 8 * 1024 * 1024 / 16 / 4e12
    wide = 2 * 0.55 + 1e6 * (2 * product + 2 * 5 * 1024 * 2 / 80e9)
    narrow = 2 * 0.5 + 1e6 * (4 * product + 2 * 3 * 1024 * 2 / 80e9)
    assert floor_us(FOUND, 1024, 32) == pytest.approx(min(wide, narrow))
    product = 2 * 8 * 512 * 4 * 512 / 16 / 4e12  # four gates: as many rows of the matrix, and of what comes back
    wide = 2 * 0.55 + 1e6 * (2 * product + 2 * 5 * 512 * 5 / 80e9)
    narrow = 2 * 0.5 + 1e6 * (4 * product + 2 * 3 * 512 * 5 / 80e9)
    assert floor_us(FOUND, 512, 32, gates=4) == pytest.approx(min(wide, narrow))


def test_it_grows_with_width_batch_and_gates():
    assert floor_us(FOUND, 512, 32) < floor_us(FOUND, 1024, 32) < floor_us(FOUND, 1024, 256)
    assert floor_us(FOUND, 512, 32) < floor_us(FOUND, 512, 32, gates=4)
    assert floor_us(FOUND, 2048, 32) is None


@pytest.mark.parametrize(
    "worse",
    [
        {"exchange": {8: 1.0, 16: 1.1}},
        {"ingest": {8: 8e9, 16: 8e9}},
        {"products": 1e12},
    ],
)
def test_every_figure_counts(worse):
    assert floor_us(replace(FOUND, **worse), 768, 32) > 1.2 * floor_us(FOUND, 768, 32)


def test_refusals(monkeypatch):
    assert "no clusters" in latencies.refuses(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert "8.9" in latencies.refuses(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_they_are_what_clusters_take():
    device = torch.device("cuda")
    if reason := latencies.refuses(device):
        pytest.skip(reason)
    found = latencies.latencies(device, 0.02)
    assert all(0.1 < us < 3 for us in (*found.barrier.values(), *found.exchange.values())), found
    assert 0.03 < found.load < 1 and 0.1 < found.signal < 2, found
    assert all(1e9 < rate < 1e12 for rate in found.ingest.values()) and 1e12 < found.products < 1e13, found


def dense_case(name):
    spec = model_spec(ModelSection(name=name, depth=1, fields={"dim": 128, "expansion": 1}), registry())
    return Source(name, spec, torch.bfloat16, torch.device("cpu")).case("recurrence", 2, 3)


@pytest.mark.parametrize(("name", "gates"), [("e1", 1), ("gru", 3), ("lstm", 4)])
def test_the_row_of_a_dense_recurrence(name, gates, monkeypatch):
    case = dense_case(name)
    announced, refused = floor.floor_rows(case, {"op": "recurrence"})
    assert "status" not in announced and refused == announced | {"status": "refused", "reason": "cpu has no clusters"}
    monkeypatch.setattr(floor, "refuses", lambda device: None)
    monkeypatch.setattr(floor, "_measured", lambda device: FOUND)
    *_, row = floor.floor_rows(case, {"op": "recurrence"})
    assert row["us_per_step"] == floor_us(FOUND, 128, 2, gates)
    assert "signal 0.35" in row["note"] and json.dumps(row)


@pytest.mark.parametrize("name", ["e61", "e42"])
def test_others_have_none(name):
    assert not list(floor.floor_rows(dense_case(name), {}))
