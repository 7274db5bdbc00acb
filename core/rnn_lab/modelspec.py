"""From a `[model]` table to a model: alias, fields, sizing, certificate."""

from dataclasses import dataclass, field
from typing import Any

from rnn_lab.config import ModelSection, validate
from rnn_lab.errors import ConfigError
from rnn_lab.layer import Layer
from rnn_lab.lm import LM, LMConfig, lm_flops_per_token, lm_n_params
from rnn_lab.registry import ModelRef, Registry
from rnn_lab.sizing import Certificate, certify, solve

DEFAULT_TARGET = 1_000_000
DEFAULT_DEPTH = 6


@dataclass(frozen=True)
class ModelSpec:
    """A model whose every field is decided, with the certificate of its size."""

    name: str
    layer_cls: type[Layer]
    layer_cfg: Any
    lm_cfg: LMConfig
    certificate: Certificate
    origins: dict[str, str] = field(default_factory=dict)
    """What decided the fields that no configuration layer set: `solver`, `alias NAME` or `shell`."""

    def build(self) -> LM:
        """The language model, initialised from torch's global random state."""
        return LM(self.layer_cls, self.layer_cfg, self.lm_cfg)

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs per token."""
        return lm_flops_per_token(self.layer_cls, self.layer_cfg, self.lm_cfg, seq_len)

    def table(self) -> dict[str, Any]:
        """The `[model]` table that builds exactly this model again."""
        own: dict[str, Any] = {"name": self.name, "depth": self.lm_cfg.depth, "norm": self.lm_cfg.norm}
        if self.lm_cfg.shell != "common":
            own["shell"] = self.lm_cfg.shell
        if self.certificate.target is not None:
            own["target"] = self.certificate.target
        fields: dict[str, Any] = self.layer_cfg.model_dump(mode="json", exclude_none=True)
        return own | fields


def model_spec(
    section: ModelSection, found: Registry, origins: dict[str, str] | None = None, *, must_reach: bool = True
) -> ModelSpec:
    """Decide every field of the model that `section` asks for.

    Fields that the section leaves open come from its target (default 1M) through the solver, or, when `dim` is
    given without a target, from the model's defaults.

    Args:
        section: the checked `[model]` table.
        found: registry to find the model in.
        origins: layer that set each `model.KEY`, for error messages.
        must_reach: refuse a shape further than 0.5 % from the target.

    Raises:
        ConfigError: unknown model or field, a value that does not fit, or a target out of reach.
    """
    ref, alias = found.find_model(section.name)
    layer_cls, checked, lm_cfg = _asked(section, ref, alias, origins)
    fields = {key: getattr(checked, key) for key in (*alias, *section.fields)}
    lm_fields = {key: getattr(lm_cfg, key) for key in lm_cfg.model_fields_set}
    target = section.target
    if target is None and "dim" not in fields:
        target = DEFAULT_TARGET
    if target is None:
        cfg, lm_cfg = checked, LMConfig(**{"depth": DEFAULT_DEPTH, **lm_fields})
    else:
        cfg, lm_cfg = solve(layer_cls, fields, lm_fields, target)
    certificate = certify(layer_cls, cfg, lm_cfg, target)
    decided = dict.fromkeys(alias, f"alias {section.name}") | dict.fromkeys(layer_cls.lm_defaults, "model's shell")
    if target is not None:
        free = {"dim", "depth", *layer_cls.search_space(cfg).choices} - fields.keys() - lm_fields.keys()
        decided |= dict.fromkeys(free, "solver")
    if must_reach and not certificate.on_target:
        raise ConfigError(unreachable(ref.name, certificate, cfg, lm_cfg, {**fields, **lm_fields}))
    return ModelSpec(ref.name, layer_cls, cfg, lm_cfg, certificate, decided)


def closed_form(section: ModelSection, found: Registry) -> int:
    """Parameters of the model that `section` describes, by formula: nothing is built, and nothing is solved.

    Raises:
        ConfigError: unknown model or field, or a value that does not fit.
    """
    layer_cls, cfg, lm_cfg = _asked(section, *found.find_model(section.name), None)
    return sum(lm_n_params(layer_cls, cfg, lm_cfg).values())


def _asked(
    section: ModelSection, ref: ModelRef, alias: dict[str, str], origins: dict[str, str] | None
) -> tuple[type[Layer], Any, LMConfig]:
    """Layer class and the configurations of layer and language model, open fields at their defaults."""
    layer_cls = ref.load()
    cfg = validate(layer_cls.Config, {**alias, **section.fields}, prefix="model.", origins=origins)
    own = {key: value for key in LMConfig.model_fields if (value := getattr(section, key, None)) is not None}
    lm_cfg = validate(LMConfig, {**layer_cls.lm_defaults, **own}, prefix="model.", origins=origins)
    return layer_cls, cfg, lm_cfg


def unreachable(name: str, certificate: Certificate, cfg: Any, lm_cfg: LMConfig, held: dict[str, Any]) -> str:
    """Why no shape is within 0.5 % of the target, and what to do."""
    assert certificate.target is not None and certificate.deviation is not None
    shown = {key: value for key, value in sorted(held.items()) if key not in ("norm", "shell")}
    kept = ", ".join(f"{key} = {value}" for key, value in shown.items()) or "nothing"
    return (
        f"{name} cannot reach {certificate.target:,} parameters within 0.5 %: the nearest of all shapes with "
        f"{kept} held is {certificate.params:,} ({certificate.deviation:+.2%}; dim {cfg.dim}, depth {lm_cfg.depth}). "
        f"Free one of the held fields, or use --target {certificate.params}."
    )
