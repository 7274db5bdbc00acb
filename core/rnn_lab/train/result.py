"""result.json: how a run ended, in figures."""

from typing import Any

from rnn_lab.config import OptimizerSection
from rnn_lab.modelspec import ModelSpec
from rnn_lab.optim.plan import decisions, settled
from rnn_lab.optim.state_bytes import measured, predicted
from rnn_lab.train.clock import Clock
from rnn_lab.train.device import peak_memory_bytes
from rnn_lab.train.loop import Trainer
from rnn_lab.train.metrics import bits_per_byte


def result_of(
    spec: ModelSpec, preset: str | None, seed: int, trainer: Trainer | None, clock: Clock, *, status: str,
    error: str | None, final: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What result.json says; figures that do not exist are null."""
    seconds = clock.seconds()
    result: dict[str, Any] = {
        "status": status,
        "error": error,
        "model": spec.name,
        "preset": preset,
        "params": spec.certificate.params,
        "certificate": spec.certificate.as_dict(),
        "seed": seed,
        "clock": {"buckets": seconds, "total": sum(seconds.values()), "budget": "train"},
    }
    names = (
        "steps", "tokens", "flops", "loss", "last100", "bpb", "val_loss", "val_bpb", "val_accuracy", "tokens_per_s",
        "mfu", "peak_memory_bytes", "heads_params", "device", "dtype", "data", "data_chain", "backends", "graph",
        "optimizer_state", "gpu_load", "diagnostics", "rollbacks", "parallel",
    )  # fmt: skip
    result |= dict.fromkeys(names)
    if trainer is None:
        return result
    timed_flops = trainer.timed_steps * trainer.step_flops
    last100 = trainer.metrics.last100 if trainer.metrics else None
    train_seconds, heads = seconds["train"], trainer.model.heads
    result |= final
    result |= {
        "steps": trainer.step,
        "tokens": trainer.step * trainer.budget.tokens_per_step,
        "flops": trainer.step * trainer.step_flops,
        "loss": trainer.last_line.get("loss"),
        "last100": last100,
        "bpb": bits_per_byte(last100),
        "tokens_per_s": trainer.timed_steps * trainer.budget.tokens_per_step / train_seconds if train_seconds else None,
        "mfu": timed_flops / train_seconds / trainer.peak if trainer.peak and train_seconds else None,
        "peak_memory_bytes": peak_memory_bytes(trainer.device),
        "heads_params": 0 if heads is None else sum(p.numel() for p in heads.parameters()),
        "device": str(trainer.device),
        "dtype": str(trainer.dtype).removeprefix("torch."),
        "data": {
            "path": str(trainer.split.train.file.path),
            "fingerprint": trainer.data_fingerprint,
            "bytes": len(trainer.split.train),
        },
        "data_chain": trainer.chain.hexdigest,
        "backends": trainer.trained_by,
        "graph": trainer.executor.graph,
        "optimizer_state": _optimizer_state(trainer),
        "gpu_load": trainer.load.summary(),
        "diagnostics": trainer.watch.report(),
        "rollbacks": trainer.recovery.rows,
        "parallel": _parallel(trainer),
    }
    return result


def _parallel(trainer: Trainer) -> dict[str, Any] | None:
    """How many processes shared the run and what each took in memory; null for one alone."""
    if trainer.world.size == 1:
        return None
    return {
        "mode": trainer.sharing.mode,
        "ranks": trainer.world.size,
        "peak_memory_bytes": trainer.memory_of_ranks,
    }


def _optimizer_state(trainer: Trainer) -> dict[str, Any]:
    """Bytes of the optimizer's state by category, and what shapes predict; null for an optimizer of others.

    `reference_bytes` are those of Muon and of AdamW for the same parameters, both with fp32 state.
    """
    found = measured(trainer.optimizer)
    section, model = trainer.cfg.optimizer, trainer.model
    try:
        foreseen = predicted(model, section.name, section, trainer.step)
    except KeyError:
        foreseen = None
    plain = OptimizerSection()
    trained = [p for p in model.parameters() if p.requires_grad]
    return {
        "bytes": sum(found.values()),
        "by_category": found,
        "predicted_bytes": None if foreseen is None else sum(foreseen.values()),
        "predicted_by_category": foreseen,
        "reference_bytes": {name: sum(predicted(model, name, plain).values()) for name in ("muon", "adamw")},
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "gradient_bytes": sum(p.numel() * p.element_size() for p in trained),
        "matrix_params": sum(
            d.route.numel for d in decisions(model, "muon", settled("muon", plain)).values() if d.ranks
        ),
    }
