"""Which backend would run each operation of a layer here, found out by a forward of a few steps."""

from typing import Any

import torch
from rnn_lab.train.device import autocast

PROBE_STEPS = 16


def probe_backends(
    layer_cls: Any, cfg: Any, device: torch.device, dtype: torch.dtype, *, batch: int, seq_len: int
) -> list[dict[str, Any]]:
    """The choice of every operation for such inputs, with the reasons of the backends that refused.

    The weights are random, not the model's own: a choice depends on shapes, dtypes and the machine. They are no
    leftovers of other memory either, because kernels are certified on what they are given.

    Raises:
        KernelUnavailable: RNN_LAB_KERNELS forbids every backend that could run.

    """
    with torch.device("meta"):
        layer = layer_cls(cfg)
    # As to_empty, which imports the compiler's symbolic shapes to read strides of meta tensors.
    layer = layer._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
    with torch.random.fork_rng(), autocast(device, dtype):
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.data.normal_(std=0.02)
        layer.prepare()
        layer(torch.randn(batch, min(seq_len, PROBE_STEPS), cfg.dim, device=device))
    return [choice.as_dict() for choice in layer.backends.values()]


def backends_line(choices: list[dict[str, Any]], depth: int) -> str:
    """`backends of all 6 layers: recurrence reference (triton: no GPU)`."""
    if not choices:
        return f"backends of all {depth} layers: plain torch"
    parts = []
    for choice in choices:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in choice["refused"].items())
        parts.append(f"{choice['op']} {choice['backend']}" + (f" ({reasons})" if reasons else ""))
    return f"backends of all {depth} layers: {', '.join(parts)}"
