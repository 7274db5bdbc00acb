"""Kernels need a GPU, or Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/kernels`."""

import os

import pytest
import torch

RUNS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def device():
    """Where kernels run here."""
    if not RUNS:
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 set before Python starts")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Certificates and generated sources of a test are its own."""
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
