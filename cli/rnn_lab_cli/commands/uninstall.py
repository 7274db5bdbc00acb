"""`rnn-lab uninstall`."""

import sys

import click
from rnn_lab.discovery.distributions import normalised
from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.hookspecs import PROJECT


@click.command()
@click.argument("packages", metavar="PKG...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def uninstall(packages: tuple[str, ...], yes: bool) -> None:
    """Uninstall plugins, by the name of the plugin or of its distribution; broken ones too."""
    from rnn_lab_cli.installer import uninstall as uninstall_packages

    names = list(dict.fromkeys(distribution(name) for name in packages))
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody is there to ask: give -y")
        click.confirm(f"Uninstall {', '.join(names)}?", abort=True, err=True)
    uninstall_packages(names)
    for name in names:
        click.echo(f"uninstalled {name}")


def distribution(name: str) -> str:
    """The distribution that brings the plugin `name`, or that is called so itself.

    Raises:
        ConfigError: it is not installed, or no plugin.

    """
    from rnn_lab_cli.installer import plugin_distributions

    known = plugin_distributions()
    names = {key: dist.name for key, dist in known.items()}
    for dist in known.values():
        for point in dist.entry_points.select(group=PROJECT):
            names.setdefault(normalised(point.name), dist.name)
    if normalised(name) not in names:
        hint = did_you_mean(normalised(name), list(names))
        raise ConfigError(f"{name!r} is no installed plugin.{hint} See `rnn-lab plugins`.")
    return names[normalised(name)]
