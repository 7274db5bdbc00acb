"""Measuring tools: relative errors, NaN-filled allocations, and which backend runs an operation."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from rnn_lab.kernels.dispatch import REFERENCE, Choice, Op
from rnn_lab.tensors import relative_error
from rnn_lab.testing.contract import ContractError


def expect_close(what: str, actual: Tensor, reference: Tensor, tolerance: float) -> None:
    """Fail unless shapes agree and the relative error is below `tolerance`."""
    if actual.shape != reference.shape:
        raise ContractError(f"{what}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}")
    if not (r := relative_error(actual, reference)) <= tolerance:
        raise ContractError(f"{what}: r = {r:.2g}, allowed {tolerance:g}")


def expect_all_close(
    what: str, actual: Mapping[str, Tensor], reference: Mapping[str, Tensor], tolerance: float
) -> None:
    """`expect_close` for every entry; the keys have to agree."""
    if actual.keys() != reference.keys():
        raise ContractError(f"{what}: has {sorted(actual)}, expected {sorted(reference)}")
    for key, tensor in reference.items():
        expect_close(f"{what} {key!r}", actual[key], tensor, tolerance)


@contextmanager
def kernels(value: str | None) -> Iterator[None]:
    """RNN_LAB_KERNELS set to `value` (None: unset) in the block."""
    with mock.patch.dict(os.environ, {} if value is None else {"RNN_LAB_KERNELS": value}):
        if value is None:
            os.environ.pop("RNN_LAB_KERNELS", None)
        yield


_ALLOCATORS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (Tensor, "new_empty"),
    (Tensor, "new_empty_strided"),
)


@contextmanager
def nan_filled() -> Iterator[None]:
    """Fill what `torch.empty` and its relatives return with NaN, so that unwritten elements show."""

    def filled(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point() or tensor.is_complex():
                with torch.no_grad():
                    tensor.fill_(float("nan"))
            return tensor

        return call

    with ExitStack() as stack:
        for owner, name in _ALLOCATORS:
            stack.enter_context(mock.patch.object(owner, name, filled(getattr(owner, name))))
        yield


class RefusedError(Exception):
    """The backend that was asked for cannot take this call; the text says why."""


@contextmanager
def forced(op_name: str | None = None, backend_name: str = REFERENCE) -> Iterator[dict[str, Op[Any]]]:
    """Run `op_name` by the named backend and every other operation by its reference.

    Yields:
        Operations that were called, by name: filled while the block runs.

    Raises:
        RefusedError: from the call, where the backend has a reason not to serve it.

    """
    called: dict[str, Op[Any]] = {}

    def select(self: Op[Any], *args: Any, **kwargs: Any) -> tuple[Any, Choice]:
        called[self.name] = self
        if self.name != op_name or backend_name == REFERENCE:
            return self.reference, Choice(self.name, REFERENCE)
        backend = next(b for b in self.backends if b.name == backend_name)
        if reason := backend.refuses(*args, **kwargs):
            raise RefusedError(reason)
        return backend.run, Choice(self.name, backend.name)

    with mock.patch.object(Op, "select", select):
        yield called
