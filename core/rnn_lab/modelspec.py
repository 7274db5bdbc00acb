"""From a `[model]` table to a model: alias, fields, sizing, certificate."""

from dataclasses import dataclass, field
from typing import Any

from rnn_lab.config import ModelSection, validate
from rnn_lab.errors import ConfigError
from rnn_lab.layer import Layer
from rnn_lab.lm import LM, LMConfig, lm_flops_per_token
from rnn_lab.registry import Registry
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
    ref, preset = found.find_model(section.name)
    layer_cls = ref.load()
    fields = {**preset, **section.fields}
    checked = validate(layer_cls.Config, fields, prefix="model.", origins=origins)
    fields = {key: getattr(checked, key) for key in fields}
    lm_fields = dict(layer_cls.lm_defaults)
    lm_fields |= {key: value for key in ("depth", "norm") if (value := getattr(section, key)) is not None}
    target = section.target
    if target is None and "dim" not in fields:
        target = DEFAULT_TARGET
    if target is None:
        cfg, lm_cfg = checked, LMConfig(**{"depth": DEFAULT_DEPTH, **lm_fields})
    else:
        cfg, lm_cfg = solve(layer_cls, fields, lm_fields, target)
    certificate = certify(layer_cls, cfg, lm_cfg, target)
    decided = dict.fromkeys(preset, f"alias {section.name}") | dict.fromkeys(layer_cls.lm_defaults, "model's shell")
    if target is not None:
        free = {"dim", "depth", *layer_cls.search_space(cfg).choices} - fields.keys() - lm_fields.keys()
        decided |= dict.fromkeys(free, "solver")
    if must_reach and not certificate.on_target:
        raise ConfigError(unreachable(ref.name, certificate, cfg, lm_cfg, {**fields, **lm_fields}))
    return ModelSpec(ref.name, layer_cls, cfg, lm_cfg, certificate, decided)


def unreachable(name: str, certificate: Certificate, cfg: Any, lm_cfg: LMConfig, held: dict[str, Any]) -> str:
    """Why no shape is within 0.5 % of the target, and what to do."""
    assert certificate.target is not None and certificate.deviation is not None
    kept = ", ".join(f"{key} = {value}" for key, value in sorted(held.items()) if key != "norm") or "nothing"
    return (
        f"{name} cannot reach {certificate.target:,} parameters within 0.5 %: the nearest of all shapes with "
        f"{kept} held is {certificate.params:,} ({certificate.deviation:+.2%}; dim {cfg.dim}, depth {lm_cfg.depth}). "
        f"Free one of the held fields, or use --target {certificate.params}."
    )
