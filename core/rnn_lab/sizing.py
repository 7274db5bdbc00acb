"""Size certificate: shapes that meet a parameter target, searched by closed forms and proven by counting.

The search is exhaustive over dim (multiples of 16), the family's choices and, by division, depth. Candidates are
ranked: within 0.5 % of the target, then a depth within a factor 1.5 of the preferred one, then by deviation in the
classes 0.1 %, 0.25 % and 0.5 %; in a class widths that are multiples of 64 from 50M up, where they cost nothing,
then the family's preferred choices, then the preferred depth. The nearest point of all is seldom a sane shape.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.layer import Layer
from rnn_lab.lm import LM, LMConfig, counted_params, lm_base_and_layer, lm_n_params

TOLERANCE = 0.005
"""Largest deviation from the target that counts as on target."""
_CLASSES = (0.001, 0.0025, TOLERANCE)
_ALIGNED_FROM = 50_000_000


@dataclass(frozen=True)
class Certificate:
    """Proof that a model has the size it claims: the closed form equals the count of the instantiated model."""

    target: int | None
    params: int
    breakdown: dict[str, int]

    @property
    def deviation(self) -> float | None:
        """(params - target) / target; None without a target."""
        return None if self.target is None else (self.params - self.target) / self.target

    @property
    def on_target(self) -> bool:
        """Within 0.5 % of the target, or no target."""
        return self.deviation is None or abs(self.deviation) <= TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        """JSON form for result.json and `size --json`."""
        return {
            "target": self.target,
            "params": self.params,
            "deviation": self.deviation,
            "breakdown": self.breakdown,
            "counted": True,
        }


@dataclass(frozen=True)
class _Candidate:
    params: int
    dim: int
    depth: int
    choices: tuple[tuple[str, Any], ...]
    rank: int


def preferred_depth(target: int) -> int:
    """6 layers at 1M, growing with the fourth root: 11 at 10M, 19 at 100M, 34 at 1B."""
    depth = 6 * (target / 1e6) ** 0.25
    return max(2, min(48, round(float(depth))))


def solve(
    layer_cls: type[Layer], fields: dict[str, Any], lm_fields: dict[str, Any], target: int
) -> tuple[Any, LMConfig]:
    """Configuration nearest to `target` with everything in `fields` and `lm_fields` held.

    Args:
        layer_cls: the model.
        fields: fields of its Config that the user fixed.
        lm_fields: fields of LMConfig that the user fixed.
        target: parameters wanted.

    Returns:
        The layer's configuration and the language model's.

    Raises:
        ConfigError: no shape at all can be built from these fields.
    """
    candidates = sorted(_candidates(layer_cls, fields, lm_fields, target), key=lambda c: _rank(c, target))
    if not candidates:
        raise ConfigError(f"no shape of this model fits the fields {fields}: free one of them")
    best = candidates[0]
    cfg = layer_cls.Config(**{**fields, "dim": best.dim, **dict(best.choices)})
    return cfg, LMConfig(**{**lm_fields, "depth": best.depth})


@dataclass(frozen=True)
class Shape:
    """A shape that is on target: its count and every field that the solver may move."""

    params: int
    depth: int
    fields: dict[str, Any]
    """`dim` and the choices of the family's search space."""


def shapes_on_target(
    layer_cls: type[Layer], fields: dict[str, Any], lm_fields: dict[str, Any], target: int,
    choices: Mapping[str, tuple[Any, ...]] | None = None,
) -> list[Shape]:  # fmt: skip
    """Every shape within 0.5 % of `target` with everything in `fields` and `lm_fields` held, by closed form.

    Arguments as `solve`; `choices` replaces values of the family's search space. The order is the solver's own, best
    first; empty when the target is out of reach.
    """
    every = _candidates(layer_cls, fields, lm_fields, target, choices)
    found = [c for c in every if abs(c.params - target) <= TOLERANCE * target]
    ranked = sorted(found, key=lambda c: _rank(c, target))
    return [Shape(c.params, c.depth, {"dim": c.dim, **dict(c.choices)}) for c in ranked]


def _candidates(
    layer_cls: type[Layer], fields: dict[str, Any], lm_fields: dict[str, Any], target: int,
    choices: Mapping[str, tuple[Any, ...]] | None = None,
) -> Iterator[_Candidate]:  # fmt: skip
    lm_cfg = LMConfig(**lm_fields)
    for dim in _dims(layer_cls, fields):
        cfg = layer_cls.Config(**{**fields, "dim": dim})
        space = layer_cls.search_space(cfg)
        wanted = space.choices | dict(choices or {})
        free = {name: values for name, values in wanted.items() if name not in fields}
        smallest = math.inf
        for rank, values in enumerate(product(*free.values())):
            chosen = tuple(zip(free, values, strict=True))
            shaped = cfg.model_copy(update=dict(chosen))
            base, layer = lm_base_and_layer(layer_cls, shaped, lm_cfg)
            smallest = min(smallest, base + space.depth[0] * layer)
            for depth in _depths(lm_fields, space.depth, (target - base) / layer):
                yield _Candidate(base + depth * layer, dim, depth, chosen, rank)
        if smallest > 2 * target:
            return


def _dims(layer_cls: type[Layer], fields: dict[str, Any]) -> Iterator[int]:
    if "dim" in fields:
        yield fields["dim"]
        return
    multiple = layer_cls.search_space(layer_cls.Config(**fields)).dim_multiple
    yield from range(multiple, 2**16, multiple)


def _depths(lm_fields: dict[str, Any], allowed: tuple[int, int], ideal: float) -> set[int]:
    if "depth" in lm_fields:
        return {lm_fields["depth"]}
    return {max(allowed[0], min(allowed[1], depth)) for depth in (math.floor(ideal), math.ceil(ideal))}


def _rank(candidate: _Candidate, target: int) -> tuple[Any, ...]:
    deviation = abs(candidate.params - target) / target
    tier = next((i for i, limit in enumerate(_CLASSES) if deviation <= limit), len(_CLASSES))
    beyond = deviation if tier == len(_CLASSES) else 0.0
    stretch = abs(math.log(candidate.depth / preferred_depth(target)))
    misaligned = target >= _ALIGNED_FROM and candidate.dim % 64 != 0
    odd_shape = stretch > math.log(1.5)
    return (beyond, odd_shape, tier, misaligned, candidate.rank, stretch, deviation, candidate.dim)


def certify(layer_cls: type[Layer], cfg: Any, lm_cfg: LMConfig, target: int | None) -> Certificate:
    """Count the model on the meta device and compare with the closed form, component by component.

    Raises:
        RnnLabError: they disagree; the model's `n_params` or `parts` is wrong.
    """
    claimed = lm_n_params(layer_cls, cfg, lm_cfg)
    with torch.device("meta"):
        counted = counted_params(LM(layer_cls, cfg, lm_cfg))
    wrong = {key for key in claimed.keys() | counted.keys() if claimed.get(key, 0) != counted.get(key, 0)}
    if wrong:
        lines = [
            f"{key}: closed form {claimed.get(key, 0):,}, counted {counted.get(key, 0):,}" for key in sorted(wrong)
        ]
        raise RnnLabError(f"size certificate of {layer_cls.__module__} fails: " + "; ".join(lines))
    return Certificate(target, sum(claimed.values()), claimed)
