"""Gradient checkpointing: backward computes activations again instead of keeping them.

Kept is the residual stream before every group of blocks, and with chunks of time the state at every chunk's start; at
any time one group, or one chunk of it, has its activations. The results are those of the plain pass.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rnn_lab.layer import State
from rnn_lab.token_filter import active

Blocks = Callable[
    [range, Tensor, Tensor | None, list[State] | None, Tensor | None], tuple[Tensor, Tensor | None, list[State]]
]
"""LM.blocks: indices, residual stream, what is still to be added to it, states, resets."""


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
        streams: list[Tensor] = []
        added: list[Tensor] = []
        held = active()
        for start in range(0, T, self.chunk or T):
            at = slice(start, min(T, start + (self.chunk or T)))

            def body(
                stream: Tensor, y: Tensor | None, states: list[State] | None, reset: Tensor | None, at: slice = at
            ) -> tuple[Tensor, Tensor | None, list[State]]:
                # Backward computes this again outside of the pass that a filter was set for.
                with held.during(at.start, at.stop) if held else nullcontext():
                    return blocks(which, stream, y, states, reset)

            part, more, states = checkpoint(
                body,
                stream[:, at],
                None if y is None else y[:, at],
                states,
                None if reset is None else reset[:, at],
                use_reentrant=False,
                preserve_rng_state=False,  # nothing draws; and reading the generator would spoil a capture
            )
            streams.append(part)
            added += [] if more is None else [more]
        assert states is not None
        if len(streams) == 1:
            return streams[0], added[0] if added else None, states
        return torch.cat(streams, 1), torch.cat(added, 1) if added else None, states
