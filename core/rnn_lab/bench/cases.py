"""Calls of operations as models make them: the arguments are recorded while a one-layer language model runs.

So a model that was written a minute ago, by anybody, has its operations measured at the shapes it really uses.
"""

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rnn_lab.bench.calls import bind
from rnn_lab.kernels.dispatch import REFERENCE, Choice, Op
from rnn_lab.modelspec import ModelSpec
from rnn_lab.train.device import autocast


@dataclass(frozen=True)
class Case:
    """One call of an operation.

    `state` is the shape of the recurrent state that the call takes, without the batch axis; None where it takes none.
    """

    model: str
    op: Op[Any]
    args: tuple[Any, ...]
    batch: int
    seq_len: int
    dtype: torch.dtype
    device: torch.device
    state: tuple[int, ...] | None

    @property
    def identity(self) -> str:
        """The same for calls that compute the same thing on arguments of the same shapes."""
        return f"{self.op.name} {[_identity(a) for a in self.args]}"


class Source:
    """A model from which cases are taken.

    Args:
        name: what it is called in rows.
        spec: the model.
        dtype: of the autocast; fp32 for none.
        device: where it runs.

    """

    def __init__(self, name: str, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.name, self.spec, self.dtype, self.device = name, spec, dtype, device
        torch.manual_seed(0)
        self.model = self.spec.build().to(device)
        self.model.prepare()

    def cases(self, batch: int, seq_len: int, seed: int = 0) -> list[Case]:
        """The first call of every operation in a pass over random text from a random state."""
        made: dict[str, tuple[Op[Any], tuple[Any, ...]]] = {}

        def select(op: Op[Any], *args: Any) -> tuple[Any, Choice]:
            made.setdefault(op.name, (op, args))
            return op.reference, Choice(op.name, REFERENCE)

        generator = torch.Generator(self.device).manual_seed(seed)
        bytes_BT1 = torch.randint(32, 127, (batch, seq_len + 1), generator=generator, device=self.device)
        states = self._states(batch, generator)
        with torch.no_grad(), autocast(self.device, self.dtype), mock.patch.object(Op, "select", select):
            self.model.loss(bytes_BT1, states)
        return [
            Case(self.name, op, args, batch, seq_len, self.dtype, self.device, self._state_of(args, batch))
            for op, args in made.values()
        ]

    def case(self, op_name: str, batch: int, seq_len: int, seed: int = 0) -> Case:
        """`cases`' entry for one operation.

        Raises:
            LookupError: at this size the model does not call it.

        """
        for case in self.cases(batch, seq_len, seed):
            if case.op.name == op_name:
                return case
        raise LookupError(f"{self.name} does not call {op_name} with {batch} sequences of {seq_len} steps")

    def _states(self, batch: int, generator: torch.Generator) -> list[dict[str, Tensor]] | None:
        """A state that is not zero anywhere; None for one that grows with what was read."""
        cls, cfg = self.spec.layer_cls, self.spec.layer_cfg
        shapes = cls.state_shapes(cfg)
        if shapes != cls.state_shapes(cfg, 1):
            return None
        return [
            {
                key: 0.5 * torch.randn(batch, *shape, generator=generator, device=self.device)
                for key, shape in shapes.items()
            }
        ]

    def _state_of(self, args: tuple[Any, ...], batch: int) -> tuple[int, ...] | None:
        shapes = [tuple(s) for s in self.spec.layer_cls.state_shapes(self.spec.layer_cfg).values()]
        given = [tuple(t.shape) for t in tensors(args)]
        return next((s for s in shapes if s and (batch, *s) in given), None)


def tensors(args: Any) -> list[Tensor]:
    """Every tensor among nested arguments."""
    if isinstance(args, Tensor):
        return [args]
    return [t for a in args for t in tensors(a)] if isinstance(args, tuple | list) else []


def _identity(arg: Any) -> str:
    if isinstance(arg, Tensor):
        return f"{arg.dtype}{tuple(arg.shape)}"
    if isinstance(arg, tuple | list):
        return str([_identity(a) for a in arg])
    return str(getattr(arg, "fingerprint", None) or repr(arg))


def flops(source: Source, op_name: str, batch: int, seq_len: int) -> tuple[int, int]:
    """FLOPs of matrix products in the reference, forward and forward with backward; element-wise work left out.

    Counted at one sequence of 1, 2 and 4 steps; what follows for `seq_len` is exact for costs up to quadratic in it.
    """
    counts = []
    for steps in (1, 2, 4):
        case = source.case(op_name, 1, steps)
        bound = bind(case.op.reference, case.args)
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            bound.forward()
        with FlopCounterMode(display=False) as both:
            bound.forward_backward()
        counts.append((_products(forward), _products(both)))
    one, two = (batch * _quadratic([row[i] for row in counts], seq_len) for i in (0, 1))
    return one, two


def _products(counted: FlopCounterMode) -> int:
    """Without convolutions: ours are one per channel, no product of matrices, and torch counts them as if they were."""
    every = counted.get_flop_counts().get("Global", {})
    return sum(count for op, count in every.items() if "convolution" not in str(op))


def _quadratic(at_1_2_4: list[int], steps: int) -> int:
    """Value at `steps` of the parabola through three points."""
    one, two, four = at_1_2_4
    curve = ((four - two) / 2 - (two - one)) / 3
    return round(one + (two - one) * (steps - 1) + curve * (steps - 1) * (steps - 2))


def needs_cuda(case: Case) -> str | None:
    """Why a library cannot run the case, or None."""
    return None if case.device.type == "cuda" else "it needs a CUDA device"


def random(case: Case, *shape: int, seed: int) -> Tensor:
    """Normal numbers `[B, T, ...]`."""
    generator = torch.Generator(case.device).manual_seed(seed)
    return torch.randn(case.batch, case.seq_len, *shape, generator=generator, device=case.device)
