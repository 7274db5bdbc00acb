"""Family baselines of rnn-lab: one file per model, found by listing this folder."""

from collections.abc import Callable

from rnn_lab.hookspecs import hookimpl
from rnn_lab.registry import models_in


@hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Every model file beside this one."""
    register(models_in(__name__))
