"""Which backend runs an operation here, and why not a faster one.

An operation has backends in order of preference, `reference` last. Each says by a predicate why it cannot take
a call; the first without a reason that also holds a certificate (kernels.certificates) runs. `RNN_LAB_KERNELS`
decides what is allowed:

    auto       the fastest usable backend (default)
    reference  the plain reference only
    require    never the reference: an error where no kernel can run
    NAME       this backend for every operation that has it: an error where it cannot run

Spaces around the value count for nothing, and an empty one is none. What is no backend's name is an error.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rnn_lab.errors import KernelUnavailable

F = TypeVar("F", bound=Callable[..., Any])
AUTO, REFERENCE, REQUIRE = "auto", "reference", "require"
made: "dict[str, Op[Any]]" = {}
"""Operations by name, as their modules are imported: kernels.operations has all."""


def setting() -> str:
    """The value of RNN_LAB_KERNELS as it is understood; whether it names a backend is kernels.operations' to say."""
    return os.environ.get("RNN_LAB_KERNELS", "").strip() or AUTO


@dataclass(frozen=True)
class Backend(Generic[F]):
    """One implementation of an operation.

    `refuses` takes the same arguments as `run` and returns why it cannot serve them, or None. A `certified` backend
    also has to agree with the reference on a small run before its first use. One that is not `capturable` cannot
    run while a CUDA graph of the whole training step is captured; one that `leaves_room` keeps most of a GPU idle, so
    that a captured step may have several of its calls at work at once.
    """

    name: str
    run: F
    refuses: Callable[..., str | None]
    certified: bool = True
    capturable: bool = True
    leaves_room: bool = False


@dataclass(frozen=True)
class Choice:
    """What runs an operation, and the reason each preferred backend gave for refusing."""

    op: str
    backend: str
    refused: tuple[tuple[str, str], ...] = ()
    capturable: bool = True
    leaves_room: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON form for result.json."""
        return {"op": self.op, "backend": self.backend, "refused": dict(self.refused)}


@dataclass
class Op(Generic[F]):
    """A named operation and its backends, fastest first; `reference` is implied last.

    `probe(*args)` makes small calls of the same kind, one per form that a kernel may take, on which backends are
    certified; without it none is.
    """

    name: str
    reference: F
    backends: list[Backend[F]] = field(default_factory=list)
    probe: Callable[..., tuple[Any, ...] | list[tuple[Any, ...]]] | None = None

    def __post_init__(self) -> None:
        made[self.name] = self

    def __call__(self, record: dict[str, Choice], *args: Any) -> Any:
        """`reference`'s result from the fastest backend that can run here; the choice is noted in `record`."""
        run, record[self.name] = self.select(*args)
        return run(*args)

    def select(self, *args: Any) -> tuple[F, Choice]:
        """Implementation for these arguments, and the record of the choice.

        Raises:
            KernelUnavailable: RNN_LAB_KERNELS forbids every backend that could run.
            ConfigError: RNN_LAB_KERNELS names no backend.

        """
        wanted = setting()
        if wanted not in (AUTO, REFERENCE, REQUIRE, *(backend.name for backend in self.backends)):
            from rnn_lab.kernels.operations import check_setting

            check_setting()
            wanted = AUTO  # another operation's backend
        refused: list[tuple[str, str]] = []
        for backend in self.backends:
            allowed = wanted in (AUTO, REQUIRE, backend.name)
            reason = backend.refuses(*args) if allowed else f"RNN_LAB_KERNELS={wanted}"
            if reason is None:
                reason = self._distrust(backend, args)
            if reason is None:
                told = tuple(refused), backend.capturable, backend.leaves_room
                return backend.run, Choice(self.name, backend.name, *told)
            refused.append((backend.name, reason))
        if wanted not in (AUTO, REFERENCE):
            why = "; ".join(f"{name}: {reason}" for name, reason in refused) or "it has no other backend"
            raise KernelUnavailable(
                f"RNN_LAB_KERNELS={wanted}, but no such backend can run {self.name!r} here ({why}). "
                "Unset RNN_LAB_KERNELS to use the reference."
            )
        return self.reference, Choice(self.name, REFERENCE, tuple(refused))

    def _distrust(self, backend: Backend[F], args: tuple[Any, ...]) -> str | None:
        """Why the backend's certificate for calls like this is refused, or None."""
        if self.probe is None or not backend.certified:
            return None
        from rnn_lab.kernels.certificates import distrust

        return distrust(self, backend, args)
