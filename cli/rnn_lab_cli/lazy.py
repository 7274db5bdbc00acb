"""Commands known by name and one line of help, imported when they run."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
from rnn_lab.errors import ConfigError, PluginError, did_you_mean


@dataclass(frozen=True)
class LazyCommand:
    """Reference to a click command: `target` is `module:attribute`."""

    name: str
    target: str
    help: str
    plugin: str = ""

    def load(self) -> click.Command:
        """Import the command.

        Raises:
            PluginError: its module does not import, or holds no click command of that name.

        """
        module, _, attribute = self.target.partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginError(
                f"command {self.name!r} ({self.target}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(command, click.Command):
            raise PluginError(f"command {self.name!r} ({self.target}) is no click command")
        return command


class CommandCollector:
    """What `register_commands(cli)` receives: it keeps references and imports nothing."""

    def __init__(self, plugin: str = "") -> None:
        self.plugin = plugin
        self.commands: list[LazyCommand] = []

    def add_lazy(self, name: str, target: str, help: str = "") -> None:
        """Contribute the command `name`, to be found at `target` (`module:attribute`).

        Raises:
            PluginError: `target` is not such a reference.

        """
        if not isinstance(target, str) or not all(target.partition(":")):
            raise PluginError(f"command {name!r}: {target!r} is not of the form module:attribute")
        self.commands.append(LazyCommand(name, target, help.strip().partition("\n")[0], self.plugin))


class LazyGroup(click.Group):
    """Group whose help, completion and error messages need no command's module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.references: dict[str, LazyCommand] = {}

    def add_lazy(self, name: str, target: str, help: str = "") -> None:
        """Add the command `name`, imported from `target` (`module:attribute`) when it runs."""
        self.references[name] = LazyCommand(name, target, help)

    def known(self) -> dict[str, LazyCommand]:
        """Every lazy command by name, in the order of the help page."""
        return self.references

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which they were added."""
        return [*self.known(), *(name for name in self.commands if name not in self.known())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        reference = self.references.get(cmd_name) or self.known().get(cmd_name)
        return reference.load() if reference else super().get_command(ctx, cmd_name)

    def help_lines(self, ctx: click.Context) -> Iterator[tuple[str, str]]:
        """Name and one line of every command that is not hidden."""
        for name in self.list_commands(ctx):
            if name in self.known():
                yield name, self.known()[name].help
            elif not self.commands[name].hidden:
                yield name, self.commands[name].get_short_help_str(100)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command section of `--help`."""
        rows = list(self.help_lines(ctx))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Commands, and options of the group itself, that begin with `incomplete`."""
        from click.shell_completion import CompletionItem

        rows = self.help_lines(ctx)
        found = [CompletionItem(name, help=text) for name, text in rows if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` name.

        Raises:
            ConfigError: there is none of that name; names the nearest ones.

        """
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            longer = [known for known in self.list_commands(ctx) if known.startswith(name)]
            hint = did_you_mean(longer[0] if longer else name, longer or self.list_commands(ctx))
            raise ConfigError(f"unknown command {name!r}.{hint} See `{ctx.command_path} --help`.")
        return super().resolve_command(ctx, args)
