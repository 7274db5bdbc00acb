"""A golden case: `NAME.safetensors` with float64 tensors and `NAME.json` that says what they are.

Every tensor that a check reads is noted; what nobody read at the end was never compared.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


class CaseError(Exception):
    """The case is corrupt, or says something that our models cannot express; the text names it."""


class NotInstalledError(Exception):
    """The case belongs to a model that is not registered."""

    def __init__(self, model: str) -> None:
        super().__init__(f"model {model} is not installed")
        self.model = model


class FolderError(Exception):
    """A folder is missing or holds no case."""


@dataclass
class Case:
    """One golden case in memory."""

    name: str
    sidecar: dict[str, Any]
    tensors: dict[str, Tensor]
    seen: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def get(self, name: str) -> Tensor:
        """The tensor called `name`, from now on counted as checked."""
        if name not in self.tensors:
            raise CaseError(f"tensor {name} is missing")
        self.seen.add(name)
        return self.tensors[name]

    def table(self, key: str) -> dict[str, Any]:
        """The object `key` of the sidecar."""
        value = self.sidecar.get(key)
        if not isinstance(value, dict):
            raise CaseError(f"{self.name}.json: {key!r} is missing or not an object")
        return value

    def parameters(self) -> list[str]:
        """Source names of all parameters."""
        return [name.removeprefix("param.") for name in self.tensors if name.startswith("param.")]

    def unchecked(self) -> list[str]:
        """Tensors that were never read."""
        return sorted(set(self.tensors) - self.seen)


def discover(folders: Iterable[Path]) -> list[Path]:
    """Every case of `folders`, as path without suffix.

    Raises:
        FolderError: a folder is missing or holds no case.

    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise FolderError(f"{folder}: no such folder")
        files = (path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
        stems = sorted({path.with_suffix("") for path in files})
        if not stems:
            raise FolderError(f"{folder}: holds no golden case (NAME.safetensors with NAME.json)")
        found += stems
    return found


def load(stem: Path) -> Case:
    """The case at `stem`.

    Raises:
        CaseError: a file is missing, unreadable, or not of the format.

    """
    paths = [stem.parent / f"{stem.name}{suffix}" for suffix in (".json", ".safetensors")]
    for path in paths:
        if not path.is_file():
            raise CaseError(f"{path.name} is missing")
    try:
        sidecar = json.loads(paths[0].read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CaseError(f"{paths[0].name}: {type(error).__name__}: {error}") from error
    try:
        tensors = load_file(paths[1])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CaseError(f"{paths[1].name}: {type(error).__name__}: {error}") from error
    if not isinstance(sidecar, dict):
        raise CaseError(f"{paths[0].name} is not an object")
    case = Case(stem.name, sidecar, tensors)
    _check_format(case)
    return case


def _check_format(case: Case) -> None:
    """Double precision throughout, finite, and every tensor that the sidecar lists, in its shape."""
    for name, tensor in case.tensors.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            raise CaseError(f"tensor {name} is {tensor.dtype}, not float64")
        if not bool(tensor.isfinite().all()):
            raise CaseError(f"tensor {name} is not finite")
    listed = dict(case.sidecar.get("tensors") or {})
    listed |= {f"param.{name}": shape for name, shape in (case.sidecar.get("shapes") or {}).items()}
    for name, shape in listed.items():
        if name not in case:
            raise CaseError(f"tensor {name} is missing, but the sidecar lists it")
        if list(case.tensors[name].shape) != list(shape):
            raise CaseError(f"tensor {name} is {list(case.tensors[name].shape)}, the sidecar says {shape}")
