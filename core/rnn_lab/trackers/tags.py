"""TensorBoard's names of the columns of metrics.jsonl."""

import re
from typing import Any

TAGS = {
    "loss": "loss/ce",
    "last100": "loss/ce_last100",
    "bpb": "loss/bpb",
    "objective": "loss/total",
    "entropy": "loss/entropy",
    "mtp_total": "loss/mtp_total",
    "lr": "training/lr",
    "lr_aux": "training/lr_aux",
    "lr_factor": "training/wsd_mult",
    "grad_norm": "training/grad_norm",
    "clip_fraction": "training/clip_fraction",
    "param_norm": "training/param_norm",
    "update_rms": "training/update_rms",
    "skipped": "training/skipped",
    "tokens": "training/tokens",
    "flops": "training/flops",
    "tokens_per_s": "throughput/tokens_per_sec",
    "step_ms": "throughput/step_ms",
    "elapsed_s": "throughput/elapsed_s",
    "mfu": "throughput/model_flops_utilisation",
    "val_loss": "eval/ce",
    "val_bpb": "eval/bits_per_byte",
    "val_perplexity": "eval/perplexity",
    "val_accuracy": "eval/accuracy",
    "val_entropy": "eval/entropy",
    "collider_sparsity": "collider/sparsity",
    "collider_kept_ce": "collider/kept_ce",
    "collider_filtered_ce": "collider/filtered_ce",
    "collider_grad_cos": "collider/grad_cos",
    "data_wait_frac": "loader/data_wait_frac",
    "queue_depth": "loader/queue_depth",
    "starved_steps": "loader/starved_steps",
    "opt_state_bytes": "memory/opt_state_bytes",
    "memory_bytes": "memory/peak_allocated",
    "memory_reserved_bytes": "memory/reserved",
    "gpu_util": "gpu/util",
    "gpu_memory_used_bytes": "gpu/mem_used",
}
_HORIZON = re.compile(r"mtp_k\d+")


def tag_of(column: str) -> str | None:
    """The tag of a column, or None where it has none; a name with a slash is one already."""
    if column in TAGS:
        return TAGS[column]
    if "/" in column:
        return column
    return f"loss/{column}" if _HORIZON.fullmatch(column) else None


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """Tags and values of a line."""
    found = {}
    for column, value in line.items():
        tag = tag_of(column)
        if tag is not None and value is not None:
            found[tag] = value
    return found
