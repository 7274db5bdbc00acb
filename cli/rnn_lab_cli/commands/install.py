"""`rnn-lab install`."""

import json
import subprocess
import sys
from typing import Any

import click
from rnn_lab.errors import ConfigError

from rnn_lab_cli.output import note, table


@click.command()
@click.argument("packages", metavar="[PKG]...", nargs=-1)
@click.option("-U", "--upgrade", is_flag=True, help="Upgrade what is installed already.")
@click.option("-e", "--editable", multiple=True, metavar="PATH", help="Folder of a plugin, installed as it lies there.")
def install(packages: tuple[str, ...], upgrade: bool, editable: tuple[str, ...]) -> None:
    """Install plugins: names, wheels or folders, as pip takes them.

    Uses the pip of this interpreter, or uv where there is none. The installed torch, triton and numpy stay as they
    are: a plugin that needs others is not installed.
    """
    from rnn_lab_cli.installer import install as install_packages
    from rnn_lab_cli.installer import normalised, plugin_distributions

    if not packages and not editable:
        raise ConfigError("nothing to install: give PKG or -e PATH")
    before = {name: dist.version for name, dist in plugin_distributions().items()}
    install_packages(packages, editable, upgrade=upgrade)
    after = {name: dist.version for name, dist in plugin_distributions().items()}
    changed = {name for name, version in after.items() if before.get(name) != version}
    rows = [row for row in _plugins() if normalised(row["distribution"]) in changed]
    if not rows:
        note("no plugin came or changed its version; see `rnn-lab plugins`")
        return
    columns = ("name", "distribution", "version", "models", "status", "problems")
    table(columns, [[_text(row[column]) for column in columns] for row in rows])


def _plugins() -> list[dict[str, Any]]:
    """Rows of `rnn-lab plugins`, from a process that sees the packages as they are now."""
    command = [sys.executable, "-m", "rnn_lab_cli", "plugins", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows: list[dict[str, Any]] = json.loads(done.stdout) if done.returncode == 0 else []
    return rows


def _text(value: object) -> object:
    return "; ".join(value) if isinstance(value, list) else value
