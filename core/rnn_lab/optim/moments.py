"""Where a batch of matrices keeps its momentum: as it is, or as 8-bit codes."""

from typing import Protocol

import torch
from torch import Tensor

from rnn_lab.optim.quantise import MIN_NUMEL, Blockwise

Shape = tuple[int, int, int]


class Momentum(Protocol):
    """Momentum `[K, m, n]` of K matrices."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by kind, the matrices first."""

    def read(self) -> Tensor:
        """The values; those of a plain store are the store itself."""

    def write(self, value: Tensor, skipped: Tensor | None) -> None:
        """Keep new values, but for the old ones where `skipped` is true."""

    def errors(self) -> Tensor | None:
        """Relative error of each matrix's values by being stored, or None where it is not known or none."""


class PlainMomentum:
    """Values as they are; `read` gives the memory that holds them, so that updates in place need no `write`."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.value = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """See Momentum."""
        return {"momentum": self.value}

    def read(self) -> Tensor:
        """See Momentum."""
        return self.value

    def write(self, value: Tensor, skipped: Tensor | None) -> None:
        """See Momentum."""
        if value is not self.value:
            self.value.copy_(value if skipped is None else torch.where(skipped, self.value, value))

    def errors(self) -> Tensor | None:
        """See Momentum."""
        return None


class CodedMomentum:
    """Codes and scales; a step reads what the codes say and rounds what it leaves."""

    def __init__(self, shape: Shape, codec: Blockwise, device: torch.device) -> None:
        self.shape, self.codec = shape, codec
        self.codes, self.scales = codec.zeros(shape[0], shape[1] * shape[2], device)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """See Momentum."""
        return {"codes": self.codes, "scales": self.scales}

    def read(self) -> Tensor:
        """See Momentum."""
        return self.codec.decode(self.codes, self.scales, self.shape)

    def write(self, value: Tensor, skipped: Tensor | None) -> None:
        """See Momentum."""
        codes, scales = self.codec.encode(value)
        for old, new in ((self.codes, codes), (self.scales, scales)):
            old.copy_(new if skipped is None else torch.where(skipped, old, new))

    def errors(self) -> Tensor | None:
        """See Momentum."""
        return self.codec.relative_error(self.codes, self.scales) if self.codec.kind == "linear" else None


def momentum(shape: Shape, codec: Blockwise | None, dtype: torch.dtype, device: torch.device) -> Momentum:
    """Zero momentum: in codes where there is a codec and a matrix is not too small for it."""
    if codec is None or shape[1] * shape[2] < MIN_NUMEL:
        return PlainMomentum(shape, dtype, device)
    return CodedMomentum(shape, codec, device)
