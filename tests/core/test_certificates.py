"""What a certificate keeps, and what it does not."""

import warnings
from functools import partial

import pytest
import torch
from rnn_lab.kernels import certificates
from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.recurrence import Cell


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch, tmp_path):
    for name in ("_known", "_alike", "_wrong"):
        monkeypatch.setattr(certificates, name, {})
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


@pytest.mark.filterwarnings("error")
def test_a_warning_is_no_reason_to_distrust():
    def run(x):
        warnings.warn("so it was in the old days", DeprecationWarning, stacklevel=2)
        return x * x

    assert certificates.distrust(squares(run), squares(run).backends[0], (torch.ones(2, 3),)) is None


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2.002 * g * ctx.saved_tensors[0]


def test_a_wrong_forward_or_backward_is_refused_with_figures_and_kept():
    x = torch.randn(2, 3)
    wrong = (
        (lambda x: 1.001 * x * x, "forward"),
        (lambda x: x * x if torch.is_grad_enabled() else 1.001 * x * x, "forward"),
        (WrongBackward.apply, "in gradients"),
    )
    for run, part in wrong:
        op = squares(run)
        (name, reason), *_ = op.select(x)[1].refused
        assert name == "mine" and "0.001 " in reason and part in reason
        certificates._known.clear()
        for path in stored():
            path.unlink()


def test_what_is_stored_is_read_by_the_next_process_and_by_no_other_class(monkeypatch):
    calls = []

    def run(x):
        calls.append(x.dtype)
        return x * x

    op = squares(run)
    assert op.select(torch.randn(2, 3))[1].backend == "mine"
    seen = len(calls)
    certificates._known.clear()
    assert op.select(torch.randn(7, 3))[1].backend == "mine" and len(calls) == seen  # batch is no part of the class
    op.select(torch.randn(2, 3, 4))
    op.select(torch.randn(2, 3).bfloat16())
    assert len(calls) == 3 * seen and len(stored()) == 3
    assert [row["distrust"] for row in certificates.certificates()] == [None] * 3
    certificates._known.clear()
    monkeypatch.setattr(certificates, "sources", lambda module: "changed")
    op.select(torch.randn(2, 3))
    assert len(calls) == 4 * seen


def test_a_matrix_of_another_height_or_another_layout_has_a_certificate_of_its_own():
    """A product may take another tile, or copy in other units."""
    op = Op(
        "product", lambda x, w: x @ w.mT, [Backend("mine", lambda x, w: x @ w.mT, lambda x, w: None)],
        probe=lambda x, w: (x[:1], w),
    )  # fmt: skip
    x, w = torch.randn(2, 3, 8), torch.randn(6, 8)
    wide = torch.randn(6, 9)
    for weight, count in ((w, 1), (w.clone(), 1), (torch.randn(5, 8), 2), (wide[:, :8], 3), (wide[:, 1:], 4)):
        assert op.select(x, weight)[1].backend == "mine" and len(stored()) == count


def test_a_cache_that_grows_is_asked_for_once():
    """Nothing is made for a call that differs in batch and time alone: it may be made at every byte."""
    made = []

    def probe(x, w):
        made.append(x.shape)
        return x[:1, :1], w

    op = Op("product", lambda x, w: x @ w.mT, [Backend("mine", lambda x, w: x @ w.mT, lambda x, w: None)], probe=probe)
    w = torch.randn(6, 8)
    for T in (1, 2, 30):
        assert op.select(torch.randn(T, T, 8), w)[1].backend == "mine"
    assert len(made) == 1
    op.select(torch.randn(3, 3, 10)[..., :8], w)
    assert len(made) == 2


def test_every_source_counts_those_in_folders_too(monkeypatch, tmp_path):
    core = tmp_path / "kernels"
    (core / "engine").mkdir(parents=True)
    monkeypatch.setattr(certificates, "__file__", str(core / "certificates.py"))
    found = []
    for name in ("dispatch.py", "engine/walk.py", "engine/walk.cuh", "engine/notes.md"):
        (core / name).write_text(name)
        found.append(certificates.sources.__wrapped__("json"))
    assert len(set(found)) == 3 and found[2] == found[3]


def test_a_torn_certificate_is_made_again():
    op = squares(lambda x: x * x)
    op.select(torch.randn(2, 3))
    (path,) = stored()
    path.write_text("{")
    certificates._known.clear()
    assert op.select(torch.randn(2, 3))[1].backend == "mine" and '"distrust": null' in path.read_text()


def test_every_configuration_is_tried(monkeypatch):
    from rnn_lab.kernels import triton_support

    monkeypatch.setattr(triton_support, "INTERPRETED", False)
    op = squares(lambda x: x * x * (1.01 if triton_support.tried(3) == 2 else 1.0))
    assert "differs from the reference" in op.select(torch.randn(2, 3))[1].refused[0][1]


def halved(scale, h, x):
    return torch.tanh(h @ x) * scale


def test_cells_are_told_apart_by_all_that_they_do_and_not_by_where_it_lies(monkeypatch):
    cells = [
        Cell(partial(halved, 0.5)), Cell(partial(halved, 0.25)), Cell(partial(halved, scale=0.5)),
        Cell(halved), Cell(halved, torch.mul), Cell(halved, before=halved), Cell(halved, after=halved),
    ]  # fmt: skip
    names = [cell.fingerprint for cell in cells]
    assert len(set(names)) == len(names)
    assert not any(" at 0x" in name for name in names)  # an address is another in the next process
    monkeypatch.setattr(certificates, "sources", lambda module: f"{module} was edited")
    assert Cell(halved).fingerprint != cells[3].fingerprint


LAYOUTS = {
    "whole": lambda x: x,
    "transposed": lambda x: x.mT,
    "piece": lambda x: x.chunk(3, -1)[1],
    "every second": lambda x: x[:, 1::2],
    "one column": lambda x: x[..., 5:6],
    "number": lambda x: x[0, 0, 3],
}
SHARED = {"expanded": lambda x: x[0].expand(4, 6, 9), "overlapping": lambda x: x.as_strided((5, 4), (2, 1))}


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("layout", [*LAYOUTS, *SHARED])
def test_copies_lie_in_memory_as_what_they_copy(layout, dtype):
    """Unless elements share memory; then they are contiguous."""
    x = (LAYOUTS | SHARED)[layout](torch.randn(4, 6, 9))
    (copy,), leaves = certificates.copies((x,), dtype)
    assert leaves[0] is copy and copy.is_leaf and copy.dtype == (dtype or x.dtype)
    assert torch.equal(copy.to(x.dtype), x) and copy.data_ptr() != x.data_ptr()
    if layout in SHARED:
        assert copy.is_contiguous()
    else:
        assert (copy.stride(), copy.storage_offset()) == (x.stride(), x.storage_offset())
    (copy * copy).sum().backward()
    assert torch.equal(copy.grad, 2 * copy)
