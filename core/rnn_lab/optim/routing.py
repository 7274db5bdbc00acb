"""Which rule updates which parameter, by what the model's parts declare.

Matrices that act on vectors inside a layer, and those only, may be orthogonalised: parts name them (`Part.matrices`).
For a layer whose parts say nothing it is the weights of its linear maps. Embedding, head, norms, biases, decays,
convolutions and whatever lies outside the layers belong to AdamW. A shape decides nothing: with 256 bytes a matrix of
256 rows is no sign of an embedding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rnn_lab.errors import PluginError


@dataclass(frozen=True)
class Piece:
    """`count` equal matrices within a parameter: the rows from `start` of one with two axes, or all of one with three.

    Attributes:
        start: first row.
        count: number of matrices.
        rows, columns: of each.

    """

    start: int
    count: int
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """`[count, m, n]` with m <= n, transposed if tall."""
        return self.count, min(self.rows, self.columns), max(self.rows, self.columns)

    def view(self, t: Tensor) -> Tensor:
        """The matrices of a tensor in the parameter's shape as `[count, m, n]`, sharing its memory."""
        found = t if t.dim() == 3 else t[self.start : self.start + self.rows].unsqueeze(0)
        return found.mT if self.rows > self.columns else found


@dataclass(frozen=True)
class Route:
    """What becomes of one parameter.

    Attributes:
        name: in the model.
        shape: of the parameter.
        pieces: its matrices, each orthogonalised by itself; none for AdamW.
        reason: why this rule.

    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    reason: str

    @property
    def numel(self) -> int:
        """Number of values."""
        n = 1
        for size in self.shape:
            n *= size
        return n


def routes(model: nn.Module, heads: bool = False) -> dict[str, Route]:
    """A route for every parameter that takes gradients, by name.

    Args:
        model: on any device, meta included.
        heads: whether a parameter of three axes counts as one matrix per entry of the first.

    Raises:
        PluginError: a part declares matrices that its parameter does not hold.

    """
    declared: dict[str, tuple[int, ...]] = {}
    undeclared: set[str] = set()
    for i, layer in enumerate(getattr(model, "layers", ())):
        _declarations(f"layers.{i}", layer, declared, undeclared)
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = tuple(parameter.shape)
        inside = name in undeclared
        if name in declared or inside:
            pieces, reason = _pieces(name, shape, declared.get(name, ()), heads)
            found[name] = Route(name, shape, pieces, "a linear map's weight" if inside and pieces else reason)
        else:
            reason = "no matrix product" if name.startswith("layers.") else "outside the layers"
            found[name] = Route(name, shape, (), reason)
    return found


def _declarations(prefix: str, layer: nn.Module, declared: dict[str, tuple[int, ...]], undeclared: set[str]) -> None:
    """Names of matrices with heights of their stacks, and of weights that the default rule takes."""
    of_layer = getattr(type(layer), "parts", None)
    parts: dict[str, Any] = of_layer(layer.cfg) if of_layer is not None and hasattr(layer, "cfg") else {}
    for attribute, part in parts.items():
        matrices = getattr(part, "matrices", None)
        if matrices is None:
            module = getattr(layer, attribute)
            undeclared |= _linear_weights(f"{prefix}.{attribute}", module)
            continue
        for suffix, stacked in matrices.items():
            declared[".".join(filter(None, (prefix, attribute, suffix)))] = stacked
    if not parts:
        undeclared |= _linear_weights(prefix, layer)


def _linear_weights(prefix: str, module: object) -> set[str]:
    if not isinstance(module, nn.Module):
        return set()
    return {
        ".".join(filter(None, (prefix, name, "weight")))
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear)
    }


def _pieces(name: str, shape: tuple[int, ...], stacked: tuple[int, ...], heads: bool) -> tuple[tuple[Piece, ...], str]:
    """The matrices of a declared parameter, and why."""
    if len(shape) == 3:
        if not heads:
            return (), "a matrix per head: optimizer.muon_heads is off"
        return (Piece(0, shape[0], shape[1], shape[2]),), "a matrix per head"
    if len(shape) != 2 or (stacked and sum(stacked) != shape[0]):
        raise PluginError(
            f"{name}: its part declares a matrix with stacked heights {stacked or '()'}, and its shape is {shape}: "
            "`matrices` must name parameters of two axes (or three), and the heights must sum to their rows"
        )
    heights = stacked or (shape[0],)
    starts = [sum(heights[:i]) for i in range(len(heights))]
    reason = "a matrix" if len(heights) == 1 else f"{len(heights)} stacked matrices"
    return tuple(Piece(start, 1, rows, shape[1]) for start, rows in zip(starts, heights, strict=True)), reason


def routing_table(rows: Iterable[tuple[Route, str, str]]) -> list[tuple[str, str, int, str, str]]:
    """Rows of (name, shape, parameters, rule, reason) for people: what all layers have in common is one row.

    Args:
        rows: each route with the name of its rule and the reason for it.

    """
    merged: dict[tuple[str, tuple[int, ...], str, str], list[Route]] = {}
    for route, rule, reason in rows:
        section, *rest = route.name.split(".")
        many = section in ("layers", "norms") and len(rest) > 1
        shown = ".".join([section, "*", *rest[1:]]) if many else route.name
        merged.setdefault((shown, route.shape, rule, reason), []).append(route)
    return [
        (name, _shape(shape, len(same)), sum(route.numel for route in same), rule, reason)
        for (name, shape, rule, reason), same in merged.items()
    ]


def _shape(shape: Sequence[int], times: int) -> str:
    text = " x ".join(map(str, shape)) or "scalar"
    return text if times == 1 else f"{times} of {text}"
