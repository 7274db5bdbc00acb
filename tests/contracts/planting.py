"""How a defect gets into a registered model: a subclass made at test time, and a reference that loads it."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
from rnn_lab.layer import Layer
from rnn_lab.registry import ModelRef, registry
from rnn_lab.testing.subject import TINY


@dataclass(frozen=True)
class PlantedRef(ModelRef):
    """A registered model's reference that loads another class."""

    planted: Any = None

    def load(self) -> type[Layer]:
        return self.planted


@dataclass(frozen=True)
class Ground:
    """What a defect may use: the real model, and pytest's tools for what lies outside the class."""

    ref: ModelRef
    Model: type[Any]
    monkeypatch: pytest.MonkeyPatch
    tmp_path: Path


Plant = Callable[[Ground], Any]


@dataclass(frozen=True)
class Defect:
    """`plant(ground)` gives the defective class, or a reference; check `id` must fail and no other one."""

    id: str
    model: str
    plant: Plant
    fields: dict[str, Any] = field(default_factory=dict)

    def reference(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelRef:
        ref = registry().models[self.model]
        planted = self.plant(Ground(ref, ref.load(), monkeypatch, tmp_path))
        if isinstance(planted, ModelRef):
            return planted
        return PlantedRef(**{f.name: getattr(ref, f.name) for f in fields(ref)}, planted=planted)

    def held(self) -> dict[str, Any]:
        """Every field but the sizes at its default, so that one variant is checked instead of all."""
        config = registry().models[self.model].load().Config
        free = {name: info.default for name, info in config.model_fields.items() if name not in TINY}
        return free | self.fields


DEFECTS: list[Defect] = []


def defect(check: str, model: str, **held: Any) -> Callable[[Plant], Plant]:
    """Register a defect of `model` that check `check` has to find."""

    def add(plant: Plant) -> Plant:
        DEFECTS.append(Defect(check, model, plant, held))
        return plant

    return add
