"""A function bound to its own copies of inputs: what is checked first and timed afterwards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnn_lab.kernels.certificates import copies
from rnn_lab.tensors import relative_error

PEER_LIMITS = (0.05, 0.05)
"""Errors that show another function, not rounding: a peer computes in whatever precision it was made for."""


Outcome = tuple[list[Tensor], list[Tensor | None]]
"""Results, and a gradient per leaf."""


class Bound:
    """A call on fixed inputs.

    Args:
        run: takes nothing, gives a tensor or a sequence of tensors.
        leaves: tensors by which the gradient is taken.

    """

    def __init__(self, run: Callable[[], Any], leaves: Sequence[Tensor]) -> None:
        self.run, self.leaves = run, list(leaves)
        self._weights: list[Tensor] | None = None

    def forward(self) -> list[Tensor]:
        """Floating results."""
        results = self.run()
        results = [results] if isinstance(results, Tensor) else list(results)
        return [r for r in results if isinstance(r, Tensor) and r.is_floating_point()]

    def inference(self) -> list[Tensor]:
        """Results, without the means to differentiate them."""
        with torch.no_grad():
            return self.forward()

    def forward_backward(self) -> Outcome:
        """Results and the gradients of a fixed random weighting of them."""
        with torch.enable_grad():
            results = self.forward()
            if self._weights is None:
                self._weights = [_weight(r) for r in results]
            pairs = [(r, w) for r, w in zip(results, self._weights, strict=True) if r.requires_grad]
            gradients = torch.autograd.grad(
                [r for r, _ in pairs], self.leaves, [w for _, w in pairs], allow_unused=True
            )
        return results, list(gradients)

    def bytes(self) -> tuple[int, int]:
        """Algorithmic bytes, forward and forward with backward: inputs read once, results written once.

        The backward pass reads the inputs and the gradients of the results, and writes a gradient per input.
        """
        inputs = sum(leaf.nbytes for leaf in self.leaves)
        results = sum(r.nbytes for r in self.inference())
        return inputs + results, 3 * inputs + 2 * results


def bind(run: Callable[..., Any], args: tuple[Any, ...], dtype: torch.dtype | None = None) -> Bound:
    """`run` on copies of `args`; `dtype` casts those that are floating."""
    own, leaves = copies(args, dtype)
    return Bound(lambda: run(*own), leaves)


def _weight(result: Tensor) -> Tensor:
    """Random weights that every dtype holds exactly, so that all of them take the gradient of the same thing."""
    generator = torch.Generator(result.device).manual_seed(1)
    weight = torch.randn(result.shape, generator=generator, device=result.device)
    return weight.to(torch.bfloat16).to(result.dtype)


@dataclass(frozen=True)
class Check:
    """Largest relative errors against fp64, what is allowed, and the shape on which it was seen."""

    forward: float
    gradient: float
    limits: tuple[float, float]
    batch: int
    seq_len: int

    @property
    def failure(self) -> str | None:
        """What is wrong, or None."""
        if self.forward <= self.limits[0] and self.gradient <= self.limits[1]:
            return None
        return (
            f"r = {self.forward:.2g} forward, {self.gradient:.2g} in gradients; "
            f"allowed are {self.limits[0]:g} and {self.limits[1]:g}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON form; an infinite error is null."""
        errors = {key: value if value < float("inf") else None for key, value in self._errors().items()}
        return errors | {"limits": list(self.limits), "batch": self.batch, "seq_len": self.seq_len}

    def _errors(self) -> dict[str, float]:
        return {"forward": self.forward, "gradient": self.gradient}


def compare(ours: Bound, exact: Outcome) -> tuple[float, float]:
    """Largest relative error of results and of gradients; a gradient that does not exist is zero."""
    got, want = (_filled(ours, outcome) for outcome in (ours.forward_backward(), exact))
    return max(map(relative_error, got[0], want[0])), max(map(relative_error, got[1], want[1]), default=0.0)


def _filled(bound: Bound, outcome: Outcome) -> tuple[list[Tensor], list[Tensor]]:
    results, gradients = outcome
    return results, [torch.zeros_like(x) if g is None else g for x, g in zip(bound.leaves, gradients, strict=True)]
