"""Commands that plugins contribute through `register_commands`, each plugin in isolation."""

from functools import cache
from importlib import metadata
from typing import Any

import click
from rnn_lab.discovery.isolation import confined
from rnn_lab.registry import PluginInfo, Registry, isolated, load_limit, registry

from rnn_lab_cli import builtin
from rnn_lab_cli.lazy import CommandCollector, LazyCommand

_warned: set[str] = set()


@cache
def plugin_commands() -> dict[str, LazyCommand]:
    """Commands of every plugin of this process; what goes wrong becomes a problem of the plugin's row."""
    found = registry()
    own = CommandCollector()
    builtin.register_commands(own)
    taken = {command.name: "rnn-lab" for command in own.commands}
    commands: dict[str, LazyCommand] = {}
    for info in found.plugins:
        for command in _commands_of(found, info):
            if command.name in taken:
                info.problems.append(f"command {command.name!r} is already registered by {taken[command.name]}")
            else:
                commands[command.name] = command
                taken[command.name] = info.name
    found.plugins.insert(1, _own_row())
    return commands


def _own_row() -> PluginInfo:
    """The command line's own row in `rnn-lab plugins`."""
    try:
        version = metadata.version("rnn-lab-cli")
    except metadata.PackageNotFoundError:
        version = ""
    return PluginInfo("cli", builtin.__name__, "rnn-lab-cli", version, hooks=["register_commands"])


def _commands_of(found: Registry, info: PluginInfo) -> list[LazyCommand]:
    plugin: Any = found.manager.get_plugin(info.name)
    if plugin is None or "register_commands" not in info.hooks:
        return []
    others = [other for other in found.manager.get_plugins() if other is not plugin]
    collector = CommandCollector(info.name)
    complete = False
    with isolated(info), confined(load_limit()):
        found.manager.subset_hook_caller("register_commands", others)(cli=collector)
        complete = True
    return collector.commands if complete else []


def warn_about_plugins() -> None:
    """One line on stderr for every broken plugin, once per process."""
    plugin_commands()
    for info in registry().plugins:
        if info.problems and info.name not in _warned:
            _warned.add(info.name)
            more = f" (and {len(info.problems) - 1} more)" if len(info.problems) > 1 else ""
            first = info.problems[0].partition("\n")[0]
            click.echo(f"warning: plugin {info.name!r}: {first}{more}; see `rnn-lab plugins`", err=True)
