"""Gradient checkpointing: backward computes activations again instead of keeping them.

Kept is the residual stream before every group of blocks, and with chunks of time the state at every chunk's start; at
any time one group, or one chunk of it, has its activations. The results are those of the plain pass.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rnn_lab.blocks import Blocks, cut, cut_if, joined
from rnn_lab.layer import State
from rnn_lab.token_filter import active


@dataclass(frozen=True)
class Remat:
    """What is computed again together.

    Attributes:
        every: blocks.
        chunk: bytes of time; None: the whole sequence.

    """

    every: int
    chunk: int | None = None

    def of(self, blocks: Blocks) -> Blocks:
        """`blocks`, keeping little."""

        def run(
            which: range, stream: Tensor, y: Tensor | None, states: list[State] | None, reset: Tensor | None
        ) -> tuple[Tensor, Tensor | None, list[State]]:
            new: list[State] = []
            for first in range(0, len(which), self.every):
                group = slice(first, first + self.every)
                own = None if states is None else states[group]
                stream, y, found = self._chunks(blocks, which[group], stream, y, own, reset)
                new += found
            return stream, y, new

        return run

    def _chunks(
        self, blocks: Blocks, which: range, stream: Tensor, y: Tensor | None, states: list[State] | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, list[State]]:  # fmt: skip
        """A group of blocks, one chunk of time after the other, the states carried on."""
        T = stream.shape[1]
        ends = [*range(0, T, self.chunk or T), T]
        streams: list[Tensor] = []
        added: list[Tensor | None] = []
        held = active()
        parts = cut(stream, ends), cut_if(y, ends), cut_if(reset, ends)
        for span, part, more, own in zip(pairwise(ends), *parts, strict=True):

            def body(
                stream: Tensor, y: Tensor | None, states: list[State] | None, reset: Tensor | None,
                span: tuple[int, int] = span,
            ) -> tuple[Tensor, Tensor | None, list[State]]:  # fmt: skip
                # Backward computes this again outside of the pass that a filter was set for.
                with held.during(*span) if held else nullcontext():
                    return blocks(which, stream, y, states, reset)

            out, rest, states = checkpoint(
                body, part, more, states, own, use_reentrant=False,
                preserve_rng_state=False,  # nothing draws; and reading the generator would spoil a capture
            )  # fmt: skip
            streams.append(out)
            added.append(rest)
        assert states is not None
        return *joined(streams, added), states
