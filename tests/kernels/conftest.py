"""Kernels run on a GPU, or on the CPU through Triton's interpreter, which is chosen before Triton is imported."""

import os

import pytest
import torch


def pytest_collection_modifyitems(items):
    if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        for item in items:
            if "/kernels/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, or TRITON_INTERPRET=1 in the environment"))
