"""Checkpoints of several ranks, through torch.distributed.checkpoint: each writes what it holds, as safetensors.

`step_N/shards/` has a file per rank beside the `state.json` and the sums of every checkpoint; keys are `group/name` of
the tensors that one process would have written whole. So any number of ranks reads them, one process included, and
what a rank reads is its own part only. Nothing is pickled.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rnn_lab.parallel.world import World
from rnn_lab.system.atomic import fsync_dir, write_bytes_atomic
from rnn_lab.train import checkpoint as ckpt

if TYPE_CHECKING:
    from rnn_lab.parallel.sharing import Several

Placed = Callable[[str, torch.Size, torch.dtype], Tensor | None]
"""Where a rank wants a stored tensor, by its key, size and dtype; None: it has no use for it."""


def save(world: World, folder: Path, checkpoint: ckpt.Checkpoint, keep: int) -> Path:
    """As `checkpoint.save_checkpoint`, called by every rank with its own part of the tensors.

    A tensor that is cut is a DTensor; of others every rank may have all, or one of them some.

    Raises:
        OSError: the disk is full or not writable, on every rank; earlier checkpoints are untouched.

    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    final = folder / f"step_{checkpoint.step}"
    temporary = folder / f".step_{checkpoint.step}.tmp"

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / ckpt.SHARDS).mkdir(parents=True)

    world.together(begin)
    flat = {f"{group}/{name}": t for group, tensors in checkpoint.tensors.items() for name, t in tensors.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's of its own deprecations
            writer = HuggingFaceStorageWriter(str(temporary / ckpt.SHARDS), save_distributed=True)
            save_parts(flat, storage_writer=writer)
    except (Exception, CheckpointException) as error:  # which is no Exception
        world.together(lambda: shutil.rmtree(temporary, ignore_errors=True))
        raise _root(error) from error
    mine = sorted((temporary / ckpt.SHARDS).glob(f"shard-{world.rank + 1:05d}-*"))
    sums = {f"{ckpt.SHARDS}/{path.name}": _sha256(path) for path in mine}
    every = {name: value for found in world.everyone(sums) for name, value in found.items()}

    def end() -> None:
        data = json.dumps({"step": checkpoint.step, **checkpoint.state}, allow_nan=False).encode()
        write_bytes_atomic(temporary / "state.json", data)
        manifest = every | {"state.json": hashlib.sha256(data).hexdigest()}
        write_bytes_atomic(temporary / ckpt.MANIFEST, json.dumps(manifest, indent=1).encode())
        fsync_dir(temporary / ckpt.SHARDS)
        ckpt.publish(temporary, final, keep)

    world.together(end)
    return final


def latest(world: World, folder: Path, warn: Callable[[str], None]) -> ckpt.Checkpoint | None:
    """As `checkpoint.load_latest`. Several ranks get no tensors yet but the folder that `fill` reads them from."""
    if world.size == 1:
        return ckpt.load_latest(folder, warn)

    def find() -> ckpt.Checkpoint | None:
        found = ckpt.load_latest(folder, warn, ckpt.read_state)
        return None if found is None else ckpt.Checkpoint(found.step, {}, found.state, found.path)

    return world.together(find)


def fill(path: Path, placed: Placed) -> dict[str, Tensor]:
    """Read from the checkpoint in `path` what this rank has a place for, into that place.

    Returns:
        The places by key: a DTensor for a tensor that is cut.

    """
    if (path / ckpt.SHARDS).is_dir():
        return ckpt.read_shards(path / ckpt.SHARDS, placed)
    whole = ckpt.load_checkpoint(path)
    found: dict[str, Tensor] = {}
    for group, tensors in whole.tensors.items():
        for name, tensor in tensors.items():
            place = placed(f"{group}/{name}", tensor.shape, tensor.dtype)
            if place is not None:
                found[f"{group}/{name}"] = place
                with torch.no_grad():
                    _cut(place).copy_(_part(place, tensor))
    return found


def load(sharing: "Several", optimizer: torch.optim.Optimizer, saved: ckpt.Checkpoint) -> dict[str, Tensor]:
    """Model, optimizer and generators of one of several ranks, from a checkpoint that any number of them wrote.

    Returns:
        The carried states of this rank's sequences, flat.

    Raises:
        KeyError, RuntimeError, ValueError: it is of another model or optimizer.

    """
    assert saved.path is not None
    here: dict[str, Tensor] = dict(sharing.model.state_dict())
    world = sharing.world
    own = f"random/rank{world.rank}."

    def placed(key: str, size: torch.Size, dtype: torch.dtype) -> Tensor | None:
        group, _, name = key.partition("/")
        if group == "model":
            if here[name].shape != size:
                raise RuntimeError(f"{name} has the shape {tuple(here[name].shape)}, and {tuple(size)} was saved")
            return here[name]
        if group == "optimizer":
            return sharing.state_place(name, size, dtype)
        if group == "carry":
            return sharing.carry_place(size, dtype)
        wanted = key.startswith(own) or "rank" not in name
        return torch.empty(size, dtype=dtype) if wanted else None

    found = fill(saved.path, placed)
    missing = here.keys() - {key.removeprefix("model/") for key in found if key.startswith("model/")}
    if missing:
        raise RuntimeError(f"nothing was saved of {', '.join(sorted(missing)[:3])}")
    sharing.loaded()
    state = {key.partition("/")[2]: _cut(t) for key, t in found.items() if key.startswith("optimizer/")}
    ckpt.restore_optimizer(optimizer, state, saved.state["optimizer"])
    random = {key.partition("/")[2]: t for key, t in found.items() if key.startswith("random/")}
    mine = {key.removeprefix("random/"): t for key, t in found.items() if key.startswith(own)}
    if mine and saved.state.get("ranks") == world.size:
        random = {name.partition(".")[2]: t for name, t in mine.items()}
    ckpt.restore_random_state(random, sharing.model.embedding.weight.device)
    return {key.partition("/")[2]: _cut(t) for key, t in found.items() if key.startswith("carry/")}


def _part(place: Tensor, whole: Tensor) -> Tensor:
    """What of a whole tensor belongs into a place."""
    mesh = getattr(place, "device_mesh", None)
    if mesh is None:
        return whole
    each = -(-whole.shape[0] // mesh.size())
    first = min(mesh.get_local_rank() * each, whole.shape[0])
    return whole[first : first + each]


def _cut(t: Tensor) -> Tensor:
    local = getattr(t.detach(), "to_local", None)
    return t if local is None else local()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _root(error: BaseException) -> BaseException:
    """What went wrong on a rank, of an error of torch that holds one per rank."""
    inner: dict[int, Any] = getattr(error, "failures", {})
    return next((e for e, _ in _pairs(inner) if isinstance(e, OSError)), error)


def _pairs(failures: dict[int, Any]) -> Iterator[tuple[Any, Any]]:
    return ((value[0], value[1]) if isinstance(value, tuple) else (value, None) for value in failures.values())
