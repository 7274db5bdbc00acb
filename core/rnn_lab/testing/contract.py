"""What a check is, how it says what is wrong, and how it is made from a plain function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rnn_lab.testing.subject import Subject

CheckFunction = Callable[["Subject", Any], str | None]
Status = Literal["pass", "fail", "skip"]


class ContractError(AssertionError):
    """A model broke the contract; the message says how, with figures."""


class NotApplicableError(Exception):
    """The model declares that the rule has no meaning for it; the text is its reason."""


@dataclass(frozen=True)
class Check:
    """One rule of the contract.

    `run(subject)` raises when the rule is broken and may return a note; `needs` are ids of checks that have
    to pass first, because their defects would show here too.
    """

    id: str
    title: str
    needs: tuple[str, ...]
    run: Callable[["Subject"], str | None]


@dataclass(frozen=True)
class CheckResult:
    """What one check found on one model; `message` is empty when there is nothing to say."""

    id: str
    status: Status
    message: str
    seconds: float


def check(
    name: str, title: str, needs: tuple[str, ...] = (), *, every_variant: bool = True
) -> Callable[[CheckFunction], Check]:
    """Make a Check of `function(subject, cfg)`.

    Args:
        name: id of the check.
        title: the rule in one sentence.
        needs: ids of checks that have to pass first.
        every_variant: run on every variant of the model's Config, not on the default one only.

    """

    def decorate(function: CheckFunction) -> Check:
        def run(subject: "Subject") -> str | None:
            notes = []
            for variant in subject.variants if every_variant else subject.variants[:1]:
                try:
                    note = function(subject, variant.cfg)
                except NotApplicableError:
                    raise
                except Exception as error:
                    text = str(error) if isinstance(error, ContractError) else f"{type(error).__name__}: {error}"
                    raise ContractError(f"[{variant.label}] {text}") from error
                notes.append(note)
            return next(filter(None, notes), None)

        return Check(name, title, needs, run)

    return decorate


def expect(truth: object, message: str) -> None:
    """Raise ContractError with `message` unless `truth`."""
    if not truth:
        raise ContractError(message)
