"""Where a loss or gradient stopped being finite, and what may help."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rnn_lab.layer import Layer


def first_offender(
    model: nn.Module, forward: Any, first_of: Callable[[str | None], str | None] = lambda found: found
) -> str:
    """Name of what first went non-finite.

    Args:
        model: the model, gradients of the failed step still in place.
        forward: repeats the failed forward pass when called.
        first_of: what of several processes the first found that found anything. All have to make the pass, or none,
            though each may have only a part of a parameter.

    Returns:
        `output of layers.3.in_proj`, `gradient of layers.0.W_h.weight`, `parameter …`, or `loss`.
    """
    bad = first_of(next((name for name, parameter in model.named_parameters() if not _finite(parameter)), None))
    if bad is not None:
        return f"parameter {bad}"
    found: list[str] = []
    hooks = [module.register_forward_hook(_watch(name, found)) for name, module in model.named_modules() if name != ""]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"output of {found[0]}"
    # Backward runs from the last layer to the first, so the last parameter in order met the fault first.
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"gradient of {name}"
    return "the loss"


def graver(found: Sequence[str]) -> str:
    """What several ranks found, of whom all see one gradient and each its own sequences: the earliest in a step."""
    order = ("parameter", "output", "gradient")
    return min(found, key=lambda text: next((i for i, kind in enumerate(order) if text.startswith(kind)), len(order)))


def _finite(t: Tensor) -> bool:
    """Of a tensor, or of the part of it that is here: torch.distributed.tensor takes seconds to import."""
    local = getattr(t.detach(), "to_local", None)
    return bool(torch.isfinite(t if local is None else local()).all())


def advice(layer_cls: type[Layer], cfg: Any) -> str:
    """What to do about a run of this layer that diverged."""
    declared = layer_cls.diverges(cfg)
    if declared is not None:
        return (
            f"This configuration diverges by its own mathematics: {declared}. No learning rate or clipping helps; "
            "choose another form of the model."
        )
    return "Try a lower --lr or -o train.clip=0.5; `rnn-lab resume` goes on from the last checkpoint."


def _watch(name: str, found: list[str]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if any(isinstance(t, Tensor) and not torch.isfinite(t).all() for t in tensors):
            found.append(name)

    return hook
