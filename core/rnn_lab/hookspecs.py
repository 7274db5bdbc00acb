"""The whole extension API of rnn-lab: what a plugin may contribute.

A plugin is an importable module named by an entry point of the group `rnn_lab`. It implements any of the
hooks below with `@hookimpl`. Loading it must not import torch: hooks hand over references (names and
`module:attribute` strings), never the objects themselves.
"""

from collections.abc import Callable
from typing import Any

import pluggy

PROJECT = "rnn_lab"

PLUGIN_API = 1
"""Version of this page. A plugin that sets a larger `PLUGIN_API` in its module is refused by name."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_models(register: Callable[..., None]) -> None:
    """Contribute models: `register(models_in(__name__))`, one model file each."""


@hookspec
def register_presets(register: Callable[..., None]) -> None:
    """Contribute presets: `register(path_of_toml)` or a list of paths; see rnn_lab/presets.py for what a file holds."""


@hookspec
def register_optimizers(register: Callable[..., None]) -> None:
    """Contribute optimizers: `register(name, "module:factory")`; the factory takes (model, OptimizerSection)."""


@hookspec
def register_protocols(register: Callable[..., None]) -> None:
    """Contribute protocols: `register(name, path_of_toml)`; see rnn_lab/protocol.py for what a file holds."""


@hookspec
def register_trackers(register: Callable[..., None]) -> None:
    """Contribute trackers: `register(name, "module:factory")`; the factory takes (run_dir, RunConfig, first_step)."""


@hookspec
def register_diagnostics(register: Callable[..., None]) -> None:
    """Contribute diagnostics: `register(id, "module:RULE")`; see rnn_lab/diagnostics/rule.py for what a rule is."""


@hookspec
def register_executors(register: Callable[..., None]) -> None:
    """Contribute executors: `register(name, "module:KIND")`; see rnn_lab/lab/executor.py for what a kind is."""


@hookspec
def register_commands(cli: Any) -> None:
    """Contribute commands: `cli.add_lazy(name, "module:command", help=one_line)`."""
