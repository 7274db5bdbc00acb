"""A search before it begins: what is held, what moves, what is measured; and the configuration of each trial."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rnn_lab.config import Layer, RunConfig
from rnn_lab.data.chain import fingerprint
from rnn_lab.data.corpus import open_split
from rnn_lab.errors import ConfigError
from rnn_lab.lm import lm_n_params
from rnn_lab.registry import Registry
from rnn_lab.search.ranges import BETAS, Context, build_space
from rnn_lab.search.shapes import Infeasible, Wish, nearest_shape
from rnn_lab.search.space import Dimension, Spec
from rnn_lab.search.study import Pruner, Sampler
from rnn_lab.train.budget import DEFAULT_STEPS
from rnn_lab.train.metrics import WINDOW
from rnn_lab.train.run import Plan, plan_run

METRICS = ("val_loss", "last100")
_REPORTS = 20
_ANYWHERE = {"train": ("device",), "data": ("path", "val_path"), "log": ("trackers",), "checkpoint": ("every", "keep")}
"""Keys that may differ between the workers of one search."""


@dataclass(frozen=True)
class Candidate:
    """What a trial trains: tables of its configuration, and the size that they have by closed form."""

    tables: dict[str, dict[str, Any]]
    params: int


@dataclass(frozen=True)
class SearchPlan:
    """A search whose every choice is made.

    Attributes:
        default: the run that the configuration makes without a search; trial 0.
        space: what moves.
        target: parameters of every trial, within 0.5 %.
        metric: figure of result.json that is minimised, nats per byte.
        sampler: who proposes.
        pruner: who stops trials early.
        seed: of the sampler; all trials share `train.seed`, and with it their batches.
        report_every: optimizer steps between the losses that the pruner sees.
        identity: what all workers of this search have in common.
    """

    default: Plan
    space: tuple[Dimension, ...]
    target: int
    metric: str
    sampler: Sampler
    pruner: Pruner
    seed: int
    report_every: int
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the study in a storage: two searches that differ never share one."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.default.spec.name}-{self.target}-{self.metric}-{digest}"

    def default_point(self) -> dict[str, Any]:
        """Values of the dimensions nearest to the configuration without a search."""
        optimizer = self.default.resolved.config.optimizer
        model = self.default.spec.table()
        point: dict[str, Any] = {}
        for dimension in self.space:
            if dimension.position:
                value: Any = 0.5
            elif dimension.key.startswith("model."):
                value = model.get(dimension.field)
            elif dimension.field in BETAS:
                beta = optimizer.betas[BETAS.index(dimension.field)]
                value = beta if dimension.kind == "choice" else 1 - beta
            else:
                value = getattr(optimizer, dimension.field)
            nearest = None if value is None else dimension.nearest(value)
            if nearest is not None:
                point[dimension.key] = nearest
        return point

    def default_candidate(self) -> Candidate:
        """The configuration without a search."""
        return Candidate(self._tables({}, {}), self.default.spec.certificate.params)

    def candidate(self, point: Mapping[str, Any]) -> Candidate:
        """The configuration at a point of the space, its shape solved for the target.

        Raises:
            Infeasible: no shape with these values is on target, or the model declares that it diverges.
        """
        spec = self.default.spec
        exact = {d.field: point[d.key] for d in self.space if d.key.startswith("model.") and not d.solved}
        wishes = {d.field: Wish(float(point[d.key]), d.position) for d in self.space if d.solved}
        optimizer = {d.field: point[d.key] for d in self.space if d.key.startswith("optimizer.")}
        optimizer = self._betas(optimizer)
        if not exact and not wishes:
            return Candidate(self._tables({}, optimizer), spec.certificate.params)
        section = self.default.resolved.config.model
        fields = {name: getattr(spec.layer_cfg, name) for name in _held(self.default) if name != "depth"}
        lm_fields: dict[str, Any] = {"norm": spec.lm_cfg.norm, "shell": spec.lm_cfg.shell}
        if section.depth is not None:
            lm_fields["depth"] = section.depth
        if "depth" in exact:
            lm_fields["depth"] = exact.pop("depth")
        fields |= exact
        shape = nearest_shape(spec.layer_cls, fields, lm_fields, self.target, wishes)
        cfg = spec.layer_cls.Config(**{**fields, **shape.fields})
        lm_cfg = spec.lm_cfg.model_copy(update={"depth": shape.depth})
        counted = sum(lm_n_params(spec.layer_cls, cfg, lm_cfg).values())
        assert counted == shape.params, (counted, shape)
        if reason := spec.layer_cls.diverges(cfg):
            raise Infeasible(f"declared to diverge: {reason}")
        return Candidate(self._tables({**fields, **shape.fields, "depth": shape.depth}, optimizer), counted)

    def _betas(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """Betas as one key; a range has 1 - beta, a choice beta itself."""
        betas = list(self.default.resolved.config.optimizer.betas)
        for dimension in self.space:
            if dimension.field in BETAS and dimension.field in optimizer:
                value = optimizer.pop(dimension.field)
                betas[BETAS.index(dimension.field)] = value if dimension.kind == "choice" else round(1 - value, 9)
                optimizer["betas"] = betas
        return optimizer

    def _tables(self, model: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Every section of the run, what is null left out, as TOML holds it."""
        tables = self.default.tables()
        tables["model"] = {**tables["model"], **model, "target": self.target}
        tables["optimizer"] = {**tables["optimizer"], **optimizer}
        return {name: {k: v for k, v in table.items() if v is not None} for name, table in tables.items()}


def plan_search(
    layers: list[Layer], specs: Mapping[str, Spec], found: Registry, *, metric: str, sampler: Sampler,
    pruner: Pruner | None, seed: int, report_every: int | None,
) -> SearchPlan:  # fmt: skip
    """Check everything about a search that can be checked before its first trial.

    Args:
        layers: configuration layers of the run that is searched around, weakest first.
        specs: what moves, as `ranges.build_space` takes it.
        found: the registry.
        metric: one of METRICS.
        sampler: one of study.SAMPLERS.
        pruner: one of study.PRUNERS; None: median, but none under a budget in minutes, because a slow model and a
            fast one are not equally far at equal steps.
        seed: of the sampler.
        report_every: steps between reported losses; None: a twentieth of the budget.

    Raises:
        ConfigError: no target, a metric that the budget cannot give, or anything in the layers or the space.
    """
    default = plan_run(layers, found)
    cfg, spec = default.resolved.config, default.spec
    if cfg.model.target is None:
        raise ConfigError("a search needs a parameter target that all trials share: give --target N")
    steps = _steps(cfg)
    if metric == "last100" and steps is not None and steps < WINDOW:
        raise ConfigError(f"--metric last100 needs {WINDOW} steps or more, the budget has {steps}: use val_loss")
    held = frozenset(_held(default))
    own = {name: getattr(spec.layer_cfg, name) for name in held if name != "depth"}
    context = Context(spec.layer_cls, spec.layer_cls.Config(**own), held, cfg.optimizer, cfg.model.target, steps)
    space = build_space(specs, context)
    if pruner is None:
        pruner = "median" if steps is not None else "none"
    every = report_every or max(1, steps // _REPORTS if steps is not None else 50)
    split = open_split(str(cfg.data.path), cfg.data.val_path, seq_len=cfg.train.seq_len)
    data = [fingerprint(split.train), fingerprint(split.val)]
    identity = {
        "model": spec.name,
        "target": cfg.model.target,
        "metric": metric,
        "sampler": sampler,
        "sampler_seed": seed,
        "pruner": pruner,
        "report_every": every,
        "space": [dimension.as_dict() for dimension in space],
        "config": _shared(default),
        "data": data,
    }
    return SearchPlan(default, tuple(space), cfg.model.target, metric, sampler, pruner, seed, every, identity)


def _held(default: Plan) -> list[str]:
    """Fields of the model, and `depth`, that a configuration layer or an alias set."""
    solved = {"solver", "default", "model's shell"}
    fields = ["depth", *default.spec.layer_cls.Config.model_fields]
    origins = default.origins()
    return [name for name in fields if origins.get(f"model.{name}", "default") not in solved]


def _steps(cfg: RunConfig) -> int | None:
    """Optimizer steps of the budget; None where minutes may end it first."""
    train = cfg.train
    if train.minutes is not None:
        return None
    if train.steps is None and train.tokens is None:
        return DEFAULT_STEPS
    limits = [train.steps, None if train.tokens is None else train.tokens // (train.batch_size * train.seq_len)]
    return min(limit for limit in limits if limit is not None)


def _shared(default: Plan) -> dict[str, Any]:
    """The configuration that all workers of a search have in common."""
    return {
        section: {key: value for key, value in table.items() if key not in _ANYWHERE.get(section, ())}
        for section, table in default.tables().items()
    }
