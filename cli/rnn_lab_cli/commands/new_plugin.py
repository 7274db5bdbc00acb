"""`rnn-lab new-plugin`."""

import keyword
import re
import shlex
import shutil
import sys
import tempfile
from importlib import metadata
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import click
from rnn_lab.discovery.distributions import is_own, normalised
from rnn_lab.errors import ConfigError
from rnn_lab.registry import registry

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_RESERVED = {"builtin", "cli", "tests"}
"""Rows of `rnn-lab plugins` that are no entry points, and the folder beside the package."""
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "init.py": "{package}/__init__.py",
    "cell.py": "{package}/{package}.py",
    "kernels_init.py": "{package}/kernels/__init__.py",
    "kernel.py": "{package}/kernels/leak.py",
    "test_contract.py": "tests/test_contract.py",
    "test_kernel.py": "tests/test_kernel.py",
}
"""Templates (each with the suffix .tmpl), and the files that they become."""


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--out", metavar="DIR", help="Folder to write; default: NAME.")
def new_plugin(name: str, out: str | None) -> None:
    """Write a plugin called NAME that works at once: a cell, its recurrence as an operation, tests, metadata.

    `rnn-lab install -e DIR` installs it, `rnn-lab check NAME` holds it to the contract.
    """
    package = package_of(name)
    folder = Path(out or name)
    values = {"package": package, "distribution": package.replace("_", "-")}
    write({target.format(**values): rendered(source, values) for source, target in FILES.items()}, folder)
    for target in FILES.values():
        click.echo(folder / target.format(**values))
    where = shlex.quote(str(folder))
    click.echo("next:")
    click.echo(f"  rnn-lab install -e {where}")
    click.echo(f"  rnn-lab check {package}")
    click.echo(f"  python -m pytest {where}")


def package_of(name: str) -> str:
    """Name of the plugin's package, which is its model's too.

    Raises:
        ConfigError: not a name, or one that is taken.

    """
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(package) or len(name) > 60:
        raise ConfigError(f"{name!r} cannot name a plugin: use lower-case words, such as my-cells")
    found = registry()
    if {name, package} & {*found.models, *found.aliases}:
        raise ConfigError(f"{name!r}: there is a model of that name already; see `rnn-lab list-models`")
    if is_own(name) or package in _RESERVED | {info.name for info in found.plugins}:
        raise ConfigError(f"{name!r}: there is a plugin of that name, or rnn-lab uses it itself; choose another name")
    # A folder without __init__.py, such as an earlier plugin's beside this one, takes no name away.
    spec = find_spec(package)
    if package in sys.stdlib_module_names or (spec is not None and spec.origin is not None):
        raise ConfigError(f"{name!r}: there is a Python module called {package} already; choose another name")
    if normalised(name) in {normalised(dist.name) for dist in metadata.distributions()}:
        raise ConfigError(f"{name!r}: a distribution of that name is installed; choose another name")
    return package


def rendered(source: str, values: dict[str, str]) -> str:
    """Text of a template with its values in."""
    text = (files("rnn_lab_cli") / "template" / f"{source}.tmpl").read_text(encoding="utf-8")
    for key, value in {**values, "version": metadata.version("rnn-lab-core")}.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def write(contents: dict[str, str], folder: Path) -> None:
    """All files or none.

    Raises:
        ConfigError: the folder holds something already, or cannot be written.

    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already: choose another --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, text in contents.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).write_text(text, encoding="utf-8")
            draft.chmod(0o755)
            draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write there: {error.strerror}") from error
