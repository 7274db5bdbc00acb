"""Errors that a user can act on: what was wrong, where, and what to do.

Every one carries the exit code that `rnn-lab` ends with. Invariants of our own code use `assert` instead.
"""


class RnnLabError(Exception):
    """Base of all errors meant for a user; the command line prints its text and no traceback."""

    exit_code = 1


class ConfigError(RnnLabError, ValueError):
    """A value, option, file or name given by the user cannot be used."""

    exit_code = 2


class DataError(ConfigError):
    """A data file is missing, unreadable, empty, or too short for one window."""


class RunError(ConfigError):
    """A run folder is missing a part, damaged, or was edited into something that cannot be."""


class PluginError(RnnLabError, ValueError):
    """A plugin could not be loaded or broke a rule of the plugin interface."""

    exit_code = 2


class KernelUnavailable(RnnLabError, RuntimeError):
    """No backend that the user allows can run an operation here."""


class GraphUnavailable(RnnLabError, RuntimeError):
    """train.graph = on, and a training step cannot be captured in a CUDA graph here."""


class CheckpointError(RnnLabError, RuntimeError):
    """A checkpoint is truncated, altered, or of another run."""


class BudgetTooSmall(RnnLabError, ValueError):
    """The step, token or time budget does not hold a single optimizer step."""

    exit_code = 4


class Diverged(RnnLabError, ArithmeticError):
    """A loss or gradient was not finite; the optimizer step was not applied."""

    exit_code = 3


class Diagnosed(RnnLabError, RuntimeError):
    """An automatic diagnostic found an error, and diagnostics.strict makes that the end of the run."""

    exit_code = 5


class RankLost(RnnLabError, RuntimeError):
    """A process of a run over several ended or did not answer; the run ends at its last checkpoint."""


class OutOfMemory(RnnLabError, MemoryError):
    """The device ran out of memory."""


def did_you_mean(
    name: str, known: "list[str] | set[str] | tuple[str, ...]", limit: int = 3, cutoff: float = 0.5
) -> str:
    """` Did you mean 'e74'?` for the nearest of `known`, or an empty string; names share `cutoff` of their letters."""
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(known), n=limit, cutoff=cutoff)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
