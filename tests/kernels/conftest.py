"""Kernels run on a CUDA device, or on the CPU by Triton's interpreter where TRITON_INTERPRET=1 is set before Python starts."""

import os

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder where neither can run."""
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return
    for item in items:
        if "/kernels/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="needs CUDA or TRITON_INTERPRET=1"))
