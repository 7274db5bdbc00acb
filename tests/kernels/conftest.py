"""Kernels run on a GPU, or on the CPU through Triton's interpreter, which is chosen before Triton is imported."""

import os

import pytest
import torch

from .interpreter import patch_once

if os.environ.get("TRITON_INTERPRET") == "1":
    patch_once()


def pytest_collection_modifyitems(items):
    if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        for item in items:
            if "/kernels/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, or TRITON_INTERPRET=1 in the environment"))


@pytest.fixture
def device():
    """Where kernels run here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Certificates and generated sources of a test are its own."""
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
