"""Who computes the two symmetric products of a Newton-Schulz iteration: the library, or a kernel for half of each.

Which of them is faster depends on GPU and shape, so both are timed on the matrices at hand, once per shape, and the
kernel's results are held to the library's. What was chosen and why is on record, as of every kernel.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from rnn_lab.kernels.dispatch import REFERENCE, Choice, setting
from rnn_lab.kernels.triton_support import refuses_triton
from rnn_lab.tensors import relative_error


class Product(Protocol):
    """`alpha A A' + beta S + diagonal`, the latter times the unit matrix; S is symmetric."""

    def __call__(
        self, A_Kmn: Tensor, S_Kmm: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0, diagonal: float = 0.0
    ) -> Tensor:
        """`[K, m, m]` in the dtype of A."""


SMALLEST = 256
"""Rows below which half of a product is too little to gain by."""
ALLOWED = 1e-2
"""Relative error of bf16 results against the library's, which are rounded too."""
REPEATS = 5
_chosen: dict[tuple[torch.Size, torch.dtype, torch.device], tuple[Product, Choice]] = {}
_agreed: list[Callable[[str | None], str | None]] = []


def agree_by(agreed: Callable[[str | None], str | None]) -> None:
    """Let processes that make the same updates choose the same product: their weights would drift apart otherwise.

    Args:
        agreed: why the kernel is not used, if it is not in any of them; each calls it with its own reason or None.

    """
    _agreed[:] = [agreed]


def library(
    A_Kmn: Tensor, S_Kmm: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0, diagonal: float = 0.0
) -> Tensor:
    """See Product; by torch."""
    if S_Kmm is None:
        found = torch.bmm(A_Kmn, A_Kmn.mT) if alpha == 1.0 else alpha * torch.bmm(A_Kmn, A_Kmn.mT)
    else:
        found = torch.baddbmm(S_Kmm, A_Kmn, A_Kmn.mT, beta=beta, alpha=alpha)
    if diagonal:
        found.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    return found


def product(X_Kmn: Tensor) -> Product:
    """Who computes symmetric products for iterations over these matrices, m <= n, which have a norm of about 1."""
    key = (X_Kmn.shape, X_Kmn.dtype, X_Kmn.device)
    if key not in _chosen:
        reason = _refuses(X_Kmn)
        if reason is None and X_Kmn.is_cuda and torch.cuda.is_current_stream_capturing():
            return library  # nothing can be timed now, and nothing is decided
        _chosen[key] = _choose(X_Kmn, reason)
    return _chosen[key][0]


def choices() -> list[Choice]:
    """What was chosen so far on GPUs, each once."""
    return list(dict.fromkeys(choice for (_, _, device), (_, choice) in _chosen.items() if device.type == "cuda"))


def _refuses(X_Kmn: Tensor) -> str | None:
    """Why the kernel cannot be asked, or None."""
    if X_Kmn.dtype != torch.bfloat16:
        return f"products are in {str(X_Kmn.dtype).removeprefix('torch.')}"
    if X_Kmn.device.type != "cuda":
        return f"matrices are on {X_Kmn.device.type}"
    if X_Kmn.shape[1] < SMALLEST:
        return f"{X_Kmn.shape[1]} rows are fewer than {SMALLEST}"
    if setting() == REFERENCE:
        return f"RNN_LAB_KERNELS={REFERENCE}"
    return refuses_triton(X_Kmn)


def _choose(X_Kmn: Tensor, reason: str | None) -> tuple[Product, Choice]:
    """The faster of the two, by trial, if the kernel's results are right."""
    if reason is None:
        from rnn_lab.kernels.updates.symmetric_triton import symmetric

        try:
            reason = _worse(symmetric, X_Kmn)
        except Exception as error:  # whatever a compiler or driver raises: the library is there
            reason = f"{type(error).__name__}: {error}"[:200]
        for agreed in _agreed:
            reason = agreed(reason)
        if reason is None:
            return symmetric, Choice("symmetric_product", "triton")
    return library, Choice("symmetric_product", REFERENCE, (("triton", reason),))


def _worse(kernel: Product, X_Kmn: Tensor) -> str | None:
    """Why the kernel is not to be used for these matrices."""

    def both(run: Product, X: Tensor) -> Tensor:
        A = run(X)
        return run(A, A, 2.0315, -4.775, 3.4445)

    error = relative_error(both(kernel, X_Kmn[:1]), both(library, X_Kmn[:1]))
    if not error <= ALLOWED:
        return f"its results differ from the library's: r = {error:.2g}"
    ours, theirs = _milliseconds(lambda: both(kernel, X_Kmn)), _milliseconds(lambda: both(library, X_Kmn))
    return None if ours < theirs else f"it takes {ours:.3g} ms, the library {theirs:.3g} ms"


def _milliseconds(run: Callable[[], Tensor]) -> float:
    """The fastest of a few runs on the current stream."""
    found: list[float] = []
    for _ in range(REPEATS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        run()
        ended.record()
        ended.synchronize()
        found.append(began.elapsed_time(ended))
    return min(found)
