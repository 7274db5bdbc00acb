"""From a case's constructor arguments to one of our models and its Config.

Everything that a sidecar says is either translated, or checked against what our model does anyway, or refused
by name: a case never runs with less than its own configuration.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rnn_lab.errors import RnnLabError
from rnn_lab.layer import Layer
from rnn_lab.registry import registry

from .cases import Case, CaseError, NotInstalledError
from .fields_baselines import BASELINES, Baseline

Source = Mapping[str, Any]

VECTOR = {
    "dim": "dim",
    "expansion": "expansion",
    "use_conv": "use_conv",
    "rank": "rank",
    "n_slots": "n_slots",
    "diag": "diag",
    "spectral_radius": "spectral_radius",
    "use_tanh": "tanh",
    "r_h_mode": "constraint",
    "w_h_mode": "constraint",
}
MATRIX = VECTOR | {"n_state": "n_state", "variant": "form", "decay_init": "decay"}
E74 = {
    "dim": "dim",
    "expansion": "expansion",
    "n_state": "n_state",
    "use_conv": "use_conv",
    "proj_type": "projection",
    "nonlin_type": "nonlinearity",
    "nonlin": "nonlinearity",
    "update_type": "update",
    "update": "update",
    "gate_type": "gate",
    "gate": "gate",
    "block_size": "block_size",
}
E88 = {
    "dim": "dim",
    "n_state": "n_state",
    "n_heads": "n_heads",
    "expansion": "expansion",
    "use_conv": "use_conv",
    "use_silu": "use_silu",
    "use_l2_norm": "l2_norm",
    "use_output_norm": "output_norm",
    "tie_kv": "tie_kv",
    "head_mix": "head_mix",
    "decay_mode": "decay",
    "use_write_gate": "write_gate",
    "use_value_residual": "value_residual",
}
CONSTRAINTS = {"spectral_norm": "spectral", "scaled_orthogonal": "orthogonal", "none": "none"}
FORMS = {"e2": {True: "diagonal", False: "full"}, "e3": {True: "diagonal", False: "low_rank"}}
"""Our `form` for the source's `diag`."""
NEUTRAL = {"use_conv": False, "expansion": 1.0, "constraint": "none", "tanh": False, "diag": False}
"""What a model without the field does."""
CHECKED = ("d_inner", "d_conv", "spectral_radius")
"""Keys that `expect` holds for a look at the built layer, where they are no fields of ours."""

E88_DEFAULTS = {
    "87568a08": {"use_conv": True, "use_gate": True, "gate_activation": "sigmoid", "use_output_norm": True},
    "627683a9": {"use_conv": False, "use_gate": False, "gate_activation": "silu", "use_output_norm": False},
}
"""Class defaults of the source by commit, for keys that a case leaves out."""

FILES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"e74_fused_gpu|E74DiagonalCell", ("e74d",)),
    (r"e74_ablations", ("e74",)),
    (r"e88_fla_hybrid", ("e88",)),
    (r"e63m_matrix", ("e63m",)),
    (r"\b(e7[0-3])_matrix", ()),
    (r"cuda_gru", ("cudagru",)),
    (r"cuda_lstm", ("cudalstm",)),
    (r"mamba2", ("mamba2",)),
    (r"gated_deltanet", ("gdn", "gated_deltanet")),
    (r"llama_baseline", ("llama",)),
)
"""Our name (the first that is registered) for the model of a source file."""


@dataclass(frozen=True)
class Plan:
    """A model, the fields of its Config, and what else the sidecar says about it."""

    model: str
    layer_cls: type[Layer]
    fields: dict[str, Any]
    expect: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Any:
        """The checked Config."""
        try:
            return self.layer_cls.Config(**self.fields)
        except ValueError as error:
            raise CaseError(f"model {self.model} refuses {self.fields}: {error}") from error


def vector_plan(case: Case, *tables: Source) -> Plan:
    """Plan of a vector or LM case from its tables of constructor arguments, later ones resolved defaults."""
    family, level = str(case.sidecar.get("family")), str(case.sidecar.get("level_key"))
    if family not in registry().models:
        raise NotInstalledError(family)
    model, fields = _find(level)
    if model != family:
        raise CaseError(f"level key {level!r} is {model}, not of family {family}")
    plan = Plan(family, _load(family), dict(fields))
    for table in tables:
        _translate(plan, table, VECTOR)
    return plan


def matrix_plan(case: Case) -> Plan:
    """Plan of a matrix case from its source file and configuration."""
    config, source = dict(case.table("config")), str(case.sidecar.get("source"))
    name, fields = _matrix_model(case, config, source)
    plan = Plan(name, _load(name), dict(fields))
    if name == "e74":
        _e74(plan, case, config, source)
    elif name == "e74d":
        _e74d(plan, config, source)
    elif name == "e88":
        _e88(plan, case, config, source)
    elif re.fullmatch(r"e63m|e7[0-3]", name):
        _translate(plan, config, MATRIX)
    elif name in BASELINES:
        _baseline(plan, config, BASELINES[name])
    else:
        raise CaseError(f"no adapter translates the configuration of {name}: add one to {__name__}")
    return plan


def _matrix_model(case: Case, config: Source, source: str) -> tuple[str, dict[str, Any]]:
    names: tuple[str, ...] = ()
    for pattern, known in FILES:
        if match := re.search(pattern, source):
            names = known or (match[1],)
            break
    if config.get("state_type") == "diagonal":
        names = FILES[0][1]
    if "min_rnn_baseline" in source:
        names = ("minlstm" if any("gates" in name for name in case.parameters()) else "mingru",)
    if not names:
        raise CaseError(f"no model of ours is known for source {source!r}")
    for name in names:
        if name in registry().models or name in registry().aliases:
            return _find(name)
    raise NotInstalledError(names[0])


def _find(name: str) -> tuple[str, dict[str, Any]]:
    """The model called `name`, and the fields that the name sets, as values of its Config."""
    for candidate in (name, f"e{name}"):
        try:
            ref, fields = registry().find_model(candidate)
        except RnnLabError:
            continue
        cfg = ref.load().Config(**fields)
        return ref.name, {key: getattr(cfg, key) for key in fields}
    raise CaseError(f"level key {name!r} is no model or alias of ours")


def _load(model: str) -> type[Layer]:
    return registry().models[model].load()


def _translate(plan: Plan, table: Source, names: Mapping[str, str]) -> None:
    """Put every entry of `table` into the plan, or refuse it by name."""
    known = plan.layer_cls.Config.model_fields
    for key, value in table.items():
        if value is None:
            continue
        if key in CHECKED and key not in known:
            plan.expect[key] = value
            continue
        if key not in names:
            raise CaseError(f"config key {key!r} = {value!r} cannot be mapped to model {plan.model}")
        ours = names[key]
        if ours == "constraint":
            if value not in CONSTRAINTS:
                raise CaseError(f"config key {key!r} = {value!r} is no constraint of ours")
            value = CONSTRAINTS[value]
        if ours == "diag" and plan.model in FORMS:
            ours, value = "form", FORMS[plan.model][value]
        if ours not in known:
            if ours in NEUTRAL and NEUTRAL[ours] == value:
                continue
            raise CaseError(f"config key {key!r} = {value!r}: model {plan.model} has no field {ours!r}")
        if ours in plan.fields and plan.fields[ours] != value:
            raise CaseError(f"config key {key!r} = {value!r} contradicts {ours} = {plan.fields[ours]!r}")
        plan.fields[ours] = value


def _e74(plan: Plan, case: Case, config: dict[str, Any], source: str) -> None:
    kind = config.pop("state_type", "full")
    if kind == "blockdiag":
        # The source's cell has no z: its projection `full` is `no_z`.
        config["proj_type"] = {"full": "no_z"}.get(str(config.get("proj_type")), config.get("proj_type"))
        config.setdefault("block_size", case.get("in.S0").shape[-1])
    elif kind == "full":
        config.pop("block_size", None)
    else:
        raise CaseError(f"config key 'state_type' = {kind!r} cannot be mapped to model e74")
    config.pop("rank", None)  # of the low-rank state only
    if "train_e74" in source or "E74Layer" in source:
        plan.fields["activation"] = "none"
    if "expansion" not in config:
        config["expansion"] = config["d_inner"] / config["dim"]
    _translate(plan, config, E74)


def _e74d(plan: Plan, config: dict[str, Any], source: str) -> None:
    for key in ("state_type", "block_size", "rank"):  # the model's name says the first; the others are of other states
        config.pop(key, None)
    if "e74_fused_gpu" in source:
        plan.fields.update(definition="fused", activation="none")
        if (decay := config.pop("decay", 0.9)) != 0.9:
            raise CaseError(f"config key 'decay' = {decay!r}: the decay of our definition fused is 0.9")
    if "expansion" not in config:
        config["expansion"] = config["d_inner"] / config["dim"]
    _translate(plan, config, E74)


def _e88(plan: Plan, case: Case, config: dict[str, Any], source: str) -> None:
    defaults = next((table for commit, table in E88_DEFAULTS.items() if commit in source), None)
    if defaults is None:
        raise CaseError(f"the defaults of source {source!r} are unknown")
    config = defaults | config
    activation = str(config.pop("gate_activation")).replace("swish", "silu")
    plan.fields["gate"] = activation if config.pop("use_gate") else "none"
    plan.fields["nonlinearity"] = "linear" if config.pop("linear_state", False) else "tanh"
    if config.pop("simple_decay", False):
        config["decay_mode"] = "simple"
    if "head_v_dim" in case.sidecar:
        plan.expect["d_value"] = case.sidecar["head_v_dim"]
    _translate(plan, config, E88)


def _baseline(plan: Plan, config: dict[str, Any], baseline: Baseline) -> None:
    plan.fields.update(baseline.fields)
    for key, value in baseline.always.items():
        if config.pop(key, value) != value:
            raise CaseError(f"config key {key!r}: model {plan.model} only knows {value!r}")
    _translate(plan, config, baseline.names)
