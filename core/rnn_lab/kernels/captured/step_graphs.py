"""One step of a recurrence, and one step back along its states, as graphs of operations that TorchInductor fuses.

Way back: what a step saves for its derivative does not depend on the gradient that arrives, so it is computed for all
steps at once, as if steps were sequences of a larger batch. Only what the gradient itself passes through is walked
step by step.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx

FUSED = 16
"""Steps of a loop from which on it pays to compile a step: seconds, once per shape."""


@dataclass(frozen=True)
class Step:
    """Graphs of one step, for tensors of these shapes.

    `forward(h, *inputs, *weights[, fresh])` gives the next state. `back(dh, dstate, *saved[, fresh])` gives
    dh + dstate, what arrives at the state after the step, and what leaves from the state before it. `fresh` is True,
    `[B, 1...]`, where a document begins; `shapes` are those of `saved`.
    """

    forward: Callable[..., Tensor]
    back: Callable[..., tuple[Tensor, Tensor]]
    shapes: list[torch.Size]


def step_of(
    update: Callable[..., Tensor],
    h: Tensor,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    fresh: Sequence[Tensor],
    fuse: bool,
) -> Step:
    """The graphs of a cell's `update`.

    Args:
        update: the next state from state, inputs and weights.
        h: a state `[B, ...]`.
        xs: inputs of one step `[B, ...]`.
        weights: tensors without a batch axis.
        fresh: where documents begin `[B, 1...]`, as the one element; empty where they never do.
        fuse: whether to compile them, for tensors with the strides of these.

    Raises:
        ValueError: the update uses a trained tensor that is none of its arguments, and would get no gradient.

    """
    n = 1 + len(xs) + len(weights)

    def forward(*args: Tensor) -> Tensor:
        return update(_forget(args[0], args[n:]), *args[1:n]).contiguous()

    seen: list[Tensor] = []
    given: list[Tensor] = []

    def keep(x: Tensor) -> int:
        seen.append(x.detach())
        return len(seen) - 1

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda i: given[i]):
        before, *leaves = [x.detach().contiguous().requires_grad_() for x in (h, *xs, *weights)]
        after = update(before, *leaves)

    def back(dh: Tensor, dstate: Tensor, *args: Tensor) -> tuple[Tensor, Tensor]:
        given[:] = args[: len(seen)]
        arriving = dh + dstate
        (leaving,) = torch.autograd.grad(after, before, arriving, retain_graph=True)
        return arriving, _forget(leaving, args[len(seen) :]).contiguous()

    gradients = torch.zeros_like(h), torch.zeros_like(h)
    with torch.no_grad(), torch.autograd.set_multithreading_enabled(False):
        graphs = [
            (make_fx(f)(*args), args)
            for f, args in ((forward, (h, *xs, *weights, *fresh)), (back, (*gradients, *seen, *fresh)))
        ]
        _expect_told(graphs[0][0])
        made = [_fused(graph, args) if fuse else graph for graph, args in graphs]
    return Step(made[0], made[1], [x.shape for x in seen])


def _expect_told(graph: Any) -> None:
    """Raise if the graph has a constant that takes a gradient."""
    for node in graph.graph.nodes:
        if node.op == "get_attr" and getattr(getattr(graph, node.target), "requires_grad", False):
            shape = tuple(getattr(graph, node.target).shape)
            raise ValueError(f"update uses a trained tensor of shape {shape} that is none of its arguments")


def saving(function: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What the function gives, and what it saves for its derivative, in the order of Step.shapes."""
    saved: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x.detach())
        return x

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda x: x):
        return function(), saved


def part(x: Tensor, shape: torch.Size, t: int) -> Tensor:
    """Step t of what was saved for all steps at once, where one step's has this shape; what they share is whole."""
    for axis, (all_steps, one) in enumerate(zip(x.shape, shape, strict=True)):
        if all_steps != one:
            return x.narrow(axis, t * one, one)
    return x


def _forget(h: Tensor, fresh: Sequence[Tensor]) -> Tensor:
    return torch.where(fresh[0], 0, h) if fresh else h


def _fused(graph: Any, example: Sequence[Tensor]) -> Any:
    """The graph with its element-wise operations in few kernels; as it is where TorchInductor cannot compile it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to round fp32 products; what the compiler's own imports say
            compiled: Any = torch.compile(graph, dynamic=False)
            compiled(*example)
    except Exception as error:  # no C compiler, an operation that it lacks: whatever it is, the graph itself runs
        warnings.warn(f"a recurrence's steps run unfused: {type(error).__name__}: {error}", stacklevel=2)
        return graph
    return compiled
