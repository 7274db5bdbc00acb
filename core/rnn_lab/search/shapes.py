"""From wishes to a shape on target: the nearest of all that have the wanted number of parameters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rnn_lab.errors import RnnLabError
from rnn_lab.layer import Layer
from rnn_lab.lm import LMConfig
from rnn_lab.sizing import Shape, shapes_on_target

_EIGHTHS = 8
_WIDTHS = 8


class Infeasible(RnnLabError, ValueError):
    """No shape with these values is within 0.5 % of the target; the trial is not trained."""


@dataclass(frozen=True)
class Wish:
    """A value that the solver follows as near as it can; `position` as in `Dimension`."""

    value: float
    position: bool = False


def nearest_shape(
    layer_cls: type[Layer], fields: Mapping[str, Any], lm_fields: Mapping[str, Any], target: int,
    wishes: Mapping[str, Wish],
) -> Shape:  # fmt: skip
    """The shape within 0.5 % of `target` that comes nearest to all wishes.

    Distance is the sum over wishes of |log(value / wish)|; ties fall to the solver's own order. A multiplier of the
    width, such as expansion, may take every eighth between its smallest and largest choice that leaves a multiple of
    8: the three values that suffice to reach a target leave a search too few shapes.

    Args:
        layer_cls: the model.
        fields: fields of its Config that are held.
        lm_fields: fields of LMConfig that are held.
        target: parameters wanted.
        wishes: by field: `dim`, `depth`, or a choice of the family's search space.

    Raises:
        Infeasible: no shape is on target, or the values contradict each other.
    """
    try:
        space = layer_cls.search_space(layer_cls.Config(**fields))
        finer = {name: _eighths(values) for name, values in space.choices.items() if name in wishes and _real(values)}
        shapes = shapes_on_target(layer_cls, dict(fields), dict(lm_fields), target, finer)
        # The sort is stable, so that equal distances stay in the solver's order.
        for shape in sorted(shapes, key=lambda shape: round(_distance(shape, wishes, layer_cls, fields), 9)):
            dim = shape.fields["dim"]
            if any(int(dim * shape.fields[name]) % _WIDTHS for name in finer):
                continue
            layer_cls.Config(**{**fields, **shape.fields})
            LMConfig(**{**lm_fields, "depth": shape.depth})
            return shape
    except ValidationError as error:
        raise Infeasible(f"contradictory values: {error.errors()[0]['msg']}") from error
    shown = ", ".join(f"{key} = {value}" for key, value in sorted({**fields, **lm_fields}.items()))
    raise Infeasible(f"no shape within 0.5 % of {target:,} parameters with {shown or 'nothing'} held")


def _real(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, float) for value in values)


def _eighths(values: tuple[Any, ...]) -> tuple[float, ...]:
    """The family's own values first, then every eighth between."""
    between = range(math.ceil(min(values) * _EIGHTHS), math.floor(max(values) * _EIGHTHS) + 1)
    return tuple(dict.fromkeys([*values, *(eighth / _EIGHTHS for eighth in between)]))


def _distance(shape: Shape, wishes: Mapping[str, Wish], layer_cls: type[Layer], fields: Mapping[str, Any]) -> float:
    total = 0.0
    for name, wish in wishes.items():
        value = float(shape.depth if name == "depth" else shape.fields.get(name, wish.value))
        aim = wish.value
        if wish.position:
            choices = layer_cls.search_space(layer_cls.Config(**{**fields, "dim": shape.fields["dim"]})).choices[name]
            aim = min(choices) * (max(choices) / min(choices)) ** wish.value
        total += abs(math.log(value / aim))
    return total
