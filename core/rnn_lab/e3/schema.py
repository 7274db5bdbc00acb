"""Configuration files of the E3 suite as the seeds' documents write them: `[model]`, `[training]`, `[hardware]`.

Keys and their order are the documents'. What was of their transformer is read and has no effect; what rnn-lab adds is
optional. `translate` turns a file into the sections of an ordinary run.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from rnn_lab.config import Count, validate
from rnn_lab.errors import ConfigError
from rnn_lab.sections import MAX_HORIZON
from rnn_lab.strict import StrictModel

SECTIONS = ("model", "training", "hardware")
ALIASES = {
    "model": {"dim": "hidden_dim", "n_layers": "num_layers", "depth": "num_layers"},
    "training": {
        "lr": "learning_rate", "async_n_workers": "num_workers", "async_prefetch_size": "prefetch_batches",
        "decay_start_frac": "stable_ratio",
    },
}  # fmt: skip
"""Other names that the seeds' source has for keys of the documents."""
WITHOUT_EFFECT = ("num_heads", "num_kv_heads", "ffn_mult", "group_size", "mhc_n_streams")
"""Keys of `[model]` that describe the source's transformer."""
_MUON = ("muon_momentum", "ns_steps", "muon_scale", "orthogonalizer")
_AUX = ("aux_optimizer", "aux_learning_rate", "aux_8bit")
_READING = ("num_workers", "prefetch_batches")
_RATE = ("stable_ratio", "min_lr_ratio")


class ModelKeys(StrictModel):
    """`[model]`: what is trained."""

    name: str = Field("e3", description="name of the configuration")
    family: str = Field("e61", description="registered model or alias")
    target_params: Count | None = Field(None, description="parameter target that the solver sizes the model to")
    hidden_dim: int | None = Field(None, ge=1, description="width; also `dim`")
    num_layers: int | None = Field(None, ge=1, le=1024, description="layers; also `n_layers`, `depth`")
    fields: dict[str, Any] = Field(default_factory=dict, description="fields of the model's own Config")
    vocab_size: int = Field(256, description="256: the data are bytes")
    max_seq_len: int | None = Field(None, ge=1, description="longest sequence that seq_length may ask for")
    num_heads: int | None = Field(None, description="of the source's transformer, without effect")
    num_kv_heads: int | None = Field(None, description="of the source's transformer, without effect")
    ffn_mult: float | None = Field(None, description="of the source's transformer, without effect")
    group_size: int | None = Field(None, description="of the source's transformer, without effect")
    mhc_n_streams: int | None = Field(None, description="of the source's transformer, without effect")

    @model_validator(mode="after")
    def _fits(self) -> "ModelKeys":
        if self.vocab_size != 256:
            raise ValueError(f"vocab_size = {self.vocab_size}: the data are bytes, whose vocabulary is 256")
        if self.target_params is not None and self.hidden_dim is not None and self.num_layers is not None:
            raise ValueError("target_params, hidden_dim and num_layers: give the size, or both of the others")
        return self


class TrainingKeys(StrictModel):
    """`[training]`: budget, optimizer and features."""

    total_steps: Count | None = Field(None, description="budget in optimizer steps; 1,000 where nothing is named")
    max_minutes: float | None = Field(None, gt=0, description="budget in minutes of training steps")
    batch_size: int = Field(256, ge=1, le=2**20, description="sequences per optimizer step")
    seq_length: int = Field(512, ge=1, le=2**24, description="bytes predicted per sequence")
    grad_accum_steps: int = Field(1, ge=1, le=2**16, description="micro-batches of a step")
    learning_rate: float = Field(0.02, gt=0, le=100, description="of matrices under Muon; also `lr`")
    warmup_steps: int | float = Field(0, ge=0, description="steps of linear warm-up; below 1 a share of the budget")
    weight_decay: float = Field(0.01, ge=0, le=100, description="decoupled weight decay")
    grad_clip: float = Field(1.0, ge=0, description="global gradient norm limit")
    entropy_weight: float = Field(0.0, ge=0, le=1, description="reward of the predictions' entropy")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all bytes")
    optimizer_type: Literal["muon", "adamw", "adamw_schedulefree"] = Field("muon", description="update rule")
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="decay of Muon's momentum")
    ns_steps: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations")
    muon_scale: Literal["original", "match_rms_adamw"] = Field("original", description="length of Muon's steps")
    orthogonalizer: Literal["ns", "polar_express"] = Field("ns", description="polynomials of the iterations")
    aux_optimizer: Literal["adamw"] = Field("adamw", description="for what Muon leaves")
    aux_learning_rate: float = Field(3e-4, gt=0, le=100, description="its rate")
    aux_8bit: bool | None = Field(None, description="its moments in 8 bits; default: as use_8bit_optim")
    schedule_type: Literal["wsd", "cosine", "constant", "none"] = Field("wsd", description="rate over the run")
    stable_ratio: float = Field(0.8, ge=0, le=1, description="wsd: share after which it decays; also decay_start_frac")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="factor at the end")

    use_mtp: bool = Field(False, description="multi-token prediction")
    mtp_n_tokens: int = Field(4, le=MAX_HORIZON, description="bytes predicted from a position, the next included")
    mtp_weight: float = Field(0.2, ge=0, le=10, description="weight of all horizons but the first")
    mtp_decay: float = Field(0.5, gt=0, le=1, description="factor from one horizon's weight to the next")
    mtp_normalize: bool = Field(False, description="divide by the sum of the horizons' weights")
    mtp_variant: Literal["linear", "layer", "sequential", "shared"] = Field("linear", description="kind of heads")
    mtp_match_params: bool = Field(False, description="a trunk shorter by the heads' blocks")

    use_collider: bool = Field(False, description="backward through a part of the positions only")
    collider_threshold: float = Field(0.3, ge=0, le=1, description="compat only: least normalised loss that is kept")
    collider_sparsity: float = Field(0.35, ge=0, lt=1, description="share of the positions that is filtered")
    collider_mode: Literal["topk", "compat"] = Field("topk", description="exact counts, or the source's rule")
    collider_scorer: Literal["loss", "excess", "random"] = Field("loss", description="what is kept")
    collider_start_step: int | None = Field(None, ge=0, description="steps before it begins; default: the warm-up")
    collider_ref_checkpoint: str = Field("", description="excess: folder of the reference's run")
    collider_min_dim: int | None = Field(None, ge=0, description="models narrower than this are not filtered")
    collider_recurrent: Literal["full", "kept"] = Field("full", description="steps in a recurrent matrix's gradient")

    use_async_loader: bool = Field(False, description="threads that read batches ahead")
    num_workers: int = Field(4, ge=0, le=256, description="how many; also `async_n_workers`")
    prefetch_batches: int = Field(8, ge=1, le=10**4, description="batches ahead; also `async_prefetch_size`")

    use_8bit_optim: bool = Field(False, description="momentum in blocks of int8 codes")
    optim_block_size: int = Field(256, ge=16, le=2**20, description="values per scale")
    optim_quant: Literal["linear", "dynamic"] = Field("linear", description="spacing of the codes")
    optim_stochastic_rounding: bool = Field(False, description="round codes at random, unbiased")
    use_galore: bool = Field(False, description="project gradients to a low rank")
    galore_rank: int | Literal["auto"] = Field("auto", description="rank; auto: a quarter of a shorter side")
    galore_update_freq: int = Field(200, ge=1, le=10**9, description="steps between new subspaces")
    galore_scale: float | None = Field(None, gt=0, le=100, description="factor of projected steps")
    galore_on_refresh: Literal["reproject", "keep", "reset"] = Field("reproject", description="of the momentum")
    galore_min_dim: int = Field(256, ge=1, le=2**17, description="matrices with a shorter side are not projected")
    galore_force: bool = Field(False, description="project even where nothing is saved")
    galore_adaptive: bool = Field(False, description="also refresh a subspace that has lost the gradient")
    galore_proj_dtype: Literal["fp32", "bf16"] | None = Field(None, description="of the stored subspace")
    galore_debias: Literal["none", "gum"] = Field("none", description="full-rank periods at random")
    galore_layerwise: bool = Field(False, description="update within backward, gradients freed at once")
    gradient_checkpointing: bool = Field(False, description="compute blocks again in backward")
    checkpoint_every: int = Field(1, ge=1, description="blocks that are computed again together")

    @model_validator(mode="after")
    def _fits(self) -> "TrainingKeys":
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps = {self.warmup_steps}: from 1 on these are steps, which are whole")
        if self.total_steps is not None and self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} does not end within total_steps = {self.total_steps}: lower it, "
                "or give a share such as 0.1"
            )
        if self.use_mtp and self.mtp_n_tokens < 1:
            raise ValueError(f"mtp_n_tokens = {self.mtp_n_tokens}: at least 1, the next byte")
        if isinstance(self.galore_rank, int) and self.galore_rank < 1:
            raise ValueError(f"galore_rank = {self.galore_rank}: at least 1, or auto")
        if self.galore_layerwise and (self.grad_clip > 0 or self.grad_accum_steps > 1):
            raise ValueError(
                "galore_layerwise updates before the global norm is known: it needs grad_clip = 0 and grad_accum_steps "
                "= 1"
            )
        if self.use_8bit_optim and self.optimizer_type != "muon":
            raise ValueError(
                f"use_8bit_optim is of Muon's momentum, which optimizer_type = {self.optimizer_type} has none of"
            )
        if self.use_galore and self.optimizer_type == "adamw_schedulefree":
            raise ValueError("use_galore projects what Muon or AdamW see: optimizer_type = muon or adamw")
        if self.optimizer_type == "adamw_schedulefree" and self.schedule_type != "none":
            raise ValueError("optimizer_type = adamw_schedulefree averages instead of a schedule: schedule_type = none")
        return self


class HardwareKeys(StrictModel):
    """`[hardware]`: where."""

    target: Literal["single_gpu", "cpu"] = Field("single_gpu", description="single_gpu: the CPU where there is none")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of products on a GPU; a CPU trains in fp32")
    fp16: bool | None = Field(None, description="the documents' key: true means bf16")


class E3File(StrictModel):
    """One file."""

    model: ModelKeys = ModelKeys()
    training: TrainingKeys = TrainingKeys()
    hardware: HardwareKeys = HardwareKeys()

    @model_validator(mode="after")
    def _fits(self) -> "E3File":
        longest = self.model.max_seq_len
        if longest is not None and self.training.seq_length > longest:
            raise ValueError(f"training.seq_length = {self.training.seq_length} exceeds model.max_seq_len = {longest}")
        return self


def idle(t: TrainingKeys) -> list[str]:
    """Keys of `[training]` that are set and have no effect beside the others, each group with what leaves it none."""
    keys = list(TrainingKeys.model_fields)
    decays = {"wsd": _RATE, "cosine": _RATE[1:]}.get(t.schedule_type, ())
    groups: list[tuple[bool, Sequence[str], str]] = [
        (t.optimizer_type == "muon", _MUON, f"optimizer_type = {t.optimizer_type}"),
        (t.optimizer_type == "muon" or t.use_galore, _AUX, f"optimizer_type = {t.optimizer_type}"),
        (t.use_8bit_optim, _family(keys, "optim_"), "use_8bit_optim = false"),
        (t.use_galore, _family(keys, "galore_"), "use_galore = false"),
        (t.use_mtp, _family(keys, "mtp_"), "use_mtp = false"),
        (t.use_collider, _family(keys, "collider_"), "use_collider = false"),
        (t.use_async_loader, _READING, "use_async_loader = false"),
        (t.gradient_checkpointing, ("checkpoint_every",), "gradient_checkpointing = false"),
    ]
    found = [(name, reason) for active, names, reason in groups if not active for name in _given(t, names)]
    # The suite's own files have these at their defaults, for whoever turns on what they are of.
    found += [(name, f"schedule_type = {t.schedule_type}") for name in _changed(t, set(_RATE).difference(decays))]
    if t.use_collider and t.collider_mode != "compat":
        found += [(name, f"collider_mode = {t.collider_mode}") for name in _changed(t, {"collider_threshold"})]
    return [
        f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no effect with {reason}"
        for reason in dict.fromkeys(reason for _, reason in found)
        if (names := [name for name, why in found if why == reason])
    ]


def _family(keys: Sequence[str], prefix: str) -> list[str]:
    return [key for key in keys if key.startswith(prefix)]


def _given(t: TrainingKeys, names: Iterable[str]) -> list[str]:
    return [name for name in names if name in t.model_fields_set]


def _changed(t: TrainingKeys, names: Iterable[str]) -> list[str]:
    return sorted(name for name in _given(t, names) if getattr(t, name) != TrainingKeys.model_fields[name].default)


def is_e3(tables: Mapping[str, Any]) -> bool:
    """Whether a TOML file is written with the suite's sections, or with keys that only its `[model]` has."""
    model = tables.get("model")
    of_model = model if isinstance(model, Mapping) else {}
    return bool({"training", "hardware"} & {*tables} or {"family", "target_params"} & {*of_model})


def parse(tables: Mapping[str, Any], name: str) -> E3File:
    """The checked file called `name`.

    Raises:
        ConfigError: an unknown section or key, with the nearest known one, a value that does not fit, or one thing
            said under two names.

    """
    return validate(
        E3File, {section: _renamed(section, table, name) for section, table in tables.items()}, prefix=f"{name}: "
    )


def _renamed(section: str, table: Any, name: str) -> Any:
    """The table with aliases under the documents' names."""
    if not isinstance(table, Mapping):
        return table
    aliases = ALIASES.get(section, {})
    found: dict[str, Any] = {}
    for key, value in table.items():
        own = str(aliases.get(str(key), key))
        if own in found:
            raise ConfigError(f"{name}: {section}.{own} is said twice, once by another name: leave one out")
        found[own] = value
    return found
