"""Collider's backward on a GPU: graphs are captured, and a wide model's filtered pass does less."""

import pytest
import torch
from rnn_lab.config import ModelSection
from rnn_lab.e3.backward import measure
from rnn_lab.registry import registry

pytestmark = pytest.mark.gpu


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_backward_is_timed_in_graphs_and_filtering_makes_it_shorter():
    found = measure(
        ModelSection(name="e61", depth=2, fields={"dim": 1024}), registry(), batch_size=32, seq_len=512, sparsity=0.5,
        dtype=torch.bfloat16, device=torch.device("cuda"),
    )  # fmt: skip
    assert found["graph"] == {"used": True, "reason": None}
    assert found["backward_reduction"]["low"] > 0 and found["dense"]["backward_ms"] > found["dense"]["forward_ms"] / 2
