"""Whether every configuration of the E3 suite trains every model: `python bench/e3_models.py [--models A,B]`.

Small models, 20 steps on the CPU, one row per model. The exit code is 1 if a run failed.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rnn_lab.config import Layer
from rnn_lab.e3.files import read_layers
from rnn_lab.e3.suite import CONFIGS
from rnn_lab.errors import RnnLabError
from rnn_lab.registry import registry
from rnn_lab.train.run import plan_run, start_run

SMALL: dict[str, dict[str, Any]] = {
    "model": {"dim": 32, "depth": 2},
    "train": {"batch_size": 4, "seq_len": 32, "device": "cpu"},
    "eval": {"tokens": 64},
    "log": {"trackers": []},
}
PROJECTED = {"galore_rank": 8, "galore_min_dim": 8, "galore_update_freq": 5}


class Silent:
    """Hears and says nothing."""

    def step(self, line: dict[str, Any], fraction: float) -> None:
        """See Observer."""

    def note(self, text: str) -> None:
        """See Observer."""


def train(config: str, model: str, steps: int, out: Path, data: str | None = None) -> dict[str, Any]:
    """result.json of `steps` steps of a small `model` under one configuration of the suite.

    Raises:
        RnnLabError: it does not train.

    """
    own: dict[str, dict[str, Any]] = {key: dict(table) for key, table in SMALL.items()}
    own["model"]["name"] = model
    own["train"]["steps"] = steps
    if data is not None:
        own["data"] = {"path": data}
    layers = [*read_layers(f"e3/{config}", own).layers, Layer("here", own)]
    if any(layer.values.get("optimizer", {}).get("galore_rank") for layer in layers):
        layers.append(Layer("here", {"optimizer": PROJECTED}))
    return start_run(plan_run(layers, registry()), out, registry(), Silent())


def show(*cells: str) -> None:
    """A row, at once."""
    sys.stdout.write("\t".join(cells) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Train them all, print a row per model."""
    parser = argparse.ArgumentParser(description="Every configuration of the E3 suite with every model.")
    parser.add_argument("--models", metavar="NAMES", help="models, by comma; default: all")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps of each run; default: 20")
    options = parser.parse_args()
    models = options.models.split(",") if options.models else sorted(registry().models)
    failed = 0
    show("model", *CONFIGS, "seconds")
    for model in models:
        began, cells = time.perf_counter(), []
        for config in CONFIGS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    result = train(config, model, options.steps, Path(folder) / "run")
                    fine = result["status"] == "ok" and result["steps"] == options.steps
                    fine = fine and math.isfinite(result["loss"])
                    state = result["optimizer_state"]
                    fine = fine and state["bytes"] == state["predicted_bytes"]
                    cells.append(f"{result['loss']:.3f}" if fine else f"FAILED: {result['status']}")
                except RnnLabError as error:
                    fine = False
                    cells.append(f"FAILED: {error}")
            failed += not fine
        show(model, *cells, f"{time.perf_counter() - began:.0f}")
    show(f"{len(models) * len(CONFIGS) - failed} of {len(models) * len(CONFIGS)} runs trained {options.steps} steps")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
