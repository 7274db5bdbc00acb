"""`rnn-lab install`."""

import json
import subprocess
import sys
from typing import Any

import click
from rnn_lab.errors import ConfigError, PluginError

from rnn_lab_cli.output import note, table


@click.command()
@click.argument("packages", metavar="[PKG]...", nargs=-1)
@click.option("-U", "--upgrade", is_flag=True, help="Upgrade what is installed already.")
@click.option("-e", "--editable", multiple=True, metavar="PATH", help="Folder of a plugin, installed as it lies there.")
def install(packages: tuple[str, ...], upgrade: bool, editable: tuple[str, ...]) -> None:
    """Install plugins: names, wheels or folders, as pip takes them.

    Uses the pip of this interpreter, or uv where there is none. The installed torch, triton, numpy and the lab itself
    stay as they are: a plugin that needs others is not installed. Plugins that the new ones get in the way of are
    listed too.
    """
    from rnn_lab_cli.installer import install as install_packages

    if not packages and not editable:
        raise ConfigError("nothing to install: give PKG or -e PATH")
    before = _plugins()
    install_packages(packages, editable, upgrade=upgrade)
    rows = [row for key, row in _plugins().items() if _is_news(before.get(key), row)]
    if not rows:
        note("no plugin came or changed its version; see `rnn-lab plugins`")
        return
    columns = ("name", "distribution", "version", "models", "status", "problems")
    table(columns, [[_text(row[column]) for column in columns] for row in rows])


def _plugins() -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of `rnn-lab plugins` by plugin and distribution, from a process that sees the packages as they are now.

    Raises:
        PluginError: that process fails.

    """
    command = [sys.executable, "-m", "rnn_lab_cli", "plugins", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        rows: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError as error:
        told = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise PluginError(f"`rnn-lab plugins` fails: {told}. Uninstall what came last with pip.") from error
    return {(row["name"], row["distribution"]): row for row in rows}


def _is_news(old: dict[str, Any] | None, new: dict[str, Any]) -> bool:
    """Whether a plugin came, changed its version, or has a problem that it did not have."""
    return old is None or old["version"] != new["version"] or not set(new["problems"]) <= set(old["problems"])


def _text(value: object) -> object:
    return "; ".join(value) if isinstance(value, list) else value
