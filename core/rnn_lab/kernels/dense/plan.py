"""How a recurrence with resident matrices is spread over clusters, warps, registers and shared memory: pure arithmetic.

A cluster of 8 or 16 blocks holds one copy of the matrices and walks some sequences through time. Clusters do not
meet, so that those that find no room on the GPU run after the others. What a step costs is predicted by the model of
docs/performance.md, and the way that is predicted to end first is taken.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain, product

WARPS = 8
"""Of a block: each thread may have all 255 registers."""
UNITS = 4
"""Units of one sequence that a thread computes side by side: 8 bytes on the wire."""
STAGES = (4, 2, 1)
"""Steps of inputs that may be in shared memory; all but one are on their way, or the one as soon as it is read."""
ROWS = (8, 16, 24, 32, 40, 48, 64)
"""Sequences of a group: columns of the product, by 8."""
GROUPS = (1, 2, 3, 4, 5)
"""Groups that a cluster may walk in turn: one is multiplied while messages of the others travel."""
RESIDENT = {8: 15, 16: 7}
"""Clusters of each size that fit on an H100 with 132 multiprocessors at once (measured)."""
MULTIPROCESSORS = 132
SHARED = 227 * 1024
"""Bytes of shared memory that a block may have on Hopper."""
REGISTERS = 255
FIXED, OF_ITEM, OF_ITEM_BACK = 60, 22, 28
"""Registers of addresses and the like; of those of each further item, forward and backward."""
WIDE = 20
"""Numbers of a unit beyond which the assembler takes some registers more."""
WIDEST = 2048
NARROWEST = 128
LARGEST_BATCH = 1024
"""Sequences up to which all batches are asked for the ways that planning may choose."""
SPARED = 0.05
"""Share of a call's time that another kernel, which is compiled and checked too, has to save."""

CLOCK = 1755e6
TENSOR = 4.1
"""Clocks of one 16 x 8 x 16 product on one of four tensor cores."""
SHARED_RATE, FAR_RATE = 128, 43
"""Bytes per clock of a multiprocessor: from shared memory, from L2 while all read."""
SEND_RATE = {8: 17.6, 16: 20.0}
"""The same, of messages to and from the blocks of a cluster of each size."""
ONE_WAY, EPILOGUE = {8: 205, 16: 773}, 118
"""Clocks from the last word to a reader that goes on; of the element-wise part.

Rates and clocks are parameters of a fit to what 117 kernels took on an H100, 10 % in the root mean square
(docs/performance.md), not what the hardware does alone: bench.latencies measures that.
"""


@dataclass(frozen=True)
class Problem:
    """What a direction of a call computes.

    `width` is that of a part of the state, `parts` how many there are, `products` the number of products; `weights`
    counts those that are no matrices. `streamed` are the bytes that a step reads per unit of a sequence, `live` the
    numbers per unit that the element-wise part holds at once.
    """

    forward: bool
    width: int
    parts: int
    products: int
    weights: int
    streamed: int
    live: int


@dataclass(frozen=True)
class Plan:
    """A way to spread a problem.

    `cluster` blocks; `groups` of `rows` sequences. Warps are `across` groups of matrix rows by `along` parts of the
    sum; of the steps of 16 of its part, a warp has `held` in registers and `kept` in shared memory. `stages` steps of
    inputs are in shared memory.
    """

    problem: Problem
    cluster: int
    rows: int
    across: int
    stages: int
    groups: int = 1
    held: int = 0
    kept: int = 0

    @property
    def along(self) -> int:
        """Warps that share rows of the matrix and add up their parts of the sum."""
        return WARPS // self.across

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * WARPS

    @property
    def padded(self) -> int:
        """Width with the units that make all blocks equal."""
        unit = 16 * self.cluster
        return -(-self.problem.width // unit) * unit

    @property
    def units(self) -> int:
        """Units of the state that a block owns."""
        return self.padded // self.cluster

    @property
    def matrix_rows(self) -> int:
        """Rows of the product that a block computes."""
        return self.units * (self.problem.products if self.problem.forward else 1)

    @property
    def message(self) -> int:
        """Numbers per sequence that are exchanged: what the product sums over."""
        return self.padded * (1 if self.problem.forward else self.problem.products)

    @property
    def tiles(self) -> int:
        """Tiles of 16 rows of a warp."""
        return self.matrix_rows // 16 // self.across

    @property
    def steps(self) -> int:
        """Steps of 16 of a warp's sum."""
        return self.message // 16 // self.along

    @property
    def sequences(self) -> int:
        """Of a cluster."""
        return self.groups * self.rows

    @property
    def items(self) -> int:
        """Items of a block and group: UNITS units of one sequence."""
        return self.units // UNITS * self.rows

    @property
    def own(self) -> int:
        """Items of a thread and group."""
        return -(-self.items // self.threads)

    @cached_property
    def places(self) -> dict[str, int]:
        """Where everything begins in shared memory, and `end`."""
        problem, groups = self.problem, self.groups
        sizes = {
            "WIRE": groups * 2 * self.message * self.rows * 2,
            "PARTIAL": min(groups, 2) * self.partial,
            "RING": groups * self.stages * self.ring,
            "WEIGHTS": problem.weights * self.units * 4,
            "KEPT": groups * self.items * UNITS * 4 * self.between,
            "BARRIER": groups * 16,
            "MATRIX": self.kept * WARPS * self.tiles * 512,
        }
        found, at = {}, 0
        for name, size in sizes.items():
            found[name] = at
            at += -(-size // 128) * 128
        return found | {"end": at}

    @property
    def partial(self) -> int:
        """Bytes of a group's partial sums: eight columns with gaps between them, see column_of in dense.cuh.

        Several groups take turns with two such places.
        """
        return self.along * self.rows * ((self.matrix_rows + 23) // 32 * 32 + 12) * 4

    @property
    def between(self) -> int:
        """Numbers of a unit that wait from one step to the next: states; backward their adjoints too, and sums."""
        problem = self.problem
        return problem.parts if problem.forward else 2 * problem.parts + problem.weights

    @property
    def ring(self) -> int:
        """Bytes of one stage of a group's inputs."""
        return self.items * UNITS * self.problem.streamed

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return self.places["end"]

    @property
    def unrolled(self) -> int:
        """Steps of a warp whose part of the matrix is on its way to registers at once."""
        return max(1, 4 // self.tiles)

    @property
    def registers(self) -> int:
        """Registers of a thread besides those that hold the matrix, from what the assembler reported of many plans."""
        columns, problem = self.rows // 8, self.problem
        sums = 4 * self.tiles * columns * (2 if self.tiles * columns < 3 else 1)
        multiply = sums + 2 * columns + 4 * self.tiles * self.unrolled
        wide = 8 if problem.live > WIDE else 0
        of_item = OF_ITEM + 2 * (problem.parts - 1) if problem.forward else OF_ITEM_BACK + wide
        further = (self.own - 1) * of_item
        # Of many numbers not all live at once: at 31 and 39 of them the assembler was content with this.
        live = min(UNITS * problem.live + wide, 82 + 11 * problem.live // 8)
        between = 0 if self.groups == 1 or problem.products == 1 else 4 * problem.products
        return FIXED + max(multiply, live) + further + between

    @property
    def far(self) -> int:
        """Steps of a warp whose matrix is read from memory again and again."""
        return self.steps - self.held - self.kept

    @cached_property
    def microseconds(self) -> float:
        """Predicted for one step of all groups."""
        columns, steps = self.rows // 8, self.message // 16
        fragment = WARPS * self.tiles * 512
        tensor = self.matrix_rows / 16 * steps * columns / 4 * TENSOR
        near = (256 * self.across * steps * columns + self.kept * fragment) / SHARED_RATE
        sums = 2 * self.along * self.rows * self.matrix_rows * 4 / SHARED_RATE
        far = self.far * fragment / FAR_RATE
        send = self.message * self.rows * 2 / SEND_RATE[self.cluster]
        work = tensor + near + far + sums + send + EPILOGUE
        return max(work + ONE_WAY[self.cluster], self.groups * work) / CLOCK * 1e6

    def rounds(self, sequences: int, heads: int, multiprocessors: int = MULTIPROCESSORS) -> int:
        """How often the GPU is filled."""
        room = max(1, RESIDENT[self.cluster] * multiprocessors // MULTIPROCESSORS)
        return -(-heads * -(-sequences // self.sequences) // room)

    def takes(self, sequences: int, heads: int, multiprocessors: int = MULTIPROCESSORS) -> float:
        """Predicted microseconds of one step of all sequences."""
        return self.rounds(sequences, heads, multiprocessors) * self.microseconds


@lru_cache(maxsize=256)
def plans(problem: Problem) -> tuple[Plan, ...]:
    """Every cluster size and number of sequences that fits, spread best over warps, registers and shared memory."""
    found = []
    for cluster, rows, groups in product(RESIDENT, ROWS, GROUPS):
        ways = chain.from_iterable(
            _spread(Plan(problem, cluster, rows, 1, stages, groups)) for stages in STAGES if stages > 1 or groups > 2
        )
        fitting = [plan for plan in map(filled, ways) if plan is not None]
        if fitting:
            found.append(min(fitting, key=lambda plan: plan.microseconds))
    return tuple(found)


def _spread(plan: Plan) -> Iterator[Plan]:
    """With warps arranged in every way that gives whole tiles."""
    for across in (1, 2, 4, 8):
        made = replace(plan, across=across)
        if made.matrix_rows % (16 * across) == 0 and made.message % (16 * made.along) == 0:
            yield made


def filled(plan: Plan) -> Plan | None:
    """With as much of the matrix in registers and then in shared memory as there is room for; None where that lacks."""
    room = REGISTERS - plan.registers
    if room < 0:
        return None
    plan = replace(plan, held=min(plan.steps, room // (4 * plan.tiles)))
    free = SHARED - plan.shared
    if free < 0:
        return None
    return replace(plan, kept=min(plan.steps - plan.held, free // (WARPS * plan.tiles * 512)))


@lru_cache(maxsize=1024)
def choose(problem: Problem, sequences: int, heads: int, multiprocessors: int = MULTIPROCESSORS) -> Plan | None:
    """The plan that is predicted to end first; None where none fits."""
    found = plans(problem)
    return soonest(found, sequences, heads, multiprocessors) if found else None


def soonest(found: Sequence[Plan], sequences: int, heads: int, multiprocessors: int = MULTIPROCESSORS) -> Plan:
    """The one of them that is predicted to end first."""
    return min(
        found,
        key=lambda plan: (
            plan.takes(sequences, heads, multiprocessors),
            plan.cluster,
            plan.sequences,
            plan.groups,
        ),
    )


@lru_cache(maxsize=256)
def choices(problem: Problem, heads: int, multiprocessors: int = MULTIPROCESSORS) -> tuple[Plan, ...]:
    """What planning chooses from, in no order that matters.

    As few as leave no batch of a call that runs alone SPARED slower than its best.
    """
    batches = range(1, LARGEST_BATCH + 1, 8)
    best = [choose(problem, batch, heads, multiprocessors) for batch in batches]
    found = [plan for plan in dict.fromkeys(best) if plan is not None]
    took = [[plan.takes(batch, heads, multiprocessors) for plan in found] for batch in batches]

    def slowest(kept: Sequence[Plan]) -> float:
        columns = [found.index(plan) for plan in kept]
        return max(min(times[i] for i in columns) / min(times) for times in took)

    kept = found
    while len(kept) > 1:
        fewer = min(([plan for plan in kept if plan != out] for out in kept), key=slowest)
        if slowest(fewer) > 1 + SPARED:
            break
        kept = fewer
    return tuple(kept)
