"""Checks of what a model is before it computes: discovery and its Config."""

import os
import subprocess
import sys
import tomllib
from functools import cache
from typing import Any

import tomli_w
from pydantic import ValidationError

from rnn_lab.testing.contract import ContractError, check, expect
from rnn_lab.testing.subject import Subject

_PROBE = """
import os, sys
from pathlib import Path
from rnn_lab.registry import build_registry
folder, name = sys.argv[1:]
found = build_registry(Path(folder) if folder else None)
problems = [f"{p.name}: {text}" for p in found.plugins for text in p.problems]
if name not in found.models:
    sys.exit(f"discovery does not list the model: {'; '.join(problems) or 'no plugin brings it'}")
if "torch" in sys.modules:
    sys.exit("discovery imports torch")
"""


@check("discovery", "listing the model imports no torch", every_variant=False)
def discovery(subject: Subject, cfg: Any) -> None:
    """The model is listed, in a fresh process with only its plugin, and torch stays unimported."""
    ref = subject.ref
    folder = str(ref.path.parent) if ref.module.startswith("rnn_lab_folder_") else ""
    problem = _probe("" if folder else ref.plugin, folder, ref.name, tuple(sys.path))
    expect(not problem, problem)


@cache
def _probe(plugin: str, folder: str, name: str, path: tuple[str, ...]) -> str:
    """What is wrong with discovering `name`, or an empty string."""
    environment = {
        **os.environ,
        "RNN_LAB_LOAD_PLUGINS": plugin,
        "RNN_LAB_STRICT_PLUGINS": "0",
        "PYTHONPATH": os.pathsep.join(path),
    }
    command = [sys.executable, "-c", _PROBE, folder, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode == 0:
        return ""
    return done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"


@check("config", "Config survives JSON and TOML, refuses unknown keys, is frozen and described")
def config(subject: Subject, cfg: Any) -> None:
    """Round trips give an equal Config; unknown keys and assignments raise; every field has a description."""
    schema = type(cfg)
    expect(schema.model_validate_json(cfg.model_dump_json()) == cfg, "the JSON round trip changes the Config")
    # TOML has no null: a field left at None is left out.
    written = tomli_w.dumps(cfg.model_dump(mode="json", exclude_none=True))
    expect(schema.model_validate(tomllib.loads(written)) == cfg, "the TOML round trip changes the Config")
    _refuses_unknown(cfg)
    _is_frozen(cfg)
    bare = [name for name, info in schema.model_fields.items() if not (info.description or "").strip()]
    expect(not bare, f"fields without a description: {', '.join(bare)}")


def _refuses_unknown(cfg: Any) -> None:
    try:
        type(cfg).model_validate({**cfg.model_dump(), "no_such_field": 1})
    except ValidationError as error:
        kinds = {item["type"] for item in error.errors()}
        expect("extra_forbidden" in kinds, f"an unknown key gives {kinds}, not extra_forbidden")
    else:
        raise ContractError("an unknown key is accepted: Config needs extra='forbid'")


def _is_frozen(cfg: Any) -> None:
    before = cfg.dim
    try:
        cfg.dim = before
    except ValidationError:
        return
    raise ContractError("a field can be assigned: Config needs frozen=True")
