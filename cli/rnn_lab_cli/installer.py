"""Installing and uninstalling plugins: pip of this interpreter, or uv where there is no pip.

A plugin cannot replace what the lab runs on: the installed versions of torch, triton and numpy are constraints.
"""

import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import click
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.hookspecs import PROJECT

PINNED = ("torch", "triton", "numpy")


def install(packages: Sequence[str], editable: Sequence[str], *, upgrade: bool) -> None:
    """Install packages under the constraints.

    Raises:
        ConfigError: neither pip nor uv is here.
        RnnLabError: the installer failed.

    """
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{line}\n" for line in pins()))
        command = _command("install", "--constraint", str(constraints))
        command += ["--upgrade"] if upgrade else []
        command += [word for path in editable for word in ("--editable", path)]
        run([*command, "--", *packages] if packages else command)


def uninstall(packages: Sequence[str]) -> None:
    """Uninstall packages without asking.

    Raises:
        ConfigError: neither pip nor uv is here.
        RnnLabError: the installer failed.

    """
    run([*_command("uninstall"), "--", *packages])


def pins() -> list[str]:
    """`name==version` of what a plugin must not replace, where it is installed."""
    lines = []
    for name in PINNED:
        try:
            lines.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return lines


def plugin_distributions() -> dict[str, metadata.Distribution]:
    """Installed distributions that bring plugins, by normalised name, as the disk has them now."""
    importlib.invalidate_caches()
    found = (point.dist for point in metadata.entry_points(group=PROJECT))
    return {normalised(dist.name): dist for dist in found if dist is not None}


def normalised(name: str) -> str:
    """The form in which names of distributions are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def run(command: list[str]) -> None:
    """Run an installer, its lines passed on to stderr.

    Raises:
        RnnLabError: it failed; the message is its last error.

    """
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            click.echo(line, err=True, nl=False)
            lines.append(line.strip())
    if process.returncode != 0:
        told = [line for line in lines if line.lower().startswith("error")] or [line for line in lines if line]
        last = told[-1] if told else f"exit code {process.returncode}"
        raise RnnLabError(f"{'pip' if command[1] == '-m' else 'uv pip'} failed: {last}")


def _command(action: str, *options: str) -> list[str]:
    """Command line for this interpreter, without questions; uv asks none and has to be told which one is meant."""
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", action, *options, *(["--yes"] if action == "uninstall" else [])]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "pip", action, "--python", sys.executable, *options]
    raise ConfigError(f"neither pip nor uv is here: get one with `{sys.executable} -m ensurepip`")
