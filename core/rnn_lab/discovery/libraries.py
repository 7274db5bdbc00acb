"""Libraries that nothing needs: each loads at its first use, and what keeps one from loading can be told."""

import importlib
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from rnn_lab.errors import RnnLabError


class MissingLibrary(RnnLabError):
    """A library cannot be used here; the text says why."""


@cache
def load(module: str) -> Any:
    """The module.

    Raises:
        MissingLibrary: it is not installed, or does not import: a broken library raises whatever it likes.

    """
    library = module.partition(".")[0]
    try:
        if library not in sys.modules and find_spec(library) is None:
            raise MissingLibrary(f"{library} is not installed")
        if library == "mamba_ssm":
            _without_mamba1()
        return importlib.import_module(module)
    except MissingLibrary:
        raise
    except Exception as error:
        raise MissingLibrary(f"{module} cannot be imported: {type(error).__name__}: {error}") from error


@cache
def load_gated_delta_rule() -> Any:
    """FLA's gated delta rule, with a tile that is right where it refuses its own; see refuses_tile.

    Raises:
        MissingLibrary: as load.

    """
    found = load("fla.ops.gated_delta_rule")
    if refuses_tile():
        _right_tile()
    return found


def refuses_tile() -> bool:
    """Whether FLA, once loaded, refuses to run its gated delta rule backward here: on Hopper with Triton 3.4 to 3.7.

    Triton miscompiles its kernel there for a key tile of 64, not for one of 32 (fla issue 640).
    """
    chunk_o: Any = sys.modules.get("fla.ops.common.chunk_o")
    refuses = chunk_o and chunk_o.IS_NVIDIA_HOPPER and chunk_o.TRITON_ABOVE_3_4_0 and not chunk_o.TRITON_ABOVE_3_7_1
    return bool(refuses)


@cache
def load_flashrnn() -> Any:
    """FlashRNN, told about the GPU by torch: its own query is an extension that CUDA 13 no longer compiles.

    Raises:
        MissingLibrary: as load.

    """
    found = load("flashrnn")
    load("flashrnn.flashrnn.flashrnn").get_gpu_info = _gpu_info
    return found


def _gpu_info(device_id: int) -> dict[str, int]:
    """What FlashRNN plans with, by the names of cudaDeviceProp."""
    import torch

    properties: Any = torch.cuda.get_device_properties(device_id)
    return {
        "maxThreadsPerBlock": 1024,
        "multiProcessorCount": properties.multi_processor_count,
        "regsPerMultiprocessor": properties.regs_per_multiprocessor,
        "sharedMemPerBlockOptin": properties.shared_memory_per_block_optin,
    }


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
    """Let FLA's gated delta rule run backward with a tile of 32; its results are checked like everybody's."""
    from unittest import mock

    chunk_o: Any = importlib.import_module("fla.ops.common.chunk_o")
    user: Any = importlib.import_module("fla.ops.gated_delta_rule.chunk")
    shipped = user.chunk_bwd_dqkwg

    def smaller(*args: Any, **kwargs: Any) -> Any:
        with mock.patch.multiple(chunk_o, IS_NVIDIA_HOPPER=False, check_shared_mem=lambda *_: False):
            return shipped(*args, **kwargs)

    user.chunk_bwd_dqkwg = smaller
