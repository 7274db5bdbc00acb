"""Strict configuration: a run is described by layers that are merged, checked, and traced to their origin.

Layers, weakest first: defaults < protocol < preset < `--config file.toml` < options and `-o key.path=value`. Unknown
keys are errors that name the nearest key; every resolved value knows the layer that set it.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator

from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.sections import DiagnosticsSection, LoaderSection, ObjectiveSection, ParallelSection, ScheduleSection
from rnn_lab.strict import StrictModel as StrictModel
from rnn_lab.typed import Typed

M = TypeVar("M", bound=BaseModel)
_COUNT = re.compile(r"^\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmbgt]?)\s*$", re.IGNORECASE)
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_count(text: object) -> int:
    """Integer from `100M`, `1.5b`, `250k`, `1e6` or a plain number.

    Raises:
        ValueError: the text is not such a number.

    """
    if isinstance(text, bool):
        raise ValueError("expected a count such as 100M, got a boolean")
    match = _COUNT.match(str(text))
    if not match:
        raise ValueError(f"expected a count such as 1000, 250k, 100M or 1.5B, got {text!r}")
    count = float(match[1]) * _SCALE[match[2].lower()]
    if count == float("inf"):
        raise ValueError(f"{text!r} is too large for a count")
    return round(count)


Count = Annotated[int, BeforeValidator(parse_count), Field(ge=1, le=10**15)]


class ModelSection(StrictModel):
    """`[model]`: what is trained. Every other key of the table is a field of the model's own Config."""

    name: str = Field(description="registered model or alias")
    target: Count | None = Field(None, description="parameter target that the solver sizes the model to")
    depth: int | None = Field(None, ge=1, le=1024, description="number of layers")
    norm: Literal["rms", "layer"] | None = Field(None, description="norm of the language model around the layers")
    shell: Literal["common", "e74"] | None = Field(None, description="e74: the shell of E74's seed runs; see lm.py")
    fields: dict[str, Any] = Field(default_factory=dict, description="fields of the model's own Config")


class DataSection(StrictModel):
    """`[data]`: bytes to learn from."""

    path: str | None = Field(None, min_length=1, description="raw byte file; default: the embedded corpus")
    val_path: str | None = Field(
        None, min_length=1, description="validation bytes; default: the corpus's own part or its last 1 %"
    )


class TrainSection(StrictModel):
    """`[train]`: how long, how much at once, on what."""

    steps: Count | None = Field(None, description="budget in optimizer steps")
    tokens: Count | None = Field(None, description="budget in bytes read")
    minutes: float | None = Field(None, gt=0, le=10**6, description="budget in minutes of the training clock")
    batch_size: int = Field(32, ge=1, le=2**20, description="sequences per optimizer step")
    seq_len: int = Field(512, ge=1, le=2**24, description="bytes predicted per sequence")
    grad_accum: int = Field(1, ge=1, le=2**16, description="micro-batches that one optimizer step is split into")
    seed: int = Field(42, ge=0, lt=2**63, description="seed of initialisation and of the batches")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="bf16: autocast over fp32 master weights")
    clip: float = Field(1.0, ge=0, description="global gradient norm limit; 0 turns clipping off")
    carry_state: bool = Field(False, description="carry states across steps over contiguous streams (TBPTT)")
    graph: Literal["auto", "on", "off"] = Field(
        "auto", description="replay the whole step as one CUDA graph; auto: where that works, on: or fail"
    )
    on_nonfinite: Literal["stop", "rollback"] = Field(
        "stop", description="rollback: skip such steps; after three in a row go back to a checkpoint, at half the rate"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="gradient checkpointing: blocks that backward computes again together; default: none"
    )
    checkpoint_chunk: int | None = Field(
        None, ge=1, description="with checkpoint_every: bytes of time that are computed again together; default: all"
    )
    wavefront: int | None = Field(
        None,
        ge=1,
        le=32,
        description="chunks of time that layers of a captured step share; default: up to 3 where they leave room",
    )

    @property
    def chunks(self) -> int:
        """Chunks of time that were asked for; 1 where none were."""
        return self.wavefront or 1


class OptimizerSection(StrictModel):
    """`[optimizer]`: the update rule."""

    name: str = Field("schedulefree", description="registered optimizer")
    lr: float = Field(3e-4, gt=0, le=100, description="learning rate")
    weight_decay: float = Field(0.1, ge=0, le=100, description="decoupled weight decay")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay rates of the moment estimates")
    eps: float = Field(1e-8, gt=0, le=1, description="term that keeps the denominator from zero")
    warmup_steps: int = Field(0, ge=0, le=10**9, description="steps of linear learning-rate warm-up")
    decay: Literal["all", "matrices"] = Field("all", description="parameters that weight decay acts on")
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="decay of Muon's momentum (Nesterov)")
    muon_scale: Literal["original", "match_rms_adamw"] = Field(
        "original", description="length of Muon's steps: sqrt(max(1, m/n)), or 0.2 sqrt(max(m, n)) as AdamW's are"
    )
    muon_heads: bool = Field(False, description="orthogonalise parameters of three axes too, head by head")
    ns_steps: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations")
    orthogonalizer: Literal["ns", "polar_express"] = Field("ns", description="polynomials of the iterations")
    bits: Literal[8, 32] | None = Field(None, description="of a value of Muon's momentum; left open: by the name")
    block_size: int = Field(256, ge=16, le=2**20, description="values per scale of 8-bit momentum")
    quant: Literal["linear", "dynamic"] = Field("linear", description="spacing of 8-bit momentum")
    galore_rank: int | None = Field(
        None, ge=1, le=2**17, description="rank r of GaLore's subspaces; auto or left open: a quarter of a shorter side"
    )
    galore_update_freq: int = Field(200, ge=1, le=10**9, description="steps between new subspaces")
    galore_scale: float | None = Field(
        None, gt=0, le=100, description="factor of projected steps; left open: 1 for Muon, 0.25 for AdamW"
    )
    galore_on_refresh: Literal["reproject", "keep", "reset"] = Field(
        "reproject", description="what becomes of the momentum in a new subspace"
    )
    galore_min_dim: int = Field(256, ge=1, le=2**17, description="matrices with a shorter side are not projected")
    galore_force: bool = Field(False, description="project even where nothing is saved")
    galore_adaptive: bool = Field(False, description="also refresh a subspace that has lost the gradient")
    galore_proj_dtype: Literal["fp32", "bf16"] | None = Field(
        None, description="of the stored subspace; left open: bf16 beside 8-bit momentum, else fp32"
    )
    galore_layerwise: bool = Field(
        False, description="update each parameter in backward and free its gradient; needs clip = 0, grad_accum = 1"
    )
    galore_debias: Literal["none", "gum"] = Field("none", description="gum: full-rank periods at random, unbiased")
    galore_gum_share: float = Field(0.1, gt=0, lt=1, description="probability q of a full-rank period under gum")
    stochastic_rounding: bool = Field(False, description="round 8-bit momentum up or down at random, right on average")
    aux_lr: float = Field(3e-4, gt=0, le=100, description="AdamW's rate for what Muon and GaLore leave")
    aux_8bit: bool = Field(False, description="keep AdamW's moments for those in 8 bits")
    aux_library: Literal["own", "bitsandbytes"] = Field("own", description="who updates 8-bit moments")

    @field_validator("galore_rank", mode="before")
    @classmethod
    def _auto(cls, rank: object) -> object:
        return None if rank == "auto" else rank

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both must be at least 0 and below 1")
        return betas


class EvalSection(StrictModel):
    """`[eval]`: validation with the averaged weights."""

    every: int | None = Field(None, ge=1, description="steps between validations; default: only at the end")
    tokens: Count = Field(65536, description="bytes predicted in one validation")


class CheckpointSection(StrictModel):
    """`[checkpoint]`: what survives a crash."""

    every: int | None = Field(None, ge=1, description="steps between checkpoints; default: about every two minutes")
    keep: int = Field(2, ge=1, le=10**6, description="checkpoints kept; the newest survive")


class LogSection(StrictModel):
    """`[log]`: where figures go besides metrics.jsonl."""

    trackers: tuple[str, ...] = Field(("tensorboard",), description="registered trackers")


class RunConfig(StrictModel):
    """Everything that decides a run; written, resolved, to `config.toml`."""

    model: ModelSection
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    optimizer: OptimizerSection = OptimizerSection()
    objective: ObjectiveSection = ObjectiveSection()
    schedule: ScheduleSection = ScheduleSection()
    loader: LoaderSection = LoaderSection()
    parallel: ParallelSection = ParallelSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()
    diagnostics: DiagnosticsSection = DiagnosticsSection()


SECTIONS: dict[str, type[StrictModel]] = {
    name: info.annotation  # type: ignore[misc]
    for name, info in RunConfig.model_fields.items()
}
_OWN_MODEL_KEYS = tuple(name for name in ModelSection.model_fields if name != "fields")


@dataclass(frozen=True)
class Layer:
    """One source of values: a nested table and the name shown as its origin."""

    origin: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved:
    """A checked configuration and, for every dotted key, the layer that set it."""

    config: RunConfig
    origins: dict[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Layer that set the dotted `key`; `default` when none did."""
        return self.origins.get(key, "default")


def read_toml(path: Path) -> dict[str, Any]:
    """Parsed TOML file.

    Raises:
        ConfigError: missing, unreadable, over 1 MiB, or not TOML; the message names the file and line.

    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigError(f"{path}: cannot read this configuration: it is a device or a pipe")
        if path.stat().st_size > 2**20:
            raise ConfigError(f"{path}: larger than 1 MiB, which no configuration is")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this configuration: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def parse_override(text: str, *, option: str = "-o") -> dict[str, Any]:
    """Nested table of one `-o key.path=value`; the value is TOML, or a string where it is not.

    Raises:
        ConfigError: there is no `=` or a part of the key is empty.

    """
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        example = "train.clip=0.5" if option == "-o" else "key=value"
        raise ConfigError(f"{option} {text}: expected key.path=value, for example {option} {example}")
    try:
        table = tomllib.loads(f"value = {value}")
        if table.keys() != {"value"}:
            raise ConfigError(f"{option} {key}: one value, not several lines")
        parsed: Any = table["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{option} {key}: not a usable value: {error}") from error
    if isinstance(parsed, str):
        parsed = Typed(parsed)
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of all layers in one nested table, later ones winning, and the origin of every dotted key.

    Raises:
        ConfigError: a layer has an unknown section or a value where a table belongs.

    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for section, table in layer.values.items():
            if section not in SECTIONS:
                raise ConfigError(
                    f"{layer.origin}: unknown section [{section}].{did_you_mean(section, list(SECTIONS))}"
                )
            if not isinstance(table, Mapping):
                raise ConfigError(f"{layer.origin}: [{section}] must be a table, got {table!r}")
            for key, value in table.items():
                merged.setdefault(section, {})[key] = value
                origins[f"{section}.{key}"] = layer.origin
    return merged, origins


def resolve(layers: Iterable[Layer]) -> Resolved:
    """Checked configuration of merged layers. Fields of the model itself stay unchecked in `model.fields`.

    Raises:
        ConfigError: an unknown key or a value that does not fit, with its layer and key.

    """
    merged, origins = merge(layers)
    model = merged.setdefault("model", {})
    fields = {key: model.pop(key) for key in list(model) if key not in _OWN_MODEL_KEYS}
    if "name" not in model:
        raise ConfigError("no model is named: give --model NAME (see `rnn-lab list-models`)")
    model["fields"] = fields
    return Resolved(validate(RunConfig, merged, origins=origins), origins)


def validate(
    schema: type[M], values: Mapping[str, Any], *, prefix: str = "", origins: Mapping[str, str] | None = None
) -> M:
    """`schema` filled from `values`, with errors a person can act on.

    Raises:
        ConfigError: one line per wrong key: its path, origin, what is wrong, the nearest known key.

    """
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        lines = dict.fromkeys(_explain(schema, item, prefix, origins or {}) for item in error.errors())
        raise ConfigError("\n".join(list(lines)[:5])) from error


def _explain(schema: type[BaseModel], item: Any, prefix: str, origins: Mapping[str, str]) -> str:
    path = [str(part) for part in item["loc"]]
    if path[-1:] in (["int"], ["float"]):  # the member of a union that refused
        path.pop()
    key = prefix + ".".join(path)
    where = f" (from {origins[key]})" if key in origins else ""
    if item["type"] == "extra_forbidden":
        known = _known_keys(schema, path[:-1])
        hint = did_you_mean(path[-1], known) or f" Known: {', '.join(known)}."
        return f"{key}: unknown key{where}.{hint}"
    if not path:  # the table as a whole
        return ": ".join(filter(None, [prefix.rstrip("."), item["msg"].removeprefix("Value error, ")]))
    is_table = item["type"] in ("model_type", "dict_type")
    message = f"expected a table, [{'.'.join(path)}]" if is_table else item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], Mapping):  # what does not fit together in a table
        return f"{key}{where}: {message}"
    value = repr(item["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    return f"{key} = {shown}{where}: {message}"


def _known_keys(schema: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part not in schema.model_fields:
            continue  # an item of a list or a table
        inner = schema.model_fields[part].annotation
        models = [kind for kind in (inner, *get_args(inner)) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return []
        schema = models[0]
    return list(schema.model_fields)
