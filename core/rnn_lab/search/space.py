"""What a search moves: dimensions by their configuration key, made from a model's own Config and from the optimizer.

A dimension is a range or a list of values. A list is held exactly. So is a range, except where the sizing solver
chooses the field (`dim`, `depth` and the choices of the family's search space): there it is a wish, and the shape on
target that comes nearest to all wishes is trained.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rnn_lab.config import StrictModel, read_toml, validate
from rnn_lab.errors import ConfigError
from rnn_lab.typed import Typed


class Spec(StrictModel):
    """A dimension as a user writes it: `low` and `high`, or `values`; neither means the default."""

    low: float | None = Field(None, description="smallest value")
    high: float | None = Field(None, description="largest value")
    log: bool = Field(False, description="uniform in the logarithm")
    values: tuple[Any, ...] | None = Field(None, min_length=1, description="exactly these values")

    @model_validator(mode="after")
    def _fits(self) -> "Spec":
        if (self.low is None) != (self.high is None):
            raise ValueError("a range needs low and high")
        if self.low is not None and self.values is not None:
            raise ValueError("either a range or values, not both")
        if self.low is not None and self.high is not None:
            if self.low >= self.high:
                raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}")
            if self.log and self.low <= 0:
                raise ValueError(f"a logarithmic range begins above 0, not at {self.low:g}")
        return self


@dataclass(frozen=True)
class Dimension:
    """One coordinate of the search.

    Attributes:
        key: configuration key, such as `optimizer.lr`; `optimizer.beta1` and `beta2` are the two of `betas`.
        kind: `float`, `int` or `choice`.
        low: smallest value of a range; of 1 - beta for a beta.
        high: largest value of a range.
        log: uniform in the logarithm.
        values: of a choice.
        solved: the solver follows it as near as the target allows.
        position: a wish from 0 (smallest) to 1 (largest) among choices that depend on the width.
    """

    key: str
    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    values: tuple[Any, ...] = ()
    solved: bool = False
    position: bool = False

    @property
    def field(self) -> str:
        """The key without its section."""
        return self.key.partition(".")[2]

    def suggest(self, trial: Any) -> Any:
        """Value of the trial, by Optuna's `suggest_*`."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.key, list(self.values))
        if self.kind == "int":
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def nearest(self, value: Any) -> Any | None:
        """The value of this dimension that is nearest to `value`; None where a choice does not hold it."""
        if self.kind == "choice":
            return value if value in self.values else None
        inside = min(max(float(value), self.low), self.high)
        return round(inside) if self.kind == "int" else inside

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        if self.kind == "choice":
            return {"key": self.key, "values": list(self.values), "solved": self.solved}
        shown = {"low": self.low, "high": self.high, "log": self.log, "integer": self.kind == "int"}
        return {"key": self.key, **shown, "solved": self.solved, "position": self.position}


def parse_spec(text: str) -> tuple[str, Spec]:
    """Name and specification of `-s NAME`, `NAME=LOW:HIGH`, `NAME=LOW:HIGH:log` or `NAME=A,B,C`.

    Raises:
        ConfigError: it is none of these.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        return name, Spec()
    shown = "expected NAME, NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=A,B,C"
    if ":" not in value:
        values = tuple(_scalar(part.strip()) for part in value.split(","))
        if not name or "" in values:
            raise ConfigError(f"-s {text}: {shown}")
        return name, Spec(values=values)
    low, high, *log = value.split(":")
    if log not in ([], ["log"]):
        raise ConfigError(f"-s {text}: {shown}")
    return name, validate(Spec, {"low": Typed(low), "high": Typed(high), "log": bool(log)}, prefix=f"-s {name}: ")


def read_space(path: Path) -> dict[str, Spec]:
    """Specifications from the `[space]` table of a TOML file: `lr = { low = 1e-4, high = 1e-2, log = true }`,
    `n_state = [16, 32]`, `depth = true`; dotted keys may be sub-tables.

    Raises:
        ConfigError: the file cannot be read or holds anything else.
    """  # noqa: D205
    table = read_toml(path)
    unknown = sorted(table.keys() - {"space"})
    if unknown or not isinstance(table.get("space"), Mapping):
        raise ConfigError(f"{path}: expected one table [space]" + (f", got [{unknown[0]}]" if unknown else ""))
    specs: dict[str, Spec] = {}
    for name, value in _flat(table["space"]):
        if value is True:
            specs[name] = Spec()
        elif isinstance(value, list):
            specs[name] = validate(Spec, {"values": value}, prefix=f"{path}: space.{name}.")
        elif isinstance(value, Mapping):
            specs[name] = validate(Spec, value, prefix=f"{path}: space.{name}.")
        else:
            raise ConfigError(f"{path}: space.{name} = {value!r}: expected true, a list or low and high")
    return specs


def _flat(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """`[space.optimizer] lr = …` as `optimizer.lr`, which TOML's dotted keys become."""
    rows = []
    for name, value in table.items():
        nested = name in ("model", "optimizer") and isinstance(value, Mapping)
        rows += [(f"{name}.{key}", inner) for key, inner in value.items()] if nested else [(name, value)]
    return rows


def _scalar(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
