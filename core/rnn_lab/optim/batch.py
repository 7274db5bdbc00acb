"""Matrices of one shape in one batch: gradients in, steps out, and the state of each under its parameter's name."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rnn_lab.kernels.triton_support import refuses_triton
from rnn_lab.optim.projector import Drawn
from rnn_lab.optim.routing import Piece

MOST = 2**25
"""Values in one batch at most: its temporary copies stay below half a GiB."""


@dataclass(frozen=True)
class Member:
    """One piece of a parameter.

    Attributes:
        parameter: its owner.
        piece: where its matrices are.
        slot: which piece of the parameter it is: the prefix of its state's names.

    """

    parameter: nn.Parameter
    piece: Piece
    slot: int


@dataclass(frozen=True)
class Signals:
    """What one step is told, as scalars on the device.

    Attributes:
        scale: factor of the gradients.
        skipped: bool; where true the step changes nothing.
        going: 1, or 0 where the step is skipped.
        lr: rate of this step, 0 where it is skipped.

    """

    scale: Tensor
    skipped: Tensor
    going: Tensor
    lr: Tensor


class MatrixBatch:
    """Members of one shape, transposed to `[K, m, n]` with m <= n."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        piece, first = members[0].piece, members[0].parameter
        self.rows, self.columns = piece.rows, piece.columns
        self.dtype, self.device = torch.promote_types(first.dtype, torch.float32), first.device
        counts = [member.piece.count for member in members]
        self.spans = [(sum(counts[:i]), sum(counts[: i + 1])) for i in range(len(counts))]
        self.shape = (sum(counts), *piece.shape[1:])
        self.fused_apply = refuses_triton(first) is None
        """Whether one kernel reads a step and its parameter and writes the parameter."""

    def __iter__(self) -> Iterator[tuple[Member, slice]]:
        return ((member, slice(*span)) for member, span in zip(self.members, self.spans, strict=True))

    def views(self) -> Iterator[Tensor]:
        """Each member's gradients `[k, m, n]`, of any strides; zeros where there is none."""
        for member in self.members:
            grad = member.parameter.grad
            view = member.piece.view(member.parameter if grad is None else grad)
            yield torch.zeros_like(view) if grad is None else view

    def gradients(self, now: Signals, masked: bool = True) -> Tensor:
        """Unscaled gradients `[K, m, n]`, fp32 or wider; zeros where there is none and, `masked`, in a skipped step."""
        grad_Kmn = torch.cat(list(self.views())).to(self.dtype)
        # A skipped step's gradients may hold NaN, which no factor of zero takes away.
        return grad_Kmn.masked_fill_(now.skipped, 0.0) if masked else grad_Kmn

    def apply(self, step_Kmn: Tensor, now: Signals, weight_decay: float, factor: float) -> None:
        """W <- (1 - lr wd) W - lr factor step, for members with a gradient."""
        if self.fused_apply:
            from rnn_lab.kernels.updates import muon_triton as kernels

            keep, move = (1 - weight_decay * now.lr).float(), (-factor * now.lr).float()
            step_Kmn = step_Kmn.contiguous()
            for member, span in self:
                if member.parameter.grad is not None:
                    kernels.apply(member.piece.view(member.parameter.detach()), step_Kmn[span], keep, move)
            return
        step_Kmn = step_Kmn.to(self.dtype) * (-factor * now.lr).to(self.dtype)
        views, steps = [], []
        for member, span in self:
            if member.parameter.grad is not None:
                views.append(member.piece.view(member.parameter.detach()))
                steps.append(step_Kmn[span].to(member.parameter.dtype))
        if not views:
            return
        if weight_decay:
            torch._foreach_mul_(views, (1 - weight_decay * now.lr).to(views[0].dtype))
        torch._foreach_add_(views, steps)

    def states(self, tensors: dict[str, Tensor]) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
        """Each member's share of tensors `[K, ...]` as (parameter, name, view)."""
        for member, span in self:
            for name, tensor in tensors.items():
                yield member.parameter, f"{member.slot}.{name}", tensor[span]


def placed(members: list[Member]) -> tuple[list[Member], Drawn | None]:
    """Those of a batch that are in this process, and their places among all; None where all are."""
    here = [member for member in members if not member.parameter.is_meta]
    if len(here) == len(members):
        return here, None
    which, total = [], 0
    for member in members:
        places = range(total, total + member.piece.count)
        which += [] if member.parameter.is_meta else list(places)
        total = places.stop
    return here, Drawn(total, tuple(which), members[0].slot)


def batches(members: Iterable[Member]) -> list[list[Member]]:
    """Members of one shape and dtype together, no more than MOST values at a time."""
    groups: dict[object, list[list[Member]]] = {}
    for member in members:
        piece, parameter = member.piece, member.parameter
        # One that is elsewhere, on the meta device, keeps its place in the batch.
        kind = (piece.rows, piece.columns, parameter.dtype)
        lists = groups.setdefault(kind, [[]])
        taken = sum(other.piece.count for other in lists[-1])
        if lists[-1] and (taken + piece.count) * piece.rows * piece.columns > MOST:
            lists.append([])
        lists[-1].append(member)
    return [members for lists in groups.values() for members in lists]
