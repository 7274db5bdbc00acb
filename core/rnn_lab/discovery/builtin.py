"""What rnn-lab itself contributes, through the same hooks as everybody else."""

from collections.abc import Callable
from pathlib import Path

from rnn_lab.hookspecs import hookimpl


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    """Schedule-free AdamW (the default), AdamW, and those that treat matrices as matrices."""
    register("schedulefree", "rnn_lab.train.optimizers:schedule_free_adamw")
    register("adamw", "rnn_lab.train.optimizers:adamw")
    for name in ("muon", "muon8bit", "galore_muon", "galore_adamw"):
        register(name, f"rnn_lab.optim.factories:{name}")


@hookimpl
def register_protocols(register: Callable[..., None]) -> None:
    """Every TOML file beside rnn_lab/protocols."""
    for path in sorted((Path(__file__).parents[1] / "protocols").glob("*.toml")):
        register(path.stem, path)


@hookimpl
def register_presets(register: Callable[..., None]) -> None:
    """What the seeds' documents have in common, and the one that names no model."""
    register(sorted((Path(__file__).parents[1] / "seeds").glob("*.toml")))


@hookimpl
def register_trackers(register: Callable[..., None]) -> None:
    """TensorBoard; metrics.jsonl is written whatever trackers are chosen."""
    register("tensorboard", "rnn_lab.trackers.tensorboard:TensorBoardTracker")


@hookimpl
def register_diagnostics(register: Callable[..., None]) -> None:
    """What a run is looked at for while it trains: docs/diagnostics.md."""
    about = {
        "training": "NAN DIVERGE GNORM-HI GNORM-LO GSPIKE CLIP ENTROPY WARMUP NOISE",
        "features": "LOADER OOM GALORE-RANK GALORE-NOSAVE GALORE-SLOW COLLIDER COLLIDER-NOGAIN QUANT",
    }
    for module, names in about.items():
        for name in names.split():
            register(f"D-{name}", f"rnn_lab.diagnostics.{module}:{name.replace('-', '_')}")


@hookimpl
def register_executors(register: Callable[..., None]) -> None:
    """Processes of this machine, a Ray cluster, and SLURM: docs/scale.md."""
    register("local", "rnn_lab.lab.local:LOCAL")
    register("ray", "rnn_lab.lab.on_ray:RAY")
    register("slurm", "rnn_lab.lab.on_slurm:SLURM")
