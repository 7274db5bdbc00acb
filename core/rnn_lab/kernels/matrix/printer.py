"""Expressions over a lane's tile of a matrix as loops in CUDA C++."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rnn_lab.kernels.dialects import Dialect
from rnn_lab.kernels.expression import Node, ordered
from rnn_lab.kernels.matrix.expression import kind

_INDEX = {"": "", "r": "[r]", "c": "[c]", "cr": "[r][c]"}
_CHEAP = ("add", "sub", "mul", "neg")


@dataclass(frozen=True)
class Lane:
    """What one lane has of an axis: `rows` and `columns` (names of constants), and the functions around them.

    `has_row` and `has_column` say whether an entry exists; `across` adds over the lanes that share a row. `tiled` are
    operations that are cheaper for a whole tile at once, and the functions that overwrite a tile with their results.
    """

    dialect: Dialect
    rows: str = "RE"
    columns: str = "CE"
    has_row: str = "p.has_row(r)"
    has_column: str = "p.has_column(c)"
    across: str = "across<CL>"
    tiled: Mapping[str, str] = field(default_factory=dict)


def loops(outputs: dict[str, Node], kinds: dict[str, str], leaves: dict[str, str], lane: Lane) -> list[str]:
    """Lines that fill the arrays named by `outputs`, each of the kind in `kinds`.

    Sums over columns, and operations on a whole tile, come in turns: what a turn needs of the matrix is one loop over
    the tile, in which nothing but what later turns need is kept. Sums over rows are of this lane's rows only.

    Args:
        outputs: an expression for every array.
        kinds: the kind of every array.
        leaves: what variables are called.
        lane: the lane's share.

    """
    return list(_Printer(outputs, kinds, leaves, lane).lines())


class _Printer:
    def __init__(self, outputs: dict[str, Node], kinds: dict[str, str], leaves: dict[str, str], lane: Lane) -> None:
        self.outputs, self.kinds, self.lane = outputs, kinds, lane
        self.nodes = ordered(outputs.values())
        self.kind: dict[Node, str] = {}
        self.turn: dict[Node, int] = {}
        self.code: dict[Node, str] = {}
        self.used = Counter(a for node in self.nodes for a in node.args)
        self.used.update(outputs.values())
        for node in self.nodes:
            kind(node, self.kind)
            below = max((self.turn[a] for a in node.args), default=0)
            self.turn[node] = below + (node.op == "sum" or self._is_tiled(node))
            if node.op == "const":
                number = lane.dialect.number.format(repr(node.value))
                self.code[node] = f"({number})" if float(node.value) < 0 else number
            elif node.op == "var":
                self.code[node] = leaves[str(node.value)]

    def lines(self) -> Iterator[str]:
        last = max((self.turn[node] for node in self.nodes), default=0)
        kept = self._kept(last)
        for turn in range(last + 1):
            for node in self.nodes:
                if self.turn[node] == turn and node not in self.code and self.kind[node] != "cr" and node.op != "sum":
                    yield from self._small(node)
            yield from self._matrix(turn, kept)
            # Sums of sums along the other axis belong to the turn after their argument's, like all.
            for node in self.nodes:
                if node.op == "sum" and self.turn[node] == turn + 1 and node not in self.code:
                    yield from self._small_sum(node)
        for name, node in self.outputs.items():
            if self.kind[node] != "cr" or node in self.code:
                yield from self._each(self.kinds[name], f"{name}{_INDEX[self.kinds[name]]} = {self._ref(node)};")

    def _is_tiled(self, node: Node) -> bool:
        return node.op in self.lane.tiled and self.kind[node] == "cr"

    def _ref(self, node: Node) -> str:
        return self.code[node] + ("" if node.op == "const" else _INDEX[self.kind[node]])

    def _each(self, axes: str, body: str | list[str]) -> list[str]:
        """A loop over the lane's share of the axes."""
        lines = [body] if isinstance(body, str) else body
        for axis, count in (("c", self.lane.columns), ("r", self.lane.rows)):
            if axis in axes:
                lines = [
                    "#pragma unroll",
                    f"for (int {axis} = 0; {axis} < {count}; ++{axis}) {{",
                    *(line if line.startswith("#") else f"    {line}" for line in lines),
                    "}",
                ]
        return lines

    def _declared(self, name: str, axes: str, filled: str = "") -> str:
        sizes = "".join(f"[{n}]" for axis, n in (("r", self.lane.rows), ("c", self.lane.columns)) if axis in axes)
        return f"float {name}{sizes}{filled};"

    def _value(self, node: Node) -> str:
        return self.lane.dialect.operations[node.op].format(*(self._ref(a) for a in node.args))

    def _named(self, node: Node) -> str:
        self.code[node] = f"v{len(self.code)}"
        return self.code[node]

    def _small(self, node: Node) -> list[str]:
        """A value per row or per column, or a scalar."""
        value = self._value(node)
        name, axes = self._named(node), self.kind[node]
        return [self._declared(name, axes), *self._each(axes, f"{name}{_INDEX[axes]} = {value};")]

    def _small_sum(self, node: Node) -> Iterator[str]:
        """A sum of what is no matrix."""
        (a,) = node.args
        axes, axis = self.kind[node], str(node.value)
        value = self._ref(a)
        name = self._named(node)
        yield self._declared(name, axes, " = {}")
        held = self.lane.has_column if axis == "c" else self.lane.has_row
        yield from self._each(axes + axis, f"{name}{_INDEX[axes]} += {held} ? {value} : 0.0f;")
        if axis == "c":
            yield from self._each(axes, f"{name}{_INDEX[axes]} = {self.lane.across}({name}{_INDEX[axes]});")

    def _wanted(self, turn: int) -> list[Node]:
        """What the loop of a turn over the matrix is for: arguments of what ends it, and outputs."""
        ends = [n.args[0] for n in self._ends(turn)]
        outputs = [node for node in self.outputs.values() if self.turn[node] == turn]
        return [node for node in ends + outputs if self.kind[node] == "cr"]

    def _ends(self, turn: int) -> list[Node]:
        """Sums, and operations on a whole tile, that wait for this turn's loop."""
        return [n for n in self.nodes if self.turn[n] == turn + 1 and (n.op == "sum" or self._is_tiled(n))]

    def _kept(self, last: int) -> set[Node]:
        """Nodes of the matrix that several turns need and that are not quickly computed again."""
        first: dict[Node, int] = {}
        kept = set()

        def visit(node: Node, turn: int) -> None:
            if self.kind[node] != "cr" or node.op in ("var", "sum") or self._is_tiled(node):
                return
            if first.setdefault(node, turn) != turn and not self._cheap(node):
                kept.add(node)
            elif node not in kept:
                for a in node.args:
                    visit(a, turn)

        for turn in range(last + 1):
            for node in self._wanted(turn):
                visit(node, turn)
        return kept

    def _terms(self, node: Node) -> list[Node]:
        """What to add to a sum: each product then takes one instruction."""
        if node.op != "add" or self.used[node] > 1:
            return [node]
        return [term for a in node.args for term in self._terms(a)]

    def _cheap(self, node: Node) -> bool:
        """One product or sum of what is there already."""
        return node.op in _CHEAP and all(a.op in ("var", "const") or self.kind[a] != "cr" for a in node.args)

    def _matrix(self, turn: int, kept: set[Node]) -> Iterator[str]:
        """The loop over the tile."""
        wanted = self._wanted(turn)
        if not wanted:
            return
        ends = [n for n in self._ends(turn) if self.kind[n.args[0]] == "cr"]
        local: dict[Node, str] = {}
        body: list[str] = []
        before: list[str] = []

        def ref(node: Node) -> str:
            if node in local:
                return local[node]
            if node in self.code:
                return self._ref(node)
            value = self.lane.dialect.operations[node.op].format(*(ref(a) for a in node.args))
            if node in kept:
                before.append(self._declared(self._named(node), "cr"))
                body.append(f"{self._ref(node)} = {value};")
                return self._ref(node)
            local[node] = f"e{len(local)}"
            kind_of = self.lane.dialect.condition if node.op in ("lt", "le", "gt", "ge") else self.lane.dialect.local
            body.append(f"{kind_of}{local[node]} = {value};")
            return local[node]

        after: list[str] = []
        for node in ends:
            if self._is_tiled(node):
                value = ref(node.args[0])
                name = self._named(node)
                before.append(self._declared(name, "cr"))
                body.append(f"{name}[r][c] = {value};")
                after.append(f"{self.lane.tiled[node.op]}({name});")
                continue
            over_columns = node.value == "c"
            values = [ref(term) for term in self._terms(node.args[0])]
            name = self._named(node)
            held = self.lane.has_column if over_columns else self.lane.has_row
            index, own = ("[r][c % ACC]", "r") if over_columns else ("[c]", "c")
            if over_columns:
                before += [f"float {name}_[{self.lane.rows}][ACC] = {{}};", self._declared(name, own)]
                after += self._each(own, f"{name}[r] = {self.lane.across}(total({name}_[r]));")
                body += [f"{name}_{index} += {held} ? {value} : 0.0f;" for value in values]
            else:
                before.append(self._declared(name, own, " = {}"))
                body += [f"{name}{index} += {held} ? {value} : 0.0f;" for value in values]
        for name, node in self.outputs.items():
            if self.turn[node] == turn and self.kind[node] == "cr" and node not in self.code:
                body.append(f"{name}[r][c] = {ref(node)};")
        yield from before
        yield from self._each("cr", body)
        yield from after
