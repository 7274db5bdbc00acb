"""From a file of the suite to layers of ordinary configuration, each value with the key that it came from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rnn_lab.config import Layer, OptimizerSection
from rnn_lab.e3.schema import WITHOUT_EFFECT, E3File, TrainingKeys, idle
from rnn_lab.errors import ConfigError
from rnn_lab.sections import ObjectiveSection

MUCH_ENTROPY = 0.05
STEPS = 1000
"""Budget where none is named: [train]'s own."""
USUAL_SHARE = 0.1
"""Share of a budget that is warm-up where nothing says how long a budget the warm-up was for."""


@dataclass(frozen=True)
class Translated:
    """Layers, weakest first, and what a person has to know of the file."""

    layers: tuple[Layer, ...]
    warnings: tuple[str, ...]


def translate(file: E3File, name: str, later: Mapping[str, Any] | None = None) -> Translated:
    """Layers of the file called `name`.

    Args:
        file: checked.
        name: for origins.
        later: what stronger layers set. A budget there takes the place of the file's, and the warm-up keeps its share
            of it, be it steps, bytes or minutes; a width and depth take the place of its target.

    Raises:
        ConfigError: a setting that this version cannot train by.

    """
    later = later or {}
    notes = _of_file(file)
    values = {
        **_model(file, later.get("model") or {}),
        **_train(file, later.get("train") or {}, notes),
        **_optimizer(file.training),
        **_objective(file.training),
        **_loader(file.training, notes),
    }
    layers = []
    for key, (value, source) in values.items():
        section, _, field = key.partition(".")
        layers.append(Layer(f"{name}, {source}", {section: {field: value}}))
    return Translated(tuple(layers), tuple(f"{name}: {text}" for text in notes))


Values = dict[str, tuple[Any, str]]


def _of_file(file: E3File) -> list[str]:
    """Warnings that need nothing but the file."""
    t, notes = file.training, []
    foreign = [key for key in WITHOUT_EFFECT if getattr(file.model, key) is not None]
    if foreign:
        notes.append(f"{', '.join(foreign)}: of the source's transformer, without effect on {file.model.family}")
    notes += idle(t)
    if file.hardware.fp16 is not None:
        said = "bf16 takes its place and needs no loss scaling" if file.hardware.fp16 else "precision decides"
        notes.append(f"hardware.fp16 = {str(file.hardware.fp16).lower()}: {said}")
    if t.entropy_weight > MUCH_ENTROPY:
        notes.append(f"entropy_weight = {t.entropy_weight}: above {MUCH_ENTROPY} it costs much loss")
    return notes


def _model(file: E3File, later: Mapping[str, Any]) -> Values:
    model = file.model
    shaped = {"dim", "depth"} <= later.keys()
    values: Values = {"model.name": (model.family, "model.family")}
    if model.target_params is not None and not shaped:
        values["model.target"] = (model.target_params, "model.target_params")
    if model.hidden_dim is not None and "target" not in later:
        values["model.dim"] = (model.hidden_dim, "model.hidden_dim")
    if model.num_layers is not None and "target" not in later:
        values["model.depth"] = (model.num_layers, "model.num_layers")
    # Fields are of the family: another one knows nothing of them.
    if str(later.get("name", model.family)).lower() == model.family.lower():
        values |= {f"model.{key}": (value, f"model.fields.{key}") for key, value in model.fields.items()}
    return values


def _train(file: E3File, later: Mapping[str, Any], notes: list[str]) -> Values:
    t = file.training
    values: Values = {
        "train.batch_size": (t.batch_size, "training.batch_size"),
        "train.seq_len": (t.seq_length, "training.seq_length"),
        "train.grad_accum": (t.grad_accum_steps, "training.grad_accum_steps"),
        "train.clip": (t.grad_clip, "training.grad_clip"),
        # bf16 autocast on a GPU, fp32 on the CPU: what `auto` means.
        "train.dtype": ("auto" if file.hardware.precision == "bf16" else "fp32", "hardware.precision"),
    }
    if file.hardware.target == "cpu":
        values["train.device"] = ("cpu", "hardware.target")
    if t.gradient_checkpointing:
        values["train.checkpoint_every"] = (t.checkpoint_every, "training.gradient_checkpointing")
    if not {"steps", "tokens", "minutes"} & later.keys():
        if t.total_steps is not None:
            values["train.steps"] = (t.total_steps, "training.total_steps")
        if t.max_minutes is not None:
            values["train.minutes"] = (t.max_minutes, "training.max_minutes")
        return values | _schedule(t, t.total_steps, notes)
    if later.get("steps") is not None:
        return values | _schedule(t, _whole(later["steps"]), notes)
    return values | _shared(t, "minutes" in later, notes)


def _whole(steps: Any) -> int | None:
    """A budget of steps as a number, None where it is none: the configuration will say so."""
    try:
        return None if steps is None else int(steps)
    except (TypeError, ValueError):
        return None


def in_steps(warmup: float, total: int | None) -> int:
    """Steps of a warm-up, where `total` is the budget that a share of it is of."""
    return int(warmup) if warmup >= 1 or warmup == 0 else max(1, round(warmup * (total or STEPS)))


def share_of(warmup: float, total: int | None) -> float:
    """A warm-up as a share of its own budget `total`; of the usual one where that does not hold it."""
    if warmup < 1:
        return warmup
    whole = total or STEPS
    return warmup / whole if warmup < whole else USUAL_SHARE


def _shared(t: TrainingKeys, timed: bool, notes: list[str]) -> Values:
    """Schedule under a budget of minutes or bytes: the warm-up is the share of it that it was of the file's steps.

    Collider begins by steps, and no steps end with a share of the minutes: it begins where it would under the file's.
    """
    if t.schedule_type == "none":
        return _schedule(t, None, notes)
    share = share_of(t.warmup_steps, t.total_steps)
    if t.warmup_steps >= 1:
        notes.append(f"warmup_steps: {share:g} of the budget in place of {t.warmup_steps:g} steps")
    values = _schedule(t.model_copy(update={"warmup_steps": share}), None, notes)
    if share and timed and t.use_collider and t.collider_start_step is None:
        start = in_steps(t.warmup_steps, t.total_steps)
        notes.append(f"collider_start_step: {start}, where the warm-up ends under the file's own budget in steps")
        values["objective.collider_start_step"] = (start, "training.warmup_steps")
    return values


def _schedule(t: TrainingKeys, steps: int | None, notes: list[str]) -> Values:
    """Schedule and warm-up, which keeps its share where `steps` is no longer the file's budget."""
    warmup = t.warmup_steps
    if steps is not None and t.total_steps is not None and steps != t.total_steps and warmup >= 1:
        kept = max(1, round(warmup * steps / t.total_steps))
        if kept != warmup and kept < steps:
            notes.append(f"warmup_steps: {kept} of {steps} steps, the share of {warmup} of {t.total_steps}")
            warmup = kept
    if t.schedule_type == "none":
        return {"optimizer.warmup_steps": (in_steps(warmup, steps), "training.warmup_steps")}
    values: Values = {
        "schedule.type": (t.schedule_type, "training.schedule_type"),
        "schedule.warmup": (float(warmup), "training.warmup_steps"),
        "schedule.min_lr_ratio": (t.min_lr_ratio, "training.min_lr_ratio"),
    }
    if t.schedule_type == "wsd":
        values["schedule.stable_ratio"] = (t.stable_ratio, "training.stable_ratio")
    return values


def _optimizer(t: TrainingKeys) -> Values:
    """Name and settings of the rule that the features together mean."""
    values: Values = {
        "optimizer.name": (_rule(t), "training.optimizer_type"),
        "optimizer.lr": (t.learning_rate, "training.learning_rate"),
        "optimizer.weight_decay": (t.weight_decay, "training.weight_decay"),
    }
    if t.optimizer_type == "muon":
        for key in ("muon_momentum", "ns_steps", "muon_scale", "orthogonalizer"):
            values[f"optimizer.{key}"] = (getattr(t, key), f"training.{key}")
    if t.optimizer_type == "muon" or t.use_galore:
        values["optimizer.aux_lr"] = (t.aux_learning_rate, "training.aux_learning_rate")
        eight = t.use_8bit_optim if t.aux_8bit is None else t.aux_8bit
        values["optimizer.aux_8bit"] = (eight, "training.aux_8bit")
    if t.use_8bit_optim:
        if t.use_galore:
            values["optimizer.bits"] = (8, "training.use_8bit_optim")
        values["optimizer.block_size"] = (t.optim_block_size, "training.optim_block_size")
        values["optimizer.quant"] = (t.optim_quant, "training.optim_quant")
        values |= _newer(OptimizerSection, "optimizer", "stochastic_rounding", t, "optim_stochastic_rounding")
    if t.use_galore:
        for key in (
            "rank",
            "update_freq",
            "scale",
            "on_refresh",
            "min_dim",
            "force",
            "adaptive",
            "proj_dtype",
            "debias",
        ):
            value = getattr(t, f"galore_{key}")
            if value is not None:
                values[f"optimizer.galore_{key}"] = (value, f"training.galore_{key}")
        values |= _newer(OptimizerSection, "optimizer", "galore_layerwise", t, "galore_layerwise")
    return values


def _rule(t: TrainingKeys) -> str:
    if t.use_galore:
        return f"galore_{t.optimizer_type}"
    if t.optimizer_type == "muon":
        return "muon8bit" if t.use_8bit_optim else "muon"
    return {"adamw": "adamw", "adamw_schedulefree": "schedulefree"}[t.optimizer_type]


def _objective(t: TrainingKeys) -> Values:
    values: Values = {}
    for key in ("entropy_weight", "label_smoothing"):
        if getattr(t, key):
            values[f"objective.{key}"] = (getattr(t, key), f"training.{key}")
    if t.use_mtp:
        for key in (
            "use_mtp",
            "mtp_n_tokens",
            "mtp_weight",
            "mtp_decay",
            "mtp_normalize",
            "mtp_variant",
            "mtp_match_params",
        ):
            values[f"objective.{key}"] = (getattr(t, key), f"training.{key}")
    if t.use_collider:
        for key in ("use_collider", "collider_sparsity", "collider_threshold", "collider_mode", "collider_scorer"):
            values[f"objective.{key}"] = (getattr(t, key), f"training.{key}")
        for key in ("collider_start_step", "collider_min_dim"):
            if getattr(t, key) is not None:
                values[f"objective.{key}"] = (getattr(t, key), f"training.{key}")
        if t.collider_ref_checkpoint:
            values["objective.collider_reference"] = (t.collider_ref_checkpoint, "training.collider_ref_checkpoint")
        values |= _newer(ObjectiveSection, "objective", "collider_recurrent", t, "collider_recurrent")
    return values


def _newer(section: Any, table: str, field: str, t: TrainingKeys, key: str) -> Values:
    """A setting that is only passed on where it was changed.

    Raises:
        ConfigError: it was, and this version does not have it.

    """
    value = getattr(t, key)
    if value == TrainingKeys.model_fields[key].default:
        return {}
    if field not in section.model_fields:
        raise ConfigError(f"training.{key} = {value}: not available in this version: leave it out")
    return {f"{table}.{field}": (value, f"training.{key}")}


def _loader(t: TrainingKeys, notes: list[str]) -> Values:
    if not t.use_async_loader:
        return {}
    most = max(1, (os.cpu_count() or 1) - 1)
    if t.num_workers == 0:
        notes.append("num_workers = 0 with use_async_loader: batches are read when they are needed")
    elif t.num_workers > most:
        notes.append(f"num_workers = {t.num_workers}: {most} here, one less than the cores; batches are the same")
    return {
        "loader.workers": (min(t.num_workers, most), "training.num_workers"),
        "loader.prefetch": (t.prefetch_batches, "training.prefetch_batches"),
    }
