"""Which backend runs an operation here, and why not a faster one.

An operation has backends in order of preference, `reference` last. Each says by a predicate why it cannot take
a call; the first without a reason runs. `RNN_LAB_KERNELS` decides what is allowed:

    auto       the fastest usable backend (default)
    reference  the plain reference only
    require    never the reference: an error where no kernel can run
    NAME       this backend only: an error where it cannot run
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rnn_lab.errors import KernelUnavailable

F = TypeVar("F", bound=Callable[..., Any])
REFERENCE = "reference"


@dataclass(frozen=True)
class Backend(Generic[F]):
    """One implementation of an operation.

    `refuses` takes the same arguments as `run` and returns why it cannot serve them, or None.
    """

    name: str
    run: F
    refuses: Callable[..., str | None]


@dataclass(frozen=True)
class Choice:
    """What runs an operation, and the reason each preferred backend gave for refusing."""

    op: str
    backend: str
    refused: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON form for result.json."""
        return {"op": self.op, "backend": self.backend, "refused": dict(self.refused)}


@dataclass
class Op(Generic[F]):
    """A named operation and its backends, fastest first; `reference` is implied last."""

    name: str
    reference: F
    backends: list[Backend[F]] = field(default_factory=list)

    def select(self, *args: Any, **kwargs: Any) -> tuple[F, Choice]:
        """Implementation for these arguments, and the record of the choice.

        Raises:
            KernelUnavailable: RNN_LAB_KERNELS forbids every backend that could run.

        """
        wanted = os.environ.get("RNN_LAB_KERNELS", "auto")
        refused: list[tuple[str, str]] = []
        for backend in self.backends:
            reason = backend.refuses(*args, **kwargs)
            if wanted not in ("auto", "require", backend.name):
                reason = f"RNN_LAB_KERNELS={wanted}"
            if reason is None:
                return backend.run, Choice(self.name, backend.name, tuple(refused))
            refused.append((backend.name, reason))
        if wanted not in ("auto", REFERENCE):
            why = "; ".join(f"{name}: {reason}" for name, reason in refused) or "it has no other backend"
            raise KernelUnavailable(
                f"RNN_LAB_KERNELS={wanted}, but no such backend can run {self.name!r} here ({why}). "
                "Unset RNN_LAB_KERNELS to use the reference."
            )
        return self.reference, Choice(self.name, REFERENCE, tuple(refused))
