"""Installing and uninstalling plugins: pip of this interpreter, or uv where there is no pip.

A plugin cannot replace what the lab runs on: the installed versions of torch, triton, numpy and the lab's own
distributions are constraints, and what is called like one of the latter is not installed at all.
"""

import configparser
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import click
from rnn_lab.discovery.distributions import OWN, is_own, normalised
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.hookspecs import PROJECT

PINNED = ("torch", "triton", "numpy", *OWN)
_WHEEL_OR_SDIST = re.compile(r"(.+?)-\d[^-]*(?:-.+\.whl|\.tar\.\w+|\.tgz|\.zip)")
_REQUIREMENT = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?(?=\s*(?:$|[\[<>=!~;@]))")


def install(packages: Sequence[str], editable: Sequence[str], *, upgrade: bool) -> None:
    """Install packages under the constraints.

    Raises:
        ConfigError: neither pip nor uv is here, or a package is called like one of the lab's own.
        RnnLabError: the installer failed.

    """
    for package, name in [*((p, name_of(p)) for p in packages), *((e, name_of(e, editable=True)) for e in editable)]:
        if is_own(name):
            raise ConfigError(f"{package}: {normalised(name)} is part of rnn-lab, and no plugin may replace it")
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


def name_of(package: str, *, editable: bool = False) -> str:
    """Name of the distribution that `package` would install: a requirement, a folder, a file or an address.

    Raises:
        ConfigError: it cannot be told before installing.

    """
    path = Path(package.partition("[")[0])
    local = "://" not in package and (editable or os.sep in package or package.startswith("."))
    if local and not path.exists():
        raise ConfigError(f"{package}: no such file or folder")
    if local and path.is_dir():
        name = _name_in(path)
    elif file := _WHEEL_OR_SDIST.fullmatch(package.partition("#")[0].rpartition("/")[2]):
        name = file[1]
    elif requirement := None if editable else _REQUIREMENT.match(package):
        name = requirement[0]
    else:
        name = package.rpartition("#egg=")[2].partition("[")[0] if "#egg=" in package else ""
    if not name:
        advice = "NAME @ ADDRESS says the name of what is elsewhere; a folder needs a [project] name in pyproject.toml"
        raise ConfigError(f"{package}: cannot tell which distribution this is: {advice}")
    return name


def _name_in(folder: Path) -> str:
    """Name that the metadata of a project's folder give, empty where none is written down.

    Raises:
        ConfigError: they cannot be read.

    """
    try:
        if (file := folder / "pyproject.toml").is_file():
            project = tomllib.loads(file.read_text(encoding="utf-8"))
            for table in (project.get("project", {}), project.get("tool", {}).get("poetry", {})):
                if "name" in table:
                    return str(table["name"])
        setup = configparser.ConfigParser(interpolation=None)
        setup.read(folder / "setup.cfg", encoding="utf-8")
        return setup.get("metadata", "name", fallback="")
    except (OSError, ValueError, AttributeError, TypeError, configparser.Error) as error:
        raise ConfigError(f"{folder}: cannot read its metadata: {error}") from error


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
