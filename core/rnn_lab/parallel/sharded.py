"""FSDP2: every rank keeps a share of every block, and gathers a block when a pass comes to it.

Parameters are DTensors, cut along their first axis. An optimizer that treats each value alone (`elementwise`) works on
the local cuts, plain tensors over the same memory. Any other needs whole tensors: each parameter then has an owner, the
rank that gathers its gradient, updates a whole copy by the optimizer as it is, and hands the cuts out; state is with
the owner, so that ranks share state and work.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from rnn_lab.config import OptimizerSection
from rnn_lab.errors import ConfigError
from rnn_lab.layer import Layer
from rnn_lab.lm import LM, preparable
from rnn_lab.parallel.sharing import Factory, Pass, Several, packed
from rnn_lab.parallel.world import World
from rnn_lab.spectral import prepare_together

T = TypeVar("T")


class Sharded(Several):
    """See the module docstring.

    Args:
        model: whole, on any device; it is cut block by block, so that a GPU never holds more than one whole block.
        world: the ranks.
        device: where the cuts go.

    """

    mode = "fsdp"
    whole = False
    uncapturable = "FSDP2 allocates and frees parameters around every block, which a graph cannot hold"

    def __init__(self, model: LM, world: World, device: torch.device) -> None:
        super().__init__(model, world)
        self.device = device
        self.mesh = init_device_mesh(device.type, (world.size,))
        scalars = {p for p in model.parameters() if p.dim() == 0}
        for p in scalars:
            p.data = p.data.to(device)
        self.blocks = [*model.layers, *([] if model.heads is None else _layers(model.heads))]
        self._scalars = scalars
        self._order: list[Tensor] = []
        self.owned: Owners | None = None

    def optimizer(self, factory: Factory, section: OptimizerSection) -> torch.optim.Optimizer:
        """See Sharing. Cuts the model, which an optimizer that needs whole tensors is made before."""
        if getattr(factory, "elementwise", False):
            self._shard()
            made = factory(nn.ParameterList(self.parameters), section)
            of_cut = {id(cut): p for cut, p in zip(self._cuts, self.model.parameters(), strict=True)}
            self._order = [of_cut[id(p)] for p in _grouped(made)]
            return made
        self.owned = Owners(self.model, self.world, self.device)
        found = factory(self.owned.model, section)
        if hasattr(found, "eval"):
            raise ConfigError(
                f"optimizer.name = {section.name} averages whole weights, which parallel.mode = fsdp cuts: use ddp, or "
                "declare its factory `elementwise` if it treats each value alone"
            )
        self._order = _grouped(found)
        self._shard()
        return found

    def _shard(self) -> None:
        options: dict[str, Any] = {
            "mesh": self.mesh, "reshard_after_forward": True, "ignored_params": self._scalars,
        }  # fmt: skip
        for block in self.blocks:
            fully_shard(block, **options)
        self._root = Pass(self.model)
        fully_shard(self._root, **options)
        for buffer_owner in self.model.modules():
            for name, buffer in buffer_owner._buffers.items():
                if buffer is not None:
                    buffer_owner._buffers[name] = buffer.to(self.device)
        self._cuts = [nn.Parameter(_local(p), requires_grad=p.requires_grad) for p in self.model.parameters()]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """See Sharing."""
        return self._cuts

    @property
    def updated(self) -> list[nn.Parameter]:
        """See Sharing."""
        return self._cuts if self.owned is None else self.owned.mine

    def prepare(self) -> None:
        """See Sharing: block by block, each whole for as long as its power iterations take."""
        for block in self.blocks:
            modules = preparable(block)
            if any(callable(getattr(module, "prepare", None)) for module in modules):
                with _whole(block):
                    prepare_together(modules)

    def forward(self, body: Callable[[], T]) -> T:
        """See Sharing."""
        found: T = self._root(body)
        return found

    def reduced(self, loss: Tensor, figures: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """See Sharing: loss, figures and squares of the local cuts in one reduction."""
        for cut, p in zip(self._cuts, self.model.parameters(), strict=True):
            if p.grad is not None and p in self._scalars:
                self.world.summed(p.grad).div_(self.world.size)
            cut.grad = None if p.grad is None else _local(p.grad)
        squares = self._norm().double().square() if any(p.grad is not None for p in self._cuts) else loss.new_zeros(())
        alone = [p.grad for p in self._cuts if p.dim() == 0 and p.grad is not None]
        if alone and not self.world.main:  # every rank has these, and one counts them
            squares = squares - torch.nn.utils.get_total_norm(alone).double().square()
        sums = self.world.summed(packed([squares, loss], figures))
        means = sums[1:] / self.world.size
        return means[0], sums[0].clamp(min=0).sqrt().to(loss.dtype), None if figures is None else means[1:]

    @contextmanager
    def _exchanged(self, owned: "Owners") -> Iterator[None]:
        owned.gather(self._cuts)
        yield
        owned.scatter(self._cuts)

    def updating(self) -> AbstractContextManager[object]:
        """See Sharing."""
        return nullcontext() if self.owned is None else self._exchanged(self.owned)

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """See Sharing."""
        optimizer.zero_grad(set_to_none=True)
        for p in (*self.model.parameters(), *self._cuts):
            p.grad = None

    def over_shards(self, t: Tensor) -> Tensor:
        """See Sharing."""
        return self.world.summed(t)

    def over_owners(self, figures: T) -> list[T]:
        """See Sharing."""
        return [figures] if self.owned is None else self.world.everyone(figures)

    def loaded(self) -> None:
        """See Sharing."""
        if self.owned is not None:
            self.owned.refresh(self._cuts)

    def tensors(
        self, optimizer: torch.optim.Optimizer, carry: dict[str, Tensor]
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """See Sharing: cuts of state as DTensors like those of their parameters."""
        groups, values = super().tensors(optimizer, carry)
        if self.owned is None:
            groups["optimizer"] = {name: self._as_cut(name, t) for name, t in groups["optimizer"].items()}
            return groups, values
        waiting: list[Any] = []
        for own, of_rank in self.world.everyone((values["state"], values["groups"][0].get("waiting", []))):
            values["state"] |= own
            waiting += of_rank
        if waiting:
            values["groups"][0]["waiting"] = sorted(waiting)
        return groups, values

    def _as_cut(self, name: str, t: Tensor) -> Tensor:
        i = int(name.partition(".")[0])
        p = self._order[i]
        if not isinstance(p, DTensor) or t.shape != _local(p).shape:
            return t
        return DTensor.from_local(
            t, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
        )  # fmt: skip

    def state_place(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """See Several."""
        p = self._order[int(name.partition(".")[0])]
        if self.owned is not None:
            return None if p.is_meta else torch.empty(size, dtype=dtype, device=self.device)
        if isinstance(p, DTensor) and size == p.shape:
            return self._as_cut(name, torch.empty(_local(p).shape, dtype=dtype, device=self.device))
        return torch.empty(size, dtype=dtype)


class Owners:
    """Who has which parameter whole: the largest first, each to the rank that has least.

    Args:
        model: before it is cut.
        world: the ranks.
        device: of the whole copies.

    Attributes:
        model: a copy of the model for an optimizer to be made over; a parameter of another rank is on the meta device.
        owner: rank of each parameter, in the model's order.

    Raises:
        ConfigError: there are fewer parameters than ranks.

    """

    def __init__(self, model: LM, world: World, device: torch.device) -> None:
        self.world, parameters = world, list(model.parameters())
        if len(parameters) < world.size:
            raise ConfigError(f"{len(parameters)} parameters for {world.size} ranks: one of them would own none")
        self.owner = owners([p.numel() for p in parameters], world.size)
        here = [
            nn.Parameter(p.detach().to(device if who == world.rank else "meta", copy=True), p.requires_grad)
            for p, who in zip(parameters, self.owner, strict=True)
        ]
        self.whole = here
        self.mine = [p for p in here if not p.is_meta]
        self.model = copy.deepcopy(model, {id(p): own for p, own in zip(parameters, here, strict=True)})

    def gather(self, cuts: list[nn.Parameter]) -> None:
        """Gradients of all cuts to the owners."""
        for cut, whole, who in zip(cuts, self.whole, self.owner, strict=True):
            if cut.grad is not None:
                whole_grad = self._gathered(cut.grad, whole.shape, who)
                if whole_grad is not None:
                    whole.grad = whole_grad

    def refresh(self, cuts: list[nn.Parameter]) -> None:
        """The owners' copies from cuts that were set anew."""
        with torch.no_grad():
            for cut, whole, who in zip(cuts, self.whole, self.owner, strict=True):
                value = self._gathered(cut.detach(), whole.shape, who)
                if value is not None:
                    whole.copy_(value)

    def _gathered(self, cut: Tensor, shape: torch.Size, who: int) -> Tensor | None:
        """The whole tensor on its owner, None elsewhere."""
        mine = who == self.world.rank
        if not shape:
            return cut.clone() if mine else None
        part = self._room(cut, shape)
        part[: cut.shape[0]] = cut
        parts = [torch.empty_like(part) for _ in range(self.world.size)] if mine else None
        dist.gather(part, parts, dst=who)
        return None if parts is None else torch.cat(parts)[: shape[0]]

    @torch.no_grad()
    def scatter(self, cuts: list[nn.Parameter]) -> None:
        """The cuts from the owners' copies."""
        for cut, whole, who in zip(cuts, self.whole, self.owner, strict=True):
            if not whole.shape:
                value = torch.empty_like(cut) if whole.is_meta else whole.detach().clone()
                dist.broadcast(value, src=who)
                cut.copy_(value)
                continue
            part = self._room(cut, whole.shape)
            parts = None
            if who == self.world.rank:
                padded = part.new_zeros(part.shape[0] * self.world.size, *part.shape[1:])
                padded[: whole.shape[0]] = whole
                parts = list(torch.split(padded, part.shape[0]))
            dist.scatter(part, parts, src=who)
            cut.copy_(part[: cut.shape[0]])

    def _room(self, cut: Tensor, shape: torch.Size) -> Tensor:
        """Zeros of the largest cut's size: collectives want equal ones, and the last ranks' are smaller or empty."""
        return torch.zeros(-(-shape[0] // self.world.size), *shape[1:], dtype=cut.dtype, device=cut.device)


def owners(sizes: list[int], ranks: int) -> list[int]:
    """Rank of each of some tensors by size: the largest first, each to the rank that has least."""
    held, found = [0] * ranks, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        found[i] = min(range(ranks), key=lambda r: (held[r], r))
        held[found[i]] += max(1, sizes[i])
    return found


@contextmanager
def _whole(block: nn.Module) -> Iterator[None]:
    """A block whole."""
    assert isinstance(block, FSDPModule)
    block.unshard()
    try:
        yield
    finally:
        block.reshard()


def _layers(heads: nn.Module) -> list[nn.Module]:
    """Layers within the heads of multi-token prediction."""
    return [module for module in heads.modules() if isinstance(module, Layer)]


def _grouped(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters in the order in which a saved state counts them."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _local(t: Tensor) -> Tensor:
    """The cut of this rank, over the same memory."""
    here = t.detach()
    return here.to_local() if isinstance(here, DTensor) else here
