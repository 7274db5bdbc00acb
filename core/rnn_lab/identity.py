"""What has to be equal wherever runs of one series run: rnn-lab, its plugins, and their code.

`python -m rnn_lab.identity [PLUGINS_DIR]` prints an installation's as JSON.
"""

import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from rnn_lab.errors import RnnLabError
from rnn_lab.registry import BUILTIN, PluginInfo, Registry, build_registry

_SOURCES = {".py", ".toml", ".cu", ".cuh"}
_SECONDS = 120.0


@dataclass(frozen=True)
class Identity:
    """One installation of rnn-lab.

    Attributes:
        host: machine.
        parts: for the core and every plugin, by name: `distribution version, code DIGEST`. The digest is of the source
            files, because an editable installation changes without its version.
    """

    host: str
    parts: Mapping[str, str]


def identity(plugins_dir: str | None = None) -> Identity:
    """Of this process, with the single-file models of `plugins_dir`.

    Raises:
        ConfigError: there is no such folder.
    """
    return identity_with(build_registry(Path(plugins_dir) if plugins_dir else None))


def identity_with(found: Registry) -> Identity:
    """Of this process and what it has loaded."""
    return Identity(socket.gethostname(), {_named(info): _shown(info) for info in found.plugins})


def identity_of(python: str, env: Mapping[str, str], plugins_dir: str | None) -> Identity:
    """Of the installation that `python` runs in the environment `env`: the one that will train.

    Raises:
        RnnLabError: it has no rnn-lab, or that cannot say what it is.
    """
    command = [python, "-m", "rnn_lab.identity", *([plugins_dir] if plugins_dir else [])]
    try:
        done = subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RnnLabError(f"{socket.gethostname()}: rnn-lab says nothing of itself in {_SECONDS:g} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RnnLabError(f"{socket.gethostname()}: rnn-lab cannot be used by {python} there: {said}")
    table = json.loads(done.stdout)
    return Identity(table["host"], table["parts"])


def difference(here: Identity, there: Identity) -> str | None:
    """Why a run there would not be the run that was planned here, naming both; None where they are equal."""
    wrong = []
    for name in dict.fromkeys([*here.parts, *there.parts]):
        mine, its = (side.parts.get(name, "not there") for side in (here, there))
        if mine != its:
            wrong.append(f"{name}: {its} on {there.host}, {mine} on {here.host}")
    if not wrong:
        return None
    return "rnn-lab differs between the machines: " + "; ".join(wrong) + ". Install the same on both"


def _named(info: PluginInfo) -> str:
    return "core" if info.module == BUILTIN else f"plugin {info.name}"


def _shown(info: PluginInfo) -> str:
    if info.module == "(folder)":  # its name is the folder
        return f"code {_digest([Path(info.name)])}"
    package = info.module.partition(":")[0].partition(".")[0]
    spec = find_spec(package)
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    if not folders and spec and spec.origin:
        folders = [Path(spec.origin)]
    version = metadata.version(info.distribution) if info.distribution else ""
    return f"{f'{info.distribution} {version}'.strip() or package}, code {_digest(folders)}"


def _digest(places: Sequence[Path]) -> str:
    """Of all source files: names below their place, and contents."""
    digest = hashlib.sha256()
    for place in places:
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.suffix in _SOURCES)
        for path in files:
            digest.update(f"{path.name if place.is_file() else path.relative_to(place).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(identity(*sys.argv[1:2]))))
