"""The dimensions of a search, made from what a user named and from defaults that follow from the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import ValidationError

from rnn_lab.config import OptimizerSection
from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.layer import Layer
from rnn_lab.search.space import Dimension, Spec
from rnn_lab.sizing import preferred_depth

GROUPS = ("shape", "optimizer")
BETAS = ("beta1", "beta2")
_N_STATE = (0.5, 1.0, 1.5, 2.0)
_N_HEADS = (1, 2, 4)
_DEFAULT_WARMUP = 200


@dataclass(frozen=True)
class Context:
    """What default ranges follow from.

    Attributes:
        layer_cls: the model.
        cfg: its Config with the held fields set, others at their defaults.
        held: fields of the model that configuration layers set, `depth` included.
        optimizer: the optimizer's section with everything held in it.
        target: parameters wanted.
        steps: the run's budget in steps; None where it is another.
    """

    layer_cls: type[Layer]
    cfg: Any
    held: frozenset[str]
    optimizer: OptimizerSection
    target: int
    steps: int | None

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """The solver's choices at the width of `cfg`."""
        return dict(self.layer_cls.search_space(self.cfg).choices)

    def key(self, name: str) -> str:
        """The dotted key of a name; a field of the model comes before one of the optimizer.

        Raises:
            ConfigError: there is no such field.
        """
        model = ["depth", *self.layer_cls.Config.model_fields]
        optimizer = [*(field for field in OptimizerSection.model_fields if field != "betas"), *BETAS]
        section, dot, field = name.partition(".")
        if dot and field in {"model": model, "optimizer": optimizer}.get(section, ()):
            return name
        if name in model:
            return f"model.{name}"
        if name in optimizer:
            return f"optimizer.{name}"
        known = [*model, *optimizer]
        raise ConfigError(f"-s {name}: no such field.{did_you_mean(field or name, known)} Known: {', '.join(known)}.")


def build_space(specs: Mapping[str, Spec], ctx: Context) -> list[Dimension]:
    """The dimensions of a search; those of `shape` and `optimizer` where `specs` is empty.

    Args:
        specs: by field or dotted key; `shape` and `optimizer` stand for their default dimensions.
        ctx: what defaults follow from.

    Raises:
        ConfigError: an unknown or held field, a value that does not fit, or nothing to search.
    """
    specs = specs or {group: Spec() for group in GROUPS}
    found: dict[str, Dimension] = {}
    for name, spec in specs.items():
        if name in GROUPS:
            if spec != Spec():
                raise ConfigError(f"-s {name}: a group takes no range; name a field of it")
            names = _shape_names(ctx) if name == "shape" else ["lr", "weight_decay", *BETAS, "warmup_steps"]
            for each in names:
                key = f"optimizer.{each}" if name == "optimizer" else f"model.{each}"
                found.setdefault(key, _default(key, ctx))
            continue
        key = ctx.key(name)
        field = key.partition(".")[2]
        if key.startswith("model.") and field in ctx.held:
            raise ConfigError(f"-s {name}: {field} is held by another option or by the model's alias: drop one of them")
        found[key] = _default(key, ctx) if spec == Spec() else _explicit(key, spec, ctx)
    if not found:
        raise ConfigError("nothing is left to search: free a field, or name one with -s")
    return list(found.values())


def _shape_names(ctx: Context) -> list[str]:
    """Depth, the solver's choices, state sizes, heads and gates, what is held left out."""
    fields = ctx.layer_cls.Config.model_fields
    sizes = [f for f in ("n_state", "n_heads") if f in fields and isinstance(getattr(ctx.cfg, f), int)]
    gates = [name for name, info in fields.items() if "gate" in name and _options(info.annotation)]
    names = dict.fromkeys(["depth", *ctx.choices, *sizes, *gates])
    return [name for name in names if name not in ctx.held]


def _default(key: str, ctx: Context) -> Dimension:
    """The default dimension of a key; it always holds the value that a run has without a search."""
    section, _, field = key.partition(".")
    if section == "optimizer":
        return _optimizer_default(key, field, ctx)
    if field == "depth":
        low, high = ctx.layer_cls.search_space(ctx.cfg).depth
        preferred = preferred_depth(ctx.target)
        return Dimension(
            key, "int", max(low, preferred // 2), max(low + 1, min(high, 2 * preferred)), log=True, solved=True
        )
    values = ctx.choices.get(field)
    if values is not None:
        if _depends_on_width(field, ctx):
            return Dimension(key, "float", 0.0, 1.0, solved=True, position=True)
        return Dimension(key, "float", float(min(values)), float(max(values)), log=True, solved=True)
    info = ctx.layer_cls.Config.model_fields[field]
    value = getattr(ctx.cfg, field)
    if options := _options(info.annotation):
        return Dimension(key, "choice", values=options)
    if field == "n_state" and isinstance(value, int):
        return Dimension(key, "choice", values=tuple(dict.fromkeys(max(1, round(value * x)) for x in _N_STATE)))
    if field == "n_heads" and isinstance(value, int):
        return Dimension(key, "choice", values=tuple(value * x for x in _N_HEADS))
    raise ConfigError(f"-s {field}: it has no default range; give one, such as {field}=LOW:HIGH or {field}=A,B,C")


def _optimizer_default(key: str, field: str, ctx: Context) -> Dimension:
    now = ctx.optimizer
    if field == "lr":
        return Dimension(key, "float", now.lr / 10, 30 * now.lr, log=True)
    if field == "weight_decay":
        return Dimension(key, "float", 1e-3, max(1.0, now.weight_decay), log=True)
    if field in BETAS:
        low, high = (0.02, 0.2) if field == "beta1" else (1e-3, 0.1)
        rest = max(1e-6, 1 - now.betas[BETAS.index(field)])
        return Dimension(key, "float", min(low, rest), max(high, rest), log=True)
    if field == "warmup_steps":
        most = _DEFAULT_WARMUP if ctx.steps is None else max(1, ctx.steps // 5)
        return Dimension(key, "int", 0, max(most, now.warmup_steps))
    if options := _options(OptimizerSection.model_fields[field].annotation):
        return Dimension(key, "choice", values=options)
    raise ConfigError(f"-s {field}: it has no default range; give one, such as {field}=LOW:HIGH or {field}=A,B,C")


def _explicit(key: str, spec: Spec, ctx: Context) -> Dimension:
    section, _, field = key.partition(".")
    solved = section == "model" and (field in ("dim", "depth") or field in ctx.choices)
    if spec.values is not None:
        values = tuple(_checked(key, value, ctx) for value in spec.values)
        return Dimension(key, "choice", values=tuple(dict.fromkeys(values)))
    assert spec.low is not None and spec.high is not None
    if field in BETAS and section == "optimizer":
        # The range is one of beta; 1 - beta is what an optimizer's memory is inverse to, and what is sampled.
        if not 0 <= spec.low < spec.high < 1:
            raise ConfigError(f"-s {field}: a range within 0 and 1, 1 left out")
        return Dimension(key, "float", 1 - spec.high, 1 - spec.low, log=True)
    for end in (spec.low, spec.high):
        _checked(key, end, ctx)
    kind: Literal["float", "int"] = "int" if _is_integer(section, field, ctx) else "float"
    if solved and spec.low <= 0:
        raise ConfigError(f"-s {field}: a range above 0")
    return Dimension(key, kind, spec.low, spec.high, log=spec.log or solved, solved=solved)


def _checked(key: str, value: Any, ctx: Context) -> Any:
    """The value as the configuration takes it."""
    section, _, field = key.partition(".")
    if field in BETAS and section == "optimizer":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ConfigError(f"-s {field} = {value!r}: at least 0 and below 1")
        return float(value)
    if field == "depth":
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
            raise ConfigError(f"-s depth = {value!r}: a whole number of layers")
        return int(value)
    schema: Any = OptimizerSection if section == "optimizer" else ctx.layer_cls.Config
    if _is_integer(section, field, ctx) and isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return getattr(schema.model_validate({field: value}), field)
    except ValidationError as error:
        wrong = next((item for item in error.errors() if item["loc"] == (field,)), None)
        if wrong is None:  # it does not fit the defaults of other fields; the trial's own may differ
            return value
        raise ConfigError(f"-s {field} = {value!r}: {wrong['msg']}") from error


def _is_integer(section: str, field: str, ctx: Context) -> bool:
    if field == "depth":
        return True
    schema: Any = OptimizerSection if section == "optimizer" else ctx.layer_cls.Config
    if field not in schema.model_fields:
        return False
    annotation = schema.model_fields[field].annotation
    kinds = get_args(annotation) or (annotation,)
    return int in kinds and float not in kinds


def _options(annotation: Any) -> tuple[Any, ...]:
    """Values of a Literal, or both of a bool; empty for anything else."""
    if annotation is bool:
        return (False, True)
    return tuple(get_args(annotation)) if getattr(annotation, "__origin__", None) is Literal else ()


def _depends_on_width(field: str, ctx: Context) -> bool:
    double = ctx.cfg.model_copy(update={"dim": 2 * ctx.cfg.dim})
    return bool(ctx.layer_cls.search_space(double).choices.get(field) != ctx.choices[field])
