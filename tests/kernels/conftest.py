"""Triton kernels run here by the interpreter or on a GPU; without either there is nothing to run them."""

import os

import pytest
import torch


def pytest_collection_modifyitems(items):
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return
    for item in items:
        if "tests/kernels" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1 or a CUDA device"))
