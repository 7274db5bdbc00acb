"""Checkpoints: tensors as safetensors, everything else as JSON, nothing pickled.

One process writes a file per group of tensors; several write `shards/`, a file per rank (parallel.storage). Both are
read here alike.

A checkpoint is written under a temporary name, fsynced and renamed, so a folder `step_N` is always complete; a
manifest of sha256 sums tells one that was altered afterwards, and loading falls back to the one before.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from rnn_lab.errors import CheckpointError
from rnn_lab.system.atomic import fsync_dir, write_bytes_atomic
from rnn_lab.train.rundir import REPLACED, list_checkpoints

MANIFEST = "sha256.json"
SHARDS = "shards"
"""Folder of the tensors of a checkpoint that several ranks wrote."""


@dataclass
class Checkpoint:
    """Everything a run needs to go on exactly.

    Attributes:
        step: optimizer steps done.
        tensors: groups of named tensors: `model`, `optimizer`, `random`, `carry`.
        state: JSON values: optimizer scalars, data chain, clock.
        path: folder that it was read from.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/step_N` durably, then remove all but the newest `keep`.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = folder / f"step_{checkpoint.step}"
    temporary = folder / f".step_{checkpoint.step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        files = {f"{name}.safetensors": save_safetensors(_plain(group)) for name, group in checkpoint.tensors.items()}
        files["state.json"] = json.dumps({"step": checkpoint.step, **checkpoint.state}, allow_nan=False).encode()
        with ThreadPoolExecutor(1) as hashing:
            sums = {name: hashing.submit(_sha256, data) for name, data in files.items()}
            for name, data in files.items():
                write_bytes_atomic(temporary / name, data)
            manifest = {name: found.result() for name, found in sums.items()}
        write_bytes_atomic(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        publish(temporary, final, keep)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def publish(temporary: Path, final: Path, keep: int) -> None:
    """Give a complete checkpoint its name, then remove all but the newest `keep`."""
    before = final.with_name(f".{final.name}{REPLACED}")
    if final.exists():
        shutil.rmtree(before, ignore_errors=True)
        final.rename(before)
    temporary.rename(final)
    fsync_dir(final.parent)
    shutil.rmtree(before, ignore_errors=True)
    for _, old in list_checkpoints(final.parent)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint and check its sums.

    Raises:
        CheckpointError: a file is missing, truncated or altered.
    """
    return _read(path, tensors=True)


def read_state(path: Path) -> Checkpoint:
    """The same without tensors, whose sums are checked all the same.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    return _read(path, tensors=False)


def _read(path: Path, tensors: bool) -> Checkpoint:
    try:
        sums = json.loads((path / MANIFEST).read_bytes())
        files: dict[str, bytes] = {}
        wrong = []
        for name in sums:
            data = (path / name).read_bytes()
            wrong += [name] if _sha256(data) != sums[name] else []
            # Shards are read again, by torch: they may be larger than memory.
            files |= {name: data} if name == "state.json" or (tensors and not name.startswith(SHARDS)) else {}
        if wrong or "state.json" not in files:
            raise CheckpointError(f"{path}: sha256 of {', '.join(wrong) or 'state.json'} does not match")
        state = json.loads(files.pop("state.json"))
        groups = {name.removesuffix(".safetensors"): load_safetensors(data) for name, data in files.items()}
        if tensors and (path / SHARDS).is_dir():
            groups = _whole(path / SHARDS)
        return Checkpoint(state.pop("step"), groups, state, path)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: not an intact checkpoint: {type(error).__name__}: {error}") from error


def read_shards(folder: Path, placed: Callable[[str, torch.Size, torch.dtype], Tensor | None]) -> dict[str, Tensor]:
    """Read what `placed` gives a place for, by key, size and dtype, into that place; a DTensor takes its part.

    Raises:
        CheckpointError: torch cannot read it.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # seconds that others need not spend
    from torch.distributed.checkpoint.state_dict_loader import load

    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    found: dict[str, Tensor] = {}
    for key, about in stored.items():
        place = placed(key, about.size, about.properties.dtype)  # type: ignore[union-attr]
        if place is not None:
            found[key] = place
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a load that every rank makes for itself
        try:
            load(dict(found), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        except CheckpointException as error:  # which is no Exception
            raise CheckpointError(f"{folder} cannot be read: {error}") from error
    return found


def _whole(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Groups of whole tensors; a rank's own, such as its generators, are left to ranks."""
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}, "carry": {}}
    found = read_shards(folder, lambda key, size, dtype: None if _of_rank(key) else torch.empty(size, dtype=dtype))
    for key, tensor in found.items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    return groups


def _of_rank(key: str) -> bool:
    return key.startswith("random/rank")


def load_latest(
    folder: Path, warn: Callable[[str], None], load: Callable[[Path], Checkpoint] = load_checkpoint
) -> Checkpoint | None:
    """Newest intact checkpoint, with a warning for each that is not; None when there never was one.

    Args:
        folder: of checkpoints.
        warn: hears of those that are not intact.
        load: reads one, or a part of it.

    Raises:
        CheckpointError: there are checkpoints and none is intact.
    """
    found = list_checkpoints(folder)
    for _, path in reversed(found):
        try:
            return load(path)
        except CheckpointError as error:
            warn(f"{error}. Falling back to the checkpoint before it.")
    if found:
        raise CheckpointError(
            f"{folder}: none of {len(found)} checkpoints is intact. Restore one from a copy, or delete the folder "
            "to start this run again from its first step."
        )
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and as JSON values."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {"groups": state["param_groups"], "state": {}}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                values["state"].setdefault(str(index), {})[name] = value
    return tensors, values


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Inverse of `optimizer_tensors`; dtypes of the state are kept as saved."""
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in values["state"].items()}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"param_groups": [_group(g) for g in values["groups"]], "state": state})


def _group(group: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples; optimizers compare none but keep them."""
    return {name: tuple(value) if name == "betas" else value for name, value in group.items()}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _plain(group: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, as the format requires; it refuses those that share memory."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}


def random_state() -> dict[str, Tensor]:
    """State of torch's generators, the CPU's and each CUDA device's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random_state(states: dict[str, Tensor], device: torch.device | None = None) -> None:
    """Inverse of `random_state`; devices that are absent here are passed over.

    Args:
        states: by name.
        device: the one of a rank, which `cuda0` is meant for wherever it is; None: all devices are this process's.

    """
    torch.set_rng_state(states["cpu"])
    if device is not None:
        if device.type == "cuda" and "cuda0" in states:
            torch.cuda.set_rng_state(states["cuda0"], device)
        return
    for index, state in _cuda_states(states):
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, index)


def _cuda_states(states: dict[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    return ((int(name[4:]), state) for name, state in states.items() if name.startswith("cuda"))
