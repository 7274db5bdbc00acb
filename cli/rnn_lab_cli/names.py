"""Completion of the names of models, plugins, protocols and presets, without importing torch."""

from collections.abc import Iterator

import click
from click.shell_completion import CompletionItem


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models, then aliases, that begin with `incomplete`."""
    return [CompletionItem(name, help=text) for name, text in _models() if name.startswith(incomplete.lower())]


def complete_model_or_plugin(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models, aliases and plugins that begin with `incomplete`."""
    from rnn_lab.registry import registry

    plugins = [info.name for info in registry().plugins if info.models and info.name.startswith(incomplete)]
    return complete_model(ctx, param, incomplete) + [CompletionItem(name) for name in plugins]


def complete_protocol(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Protocols that begin with `incomplete`."""
    from rnn_lab.registry import registry

    return [CompletionItem(name) for name in registry().protocols if name.startswith(incomplete)]


def complete_executor(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Executors that begin with `incomplete`."""
    from rnn_lab.registry import registry

    return [CompletionItem(name) for name in registry().executors if name.startswith(incomplete)]


def complete_preset(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Presets with a configuration that begin with `incomplete`."""
    from rnn_lab.presets import all_presets
    from rnn_lab.registry import registry

    presets = all_presets(registry()).values()
    return [CompletionItem(p.name, help=p.model) for p in presets if p.row.config and p.name.startswith(incomplete)]


def _models() -> Iterator[tuple[str, str]]:
    from rnn_lab.registry import registry

    found = registry()
    yield from ((name, ref.doc.equation) for name, ref in found.models.items())
    for alias, (name, fields) in found.aliases.items():
        yield alias, ", ".join([name, *(f"{key} = {value}" for key, value in fields.items())])
