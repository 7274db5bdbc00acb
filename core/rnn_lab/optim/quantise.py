"""Blocks of values as 8-bit codes with one scale each: what 8-bit Muon (arXiv 2509.23106) keeps of its momentum.

`linear` codes are int8 in equal steps of absmax / 127. `dynamic` codes index the 256-entry map of arXiv 2110.02861,
fine near zero, as AdamW's moments need. A block of zeros has scale 1, so that it comes back as zeros.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["linear", "dynamic", "dynamic_unsigned"]
MIN_NUMEL = 4096
"""Smaller tensors stay as they are."""


@dataclass(frozen=True)
class Blockwise:
    """Codec of tensors `[K, ...]`: each of the K is cut into blocks by itself, the last one padded with zeros.

    Attributes:
        block: values per block.
        kind: how codes are spaced.
        stochastic: linear: round up or down at random, right on average. A run saves torch's generator.

    """

    block: int = 256
    kind: Kind = "linear"
    stochastic: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of codes."""
        return torch.int8 if self.kind == "linear" else torch.uint8

    def blocks(self, numel: int) -> int:
        """Blocks of `numel` values."""
        return -(-numel // self.block)

    def nbytes(self, numel: int) -> int:
        """Bytes of codes and scales of `numel` values."""
        return self.blocks(numel) * (self.block + 4)

    def zeros(self, count: int, numel: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Codes `[count, blocks * block]` and scales `[count, blocks]` of zeros."""
        n = self.blocks(numel)
        codes = torch.full((count, n * self.block), self._zero_code(), dtype=self.dtype, device=device)
        return codes, torch.ones(count, n, device=device)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and fp32 scales of fp32 values `[K, ...]`."""
        flat = x.float().flatten(1)
        padding = -flat.shape[1] % self.block
        flat = torch.nn.functional.pad(flat, (0, padding)) if padding else flat
        x_Knb = flat.view(flat.shape[0], -1, self.block)
        top = x_Knb.abs().amax(-1)
        scale = top / 127 if self.kind == "linear" else top
        scale = scale.masked_fill(top == 0, 1.0)
        ratio = x_Knb / scale.unsqueeze(-1)
        if self.kind == "linear":
            whole = ratio.add_(torch.rand_like(ratio)).floor_() if self.stochastic else ratio.round_()
            codes = whole.clamp_(-127, 127).to(torch.int8)
        else:
            codes = torch.bucketize(ratio, _midpoints(self.kind, x.device), out_int32=True).to(torch.uint8)
        return codes.flatten(1), scale

    def decode(self, codes: Tensor, scale: Tensor, shape: tuple[int, ...]) -> Tensor:
        """fp32 values of `shape` `[K, ...]`."""
        codes_Knb = codes.reshape(codes.shape[0], -1, self.block)
        values = codes_Knb.float() if self.kind == "linear" else _map(self.kind, codes.device)[codes_Knb.int()]
        flat = (values * scale.unsqueeze(-1)).flatten(1)
        numel = 1
        for size in shape[1:]:
            numel *= size
        return flat[:, :numel].reshape(shape)

    def relative_error(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Relative error of what each of the K keeps, estimated from linear codes alone.

        Rounding is off by up to half a step and uniform within it, so by scale² / 12 in the mean square; values that
        are all zero have no error.
        """
        codes_Knb = codes.reshape(codes.shape[0], -1, self.block).float()
        if self.kind != "linear":
            raise ValueError(f"the error of {self.kind} codes does not follow from the codes")
        error = (scale.square() * self.block / (6 if self.stochastic else 12)).sum(-1)
        power = (scale.unsqueeze(-1).square() * codes_Knb.square()).sum((-2, -1))
        return torch.where(power > 0, (error / power.clamp(min=1e-38)).sqrt(), 0.0)

    def _zero_code(self) -> int:
        return 0 if self.kind == "linear" else int((_values(self.kind) == 0).nonzero().item())


@cache
def _values(kind: str) -> Tensor:
    """The dynamic map in ascending order, on the CPU.

    A code has a sign (unless unsigned), then as many zeros as its decimal exponent, an indicator bit, and a linear
    fraction in what bits are left: 7 exponents for 8 bits.
    """
    signed, found = kind == "dynamic", [0.0, 1.0]
    for i in range(7):
        steps = 2**i + 1 if signed else 2 ** (i + 1) + 1
        edges = torch.linspace(0.1, 1, steps, dtype=torch.float64)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)
        found += means.tolist() + ([-m for m in means.tolist()] if signed else [])
    assert len(found) == 256
    return torch.tensor(sorted(found), dtype=torch.float64).float()


@cache
def _map(kind: str, device: torch.device) -> Tensor:
    return _values(kind).to(device)


@cache
def _midpoints(kind: str, device: torch.device) -> Tensor:
    values = _values(kind)
    return ((values[1:] + values[:-1]) / 2).to(device)
