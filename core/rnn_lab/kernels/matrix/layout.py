"""How a matrix is spread over lanes, warps and blocks, and what lies where in shared memory."""

from dataclasses import dataclass
from functools import cached_property

import torch

from rnn_lab.kernels.expression import Node, var
from rnn_lab.kernels.matrix.source import Program

TYPES = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "fp16"}

REGISTERS = 64
"""Most registers of a lane for the states of a segment."""


@dataclass(frozen=True)
class Tiling:
    """How a matrix is spread: a lane has `rows` by `columns` entries, `across` lanes share rows.

    A block has `warps`, `split` blocks share a matrix. Inputs are staged for `steps` steps at a time; a mark is kept
    every `segment` of them, whose states backward has in registers. The compiler has to leave registers for `resident`
    blocks on a multiprocessor, where that costs no more than a few spilled numbers (`Form.resident`).
    """

    rows: int
    columns: int
    across: int
    warps: int
    split: int
    steps: int
    segment: int
    resident: int = 1

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return self.warps * (32 // self.across) * self.rows

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    @property
    def mark(self) -> int:
        """Elements of all marks of one matrix at one step, padding included."""
        return self.split * self.threads * self.rows * self.columns


@dataclass(frozen=True)
class Form:
    """What a kernel is printed for.

    `types` and `units` are those of `Program.uses` and, in backward, of dy: dtype, and bytes of an asynchronous copy
    (0 where rows are not aligned). `output` is the dtype of y; `even` says that there are only whole tiles; `exact`
    that all streams are fp32, so that errors of 1e-7 in a small number matter, and marks are fp32 too.
    """

    forward: bool
    tiling: Tiling
    types: tuple[torch.dtype, ...]
    units: tuple[int, ...]
    output: torch.dtype
    even: bool
    reset: bool
    marks: bool
    exact: bool

    @property
    def resident(self) -> int:
        """Blocks for which a multiprocessor has to have registers."""
        return self.tiling.resident if self.even and not self.exact else 1


class Layout:
    """Offsets into shared memory, in bytes, and what else the printed parts share."""

    def __init__(self, program: Program, form: Form) -> None:
        self.program, self.form, self.tiling = program, form, form.tiling
        t = form.tiling
        self.prepare_lanes = min(32, max(4, power_of_two(-(-t.threads // t.steps))))
        self.widths = {"r": t.block_rows, "c": program.columns, "": 1}
        """Numbers of a step that a block reads of a stream."""
        self.pitch = {"r": t.block_rows, "c": t.across * t.columns + 4, "": 1}
        """Floats from one step to the next of prepared values."""
        self.raw: dict[str, tuple[int, int]] = {}
        size = 0
        for name, dtype in zip(self.streams, form.types, strict=True):
            if name[0] != "w":
                pitch = -(-self.width(name) * dtype.itemsize // 16) * 16
                self.raw[name] = (size, pitch)
                size += t.steps * pitch
        self.raw_bytes = size
        self.bytes = 2 * size
        self.at: dict[str, int] = {}
        for name in self.weights:
            self._take(name, self.width(name))
        for name in self.values:
            self._take(name, t.steps * self.pitch[axes(name)])
        if not form.forward:
            self._take_backward()

    def _take(self, name: str, floats: int) -> None:
        self.at[name] = self.bytes
        self.bytes += -(-4 * floats // 16) * 16

    def _take_backward(self) -> None:
        """Sums of the replay; gradients by prepared values; those by weights of every step, and added up."""
        t = self.tiling
        for name in self.program.adjoint.sums:
            self._take(name, t.steps * (self.pitch["r"] if axes(name) == "r" else t.threads))
        copies = {"r": 1, "c": t.warps, "": t.warps * 32 // t.across}
        for name in self.program.hoisted.prepared:
            self._take(f"g{name[1:]}", copies[axes(name)] * t.steps * self.pitch[axes(name)])
        for name in self.weights:
            self._take(f"d{name}", t.steps * self.width(name))
            self._take(f"a{name}", self.width(name))

    @cached_property
    def streams(self) -> list[str]:
        """Uses, and in backward `y.r`, from which dy comes."""
        return self.program.uses if self.form.forward else [*self.program.uses, "y.r"]

    @property
    def weights(self) -> list[str]:
        """Uses without a time axis."""
        return [name for name in self.program.uses if name[0] == "w"]

    @cached_property
    def values(self) -> dict[str, Node]:
        """Prepared values, dy among them in backward."""
        return self.program.hoisted.prepared | ({} if self.form.forward else {"dy.r": var("y.r")})

    def width(self, name: str) -> int:
        """Numbers of a step that a block reads of a stream or weight."""
        return self.widths[axes(name)]

    def floats(self, name: str) -> str:
        """Where a value begins."""
        return f"reinterpret_cast<float*>(shared + {self.at[name]})"

    def read(self, name: str, step: str, index: str) -> str:
        """One number of a stream or weight."""
        if name[0] == "w":
            return f"{self.floats(name)}[{index}]"
        offset, pitch = self.raw[name]
        dtype = self.form.types[self.streams.index(name)]
        return f"staged<{TYPES[dtype]}, {pitch}>(raw + {offset}, {step}, {index})"


def axes(name: str) -> str:
    """The kind of a variable."""
    return name.rpartition(".")[2]


def code(name: str) -> str:
    """A variable as C++ calls it."""
    return name.replace(".", "_")


def power_of_two(n: int) -> int:
    """The least that is no less than n."""
    return 1 << (n - 1).bit_length()
