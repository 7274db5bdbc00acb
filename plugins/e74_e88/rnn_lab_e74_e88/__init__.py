"""Family e74_e88 of rnn-lab: one file per model, found by listing this folder."""

from collections.abc import Callable

from rnn_lab.hookspecs import hookimpl
from rnn_lab.registry import models_in, presets_in


@hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Every model file beside this one."""
    register(models_in(__name__))


@hookimpl
def register_presets(register: Callable[..., None]) -> None:
    """The family's rows in the seeds' tables."""
    register(presets_in(__name__))
