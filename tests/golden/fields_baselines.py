"""How the sources of the baselines call the fields of our Configs, and what they set that ours always does."""

from dataclasses import dataclass, field
from typing import Any

MIN_RNN = {"dim": "dim", "expansion": "expansion"}


@dataclass(frozen=True)
class Baseline:
    """`names`: the source's key of each field; `fields`: set by every case; `always`: keys with one possible value."""

    names: dict[str, str]
    fields: dict[str, Any] = field(default_factory=dict)
    always: dict[str, Any] = field(default_factory=dict)


BASELINES = {
    "gru": Baseline({"dim": "dim"}, {"expansion": 1.0}),
    "lstm": Baseline({"dim": "dim"}, {"expansion": 1.0}),
    "mingru": Baseline(MIN_RNN),
    "minlstm": Baseline(MIN_RNN),
    "mamba2": Baseline(
        {"d_model": "dim", "d_state": "n_state", "headdim": "head_dim", "expand": "expansion"},
        always={"ngroups": 1, "norm_before_gate": False, "eps": 1e-5},
    ),
    "gdn": Baseline(
        {"hidden_size": "dim", "num_heads": "n_heads", "head_dim": "head_dim", "expand_v": "expansion"},
        always={"conv_size": 4, "use_gate": True},
    ),
    "llama": Baseline(
        {name: name for name in ("dim", "n_heads", "head_dim", "hidden_dim", "rope_theta")},
        {"form": "doubly_residual"},
    ),
}
