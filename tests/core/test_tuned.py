"""Which configuration a tuned kernel takes."""

from types import SimpleNamespace

import pytest
import torch
from rnn_lab.kernels import triton_support
from rnn_lab.kernels.triton_support import SMALL, Tuned, trying

triton = pytest.importorskip("triton")


class Kernel:
    """Stands for a compiled kernel: a launch returns the grid, the configuration, and its arguments."""

    def __getitem__(self, grid):
        return lambda *args, block=None, **named: (grid, block, args, named)


def tuned(monkeypatch):
    """A kernel of three configurations whose tuner always chooses the last."""
    monkeypatch.setattr(triton_support, "INTERPRETED", False)
    monkeypatch.setattr(triton, "autotune", lambda configs, key, cache_results: lambda kernel: Chosen(kernel))
    configs = [SimpleNamespace(all_kwargs=lambda block=block: {"block": block}) for block in (16, 32, 64)]
    return Tuned(Kernel(), configs, ("d",))


class Chosen(SimpleNamespace):
    """Stands for Triton's tuner."""

    def __init__(self, kernel):
        super().__init__(kernel=kernel)

    def __getitem__(self, grid):
        return lambda *args, **named: self.kernel[grid](*args, block="the fastest", **named)


@pytest.mark.parametrize("named", [False, True])
def test_only_a_call_that_is_not_small_is_timed(monkeypatch, named):
    kernel, few, large = tuned(monkeypatch), torch.empty(SMALL - 1), torch.empty(SMALL)
    for x, block in ((few, 16), (large, "the fastest")):
        found = kernel[(7,)](few, 3, x=x) if named else kernel[(7,)](few, x, 3)
        assert found == ((7,), block, (few, 3) if named else (few, x, 3), {"x": x} if named else {})


def test_a_trial_decides_whatever_the_size(monkeypatch):
    kernel = tuned(monkeypatch)
    for x in (torch.empty(1), torch.empty(SMALL)):
        with trying(1) as trial:
            assert kernel[(1,)](x)[1] == 32
        assert trial.count == 3
