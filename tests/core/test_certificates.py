"""What a certificate keeps, and what it does not."""

import pytest
import torch
from rnn_lab.kernels import certificates
from rnn_lab.kernels.dispatch import Backend, Op


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch, tmp_path):
    monkeypatch.setattr(certificates, "_known", {})
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path))


def squares(run):
    """An operation x -> x^2, its second backend `run`."""
    return Op("square", lambda x: x.square(), [Backend("mine", run, lambda x: None)], probe=lambda x: (x[:1],))


def stored():
    return list(certificates.certificate_dir().glob("*.json"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_want_of_memory_is_neither_kept_nor_stored(error):
    states = iter([True, False, False])

    def run(x):
        if next(states):
            raise error
        return x * x

    op, x = squares(run), torch.ones(2, 3)
    assert op.select(x)[1].refused == (("mine", "its small run found no memory"),) and not stored()
    assert op.select(x)[1].backend == "mine" and len(stored()) == 1


def test_any_other_error_is_found_out_once():
    calls = []

    def run(x):
        calls.append(x)
        raise RuntimeError("no kernel image")

    op, x = squares(run), torch.ones(2, 3)
    for _ in range(2):
        assert op.select(x)[1].refused == (("mine", "its small run raises RuntimeError: no kernel image"),)
    certificates._known.clear()
    op.select(x)
    assert len(calls) == 1 and len(stored()) == 1
