"""Choosing a device."""

import torch
from rnn_lab.train.device import pick_device


def test_a_gpu_with_a_number_becomes_the_current_one(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [pick_device(name) for name in ("cuda:1", "cuda", "cpu")] == [
        torch.device("cuda:1"), torch.device("cuda"), torch.device("cpu"),
    ]  # fmt: skip
    assert current == [torch.device("cuda:1")]
