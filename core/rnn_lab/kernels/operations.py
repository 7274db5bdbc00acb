"""All operations there are and the names of their backends: those of the core, then what models of plugins add."""

from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

from rnn_lab.errors import ConfigError, RnnLabError, did_you_mean
from rnn_lab.kernels.dispatch import AUTO, REFERENCE, REQUIRE, Op, made, setting

OWN = (
    "recurrence", "linear.gated_delta_rule", "linear.linear_state", "linear.ssd", "fused.attention",
    "fused.causal_conv", "fused.cross_entropy", "fused.filtered_linear", "fused.gated_norm", "fused.residual_norm",
    "fused.rotary", "fused.swiglu",
)  # fmt: skip
"""Modules below this one that make an operation."""


def own_operations() -> dict[str, Op[Any]]:
    """Operations by name: those of the core, and what happens to be loaded besides."""
    for name in OWN:
        import_module(f"rnn_lab.kernels.{name}")
    return dict(sorted(made.items()))


def operations() -> dict[str, Op[Any]]:
    """Every operation by name, with every backend; loads the models of all plugins, which may bring both."""
    own_operations()
    _load_models()
    return own_operations()


@cache
def _load_models() -> None:
    from rnn_lab.registry import registry

    for ref in registry().models.values():
        with suppress(RnnLabError):  # `rnn-lab plugins` is who reports it
            ref.load()


def backend_names(known: dict[str, Op[Any]]) -> list[str]:
    """Names of the backends of these operations, each once."""
    return sorted({backend.name for op in known.values() for backend in op.backends})


def check_setting() -> str:
    """The value of RNN_LAB_KERNELS, which a backend has for a name, if it is none of the usual.

    Raises:
        ConfigError: it has not.

    """
    wanted = setting()
    usual = (AUTO, REFERENCE, REQUIRE)
    if wanted in usual or wanted in backend_names(own_operations()):
        return wanted
    known = [*usual, *backend_names(operations())]
    if wanted in known:
        return wanted
    raise ConfigError(
        f"RNN_LAB_KERNELS={wanted}: no backend has this name; known are {', '.join(known)}."
        f"{did_you_mean(wanted, known)}"
    )
