"""Importing peers. Each loads only when it is measured, and what keeps one from loading is a row, not an error."""

import importlib
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from rnn_lab.errors import RnnLabError


class MissingPeer(RnnLabError):
    """A library cannot be used here; the text says why."""


@cache
def load(module: str) -> Any:
    """The module.

    Raises:
        MissingPeer: it is not installed, or does not import: a broken library raises whatever it likes.

    """
    library = module.partition(".")[0]
    if library not in sys.modules and find_spec(library) is None:
        raise MissingPeer(f"{library} is not installed")
    try:
        if library == "mamba_ssm":
            _without_mamba1()
        found = importlib.import_module(module)
        if module == "fla.ops.gated_delta_rule":
            _right_tile()
    except Exception as error:
        raise MissingPeer(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    return found


def _without_mamba1() -> None:
    """Register mamba-ssm's packages bare: importing them otherwise needs a CUDA extension that only Mamba-1 uses."""
    if "mamba_ssm" in sys.modules or find_spec("selective_scan_cuda") is not None:
        return
    spec = find_spec("mamba_ssm")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.modules"):
        package = ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package


def _right_tile() -> None:
    """Let FLA's gated delta rule run backward on Hopper with Triton 3.4 to 3.7, where it refuses to.

    Triton miscompiles its kernel there for a tile of 64, not for one of 32 (fla issue 640), so it is given that one.
    Its results are checked like everybody's.
    """
    from unittest import mock

    chunk_o: Any = importlib.import_module("fla.ops.common.chunk_o")
    user: Any = importlib.import_module("fla.ops.gated_delta_rule.chunk")
    shipped = user.chunk_bwd_dqkwg

    def smaller(*args: Any, **kwargs: Any) -> Any:
        with mock.patch.multiple(chunk_o, IS_NVIDIA_HOPPER=False, check_shared_mem=lambda *_: False):
            return shipped(*args, **kwargs)

    if chunk_o.IS_NVIDIA_HOPPER and chunk_o.TRITON_ABOVE_3_4_0 and not chunk_o.TRITON_ABOVE_3_7_1:
        user.chunk_bwd_dqkwg = smaller
