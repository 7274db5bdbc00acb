"""One way to run a case that is measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnn_lab.bench.calls import PEER_LIMITS, Bound, bind
from rnn_lab.bench.cases import Case, needs_cuda
from rnn_lab.kernels.certificates import limits_of


@dataclass(frozen=True)
class Implementation:
    """One way to run a case: what is timed, and the same in fp64.

    `kind` is backend, reference, peer or yardstick; `refuses` gives a reason not to try; `uncapturable` says why it
    cannot become part of a CUDA graph.
    """

    name: str
    kind: str
    fast: Callable[[Case], Bound]
    exact: Callable[[Case], Bound]
    refuses: Callable[[Case], str | None]
    note: str = ""
    uncapturable: str | None = None

    def limits(self, case: Case) -> tuple[float, float]:
        """Errors that are allowed."""
        return limits_of(case.args) if self.kind in ("backend", "reference") else PEER_LIMITS


def reference(case: Case) -> Bound:
    """The operation's reference in fp64."""
    return bind(case.op.reference, case.args, torch.float64)


def yardstick(
    name: str, run: Callable[..., Any], plain: Callable[..., Any], inputs: Callable[[Case], tuple[Tensor, ...]],
    note: str,
) -> Implementation:  # fmt: skip
    """`run` on inputs of its own, beside `plain` in fp64."""
    return Implementation(
        name, "yardstick", lambda case: bind(run, inputs(case)),
        lambda case: bind(plain, inputs(case), torch.float64), needs_cuda, note,
    )  # fmt: skip
