"""One run on one GPU and on several: tokens per second, and memory per GPU beside its model.

    python bench/scale.py --json docs/benchmarks/h100-scale.json          # E61 and E74 at 100M, 1 and 2 GPUs, B 32 each
    python bench/scale.py --device cpu --target 100k --batch 2 --seq-len 32 --steps 20      # whether it runs at all

Every row is a `rnn-lab fit` of its own, whose result.json is what counts. One GPU trains once as it does by default
(with a CUDA graph where that captures) and once eagerly, which FSDP2 is to be compared with. The model of memory is
what shapes say (`rnn-lab memory --gpus`) and the activations of the eager run on one GPU: its peak less its shapes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from run import describe, say

ALLOWED = 0.10
"""By how much memory may differ from its model."""
WANTED = 0.925
"""Share of perfect scaling that is to be reached: 1.85 of 2."""


def main() -> int:
    """Train every row, print the table, write the file; 1 if a row could not be trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["e61", "e74"], metavar="NAME")
    parser.add_argument("--target", default="100M")
    parser.add_argument("--batch", type=int, default=32, metavar="B", help="sequences per GPU; default: 32")
    parser.add_argument("--seq-len", type=int, default=512, metavar="T")
    parser.add_argument("--gpus", type=int, nargs="+", default=[2], metavar="N", help="besides one; default: 2")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", metavar="FILE", help="default: text of this machine")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="that a GPU sends; adds the predicted speed-up")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    header = describe() | {"gpus": gpus()}
    say("\n".join(f"{name:<8} {value}" for name, value in header.items()) + "\n")
    say(f"{'model':<8}{'mode':<8}{'gpus':<6}{'tok/s':<14}{'speed-up':<10}{'memory, MB':<13}{'model, MB':<12}verdict")
    rows: list[dict[str, Any]] = []
    settings = {k: v for k, v in vars(options).items() if k != "json"}
    for model in options.models:
        for found in measured(model, options):
            rows.append(found)
            if options.json:  # row by row: whoever is cut off keeps what there is
                page = {"kind": "scale", "header": header, "settings": settings, "rows": rows}
                Path(options.json).write_text(json.dumps(page, indent=1) + "\n")
    return int(any("error" in row for row in rows))


def measured(model: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one model, each shown when it is there."""
    one, eager = row(model, "single", 1, "auto", options), row(model, "single", 1, "off", options)
    shapes = {int(n): memory(model, int(n), options) for n in (1, *options.gpus)}
    activations = None
    if "error" not in eager:
        activations = eager["memory_bytes"][0] - shapes[1]["ddp"]["held_bytes"]
    for alone in (one, eager):
        show(alone)
        yield alone
    for count in options.gpus:
        for mode in ("ddp", "fsdp"):
            found = row(model, mode, count, "auto", options)
            if "error" not in found and activations is not None and "error" not in one:
                found["speedup"] = found["tokens_per_s"] / one["tokens_per_s"]
                found["speedup_to_eager"] = found["tokens_per_s"] / eager["tokens_per_s"]
                found["sent_bytes"] = shapes[count][mode]["sent_bytes"]
                found["model_bytes"] = shapes[count][mode]["held_bytes"] + activations
                found["memory_deviation"] = max(found["memory_bytes"]) / found["model_bytes"] - 1
                if options.bandwidth:
                    found["predicted_speedup"] = predicted(model, mode, count, one if mode == "ddp" else eager, options)
            show(found)
            yield found


def row(model: str, mode: str, count: int, graph: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run's figures, or why there are none."""
    found: dict[str, Any] = {"model": model, "mode": mode, "gpus": count, "train.graph": graph}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "rnn_lab_cli", "fit", "--model", model, "--target", options.target,
            "--batch-size", str(options.batch * count), "--seq-len", str(options.seq_len), "--device", options.device,
            "--steps", str(options.steps), "--gpus", str(count), "--out", str(run), "--checkpoint-every", "1000000",
            "-o", f"train.graph={graph}", "-o", "log.trackers=[]", "--quiet",
        ]  # fmt: skip
        command += ["-o", f"parallel.mode={mode}"] if count > 1 else []
        command += ["--data", options.data] if options.data else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            result = json.loads((run / "result.json").read_text())
        except OSError:
            result = {"status": "not started"}
    if done.returncode or result["status"] != "ok":
        return found | {"error": (done.stderr.strip().splitlines() or ["?"])[-1], "status": result["status"]}
    several = result["parallel"]
    return found | {
        "tokens_per_s": result["tokens_per_s"],
        "memory_bytes": several["peak_memory_bytes"] if several else [result["peak_memory_bytes"]],
        "loss": result["loss"],
        "params": result["params"],
        "graph": result["graph"],
        "step_seconds": result["clock"]["buckets"]["train"],
        "tokens": result["tokens"],
    }


def memory(model: str, count: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What shapes say, by mode."""
    command = [sys.executable, "-m", "rnn_lab_cli", "memory", model, "--target", options.target, "--gpus", str(count)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    return {page["mode"]: page for page in json.loads(done.stdout)["gpus"]}


def predicted(model: str, mode: str, count: int, one: dict[str, Any], options: argparse.Namespace) -> float:
    """The speed-up that the model of communication gives at this bandwidth."""
    from rnn_lab.parallel.costs import Costs

    page = memory(model, count, options)[mode]
    seconds = options.batch * options.seq_len / one["tokens_per_s"]
    return Costs(mode, count, page["sent"], page["held"], one["params"]).speedup(seconds, options.bandwidth * 1e9)


def show(found: dict[str, Any]) -> None:
    """A row for people."""
    shown = f"{found['model']:<8}{found['mode']:<8}{found['gpus']:<6}"
    if "error" in found:
        say(f"{shown}{found['status']}: {found['error']}")
        return
    shown += f"{found['tokens_per_s']:<14,.0f}"
    shown += f"{found['speedup']:<10.3f}" if "speedup" in found else f"{'':<10}"
    shown += f"{max(found['memory_bytes']) / 1e6:<13,.0f}"
    if "model_bytes" in found:
        scales = found["speedup"] >= WANTED * found["gpus"]
        fits = abs(found["memory_deviation"]) <= ALLOWED
        shown += f"{found['model_bytes'] / 1e6:<12,.0f}"
        shown += f"speed {'met' if scales else 'missed'}, memory {found['memory_deviation']:+.1%}"
        shown += "" if fits else " (missed)"
    reason = found["graph"]["reason"]
    say(shown + (f"  no graph: {reason}" if reason else ""))


def gpus() -> str:
    """The GPUs of this machine."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "none"


if __name__ == "__main__":
    sys.exit(main())
