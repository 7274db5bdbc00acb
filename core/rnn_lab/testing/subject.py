"""The model under test: its small configurations, layers with lively parameters, and inputs."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import UnionType
from typing import Any, Literal, Union

import torch
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor

from rnn_lab.errors import ConfigError
from rnn_lab.layer import Layer, State
from rnn_lab.lm import LM, LMConfig
from rnn_lab.registry import ModelRef

TINY: dict[str, Any] = {"dim": 24, "expansion": 1.5, "n_state": 8, "n_heads": 2, "rank": 4, "head_dim": 8}
"""Sizes under which a mistaken axis shows: the widths differ from each other."""

OPTIONAL_INT = 4
"""Value that turns on a field `int | None` whose default is None."""

BATCH, TIME = 2, 11
PAST = 3
"""Steps that a random state stands for, where its size depends on them."""
LM_DEPTH = 2


@dataclass(frozen=True)
class Variant:
    """One configuration under test; the label names the field that departs from the default one."""

    label: str
    cfg: Any


@dataclass
class Subject:
    """A model, the fields that the caller fixed, where it runs, and which draw of random inputs it gets."""

    ref: ModelRef
    fixed: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    draw: int = 0

    @cached_property
    def model(self) -> type[Layer]:
        """The model's class, imported now."""
        return self.ref.load()

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The default configuration, then every value of every Literal and bool field, one at a time."""
        config = self.model.Config
        sizes = {name: value for name, value in TINY.items() if name in config.model_fields}
        default = _first_valid(config, sizes, self.fixed)
        if default is None:
            raise ConfigError(
                f"model {self.ref.name!r}: its Config refuses the small sizes {sizes}: "
                "pass `fields` that it accepts to check_model"
            )
        found = [Variant("default", default)]
        for name, info in config.model_fields.items():
            if name in self.fixed or name in sizes:
                continue
            for value in _values(info):
                cfg = _first_valid(config, sizes, {**self.fixed, name: value})
                if cfg is not None and cfg != default:
                    found.append(Variant(f"{name}={value}", cfg))
        return tuple(found)

    def layer(self, cfg: Any, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Layer:
        """A layer whose parameters are all moved off their initial values.

        Initial zeros, such as an output projection that starts the layer as the identity, would make every
        comparison of outputs trivially true.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = self.model(cfg)
            with torch.no_grad():
                for p in layer.parameters():
                    p.add_(torch.randn(p.shape) * (0.3 / max(1, p.shape[-1] if p.dim() else 1) ** 0.5))
            layer.prepare()
        return layer.to(self.device, dtype)

    def plain_layer(self, cfg: Any, seed: int = 0) -> Layer:
        """A layer exactly as its initialisers leave it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model(cfg).to(self.device)

    def lm(self, cfg: Any, seed: int = 0) -> LM:
        """A language model of two layers in the family's natural shell."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LM(self.model, cfg, self.lm_config()).to(self.device)

    def lm_config(self) -> LMConfig:
        """The family's natural shell at depth 2."""
        return LMConfig(**{**self.model.lm_defaults, "depth": LM_DEPTH})

    def x(self, cfg: Any, time: int = TIME, *, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
        """Normal input `[B, T, D]`."""
        return self.random((BATCH, time, cfg.dim), dtype=dtype, seed=seed)

    def random(self, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32, seed: int = 2) -> Tensor:
        """Normal tensor that depends on its arguments only; drawn in fp64 so that every dtype agrees."""
        generator = torch.Generator().manual_seed(seed + 1000 * self.draw)
        drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
        return drawn.to(self.device, dtype)

    def state(self, cfg: Any, *, dtype: torch.dtype = torch.float32, scale: float = 0.5) -> State:
        """A state that is not zero anywhere."""
        shapes = self.model.state_shapes(cfg, PAST)
        return {
            key: self.random((BATCH, *shape), dtype=dtype, seed=10 + i) * scale
            for i, (key, shape) in enumerate(shapes.items())
        }


def _first_valid(config: Any, sizes: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
    """Configuration from `fields` at small sizes, without one of them where they do not go together."""
    for left_out in (None, "expansion", "rank"):
        tiny = {name: value for name, value in sizes.items() if name != left_out}
        try:
            return config(**{**tiny, **fields})
        except ValidationError:
            continue
    return None


def _values(info: FieldInfo) -> list[Any]:
    """Every value of a Literal or bool field, and one value of an int that is off by default."""
    members = _members(info.annotation)
    values: list[Any] = []
    for member in members:
        if typing.get_origin(member) is Literal:
            values += typing.get_args(member)
        elif member is bool:
            values += [False, True]
        elif member is int and info.default is None:
            values.append(OPTIONAL_INT)
    return values


def _members(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (Union, UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    return [annotation]
