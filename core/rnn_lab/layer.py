"""The layer interface that every model implements, and the legend of tensor names.

Names end in their shape: `x_BTD` is `[batch, time, width]`.

    B  batch          T  time            D  model width (dim)       d  inner width (dim * expansion)
    H  heads          N  state or key size per head                 V  value size per head; vocabulary of logits
    n  side of a square matrix state     r  rank                    K  taps of a convolution's past

A state is a dict of tensors whose first axis is the batch; it goes in and comes out of every call, and
gradients flow through both.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rnn_lab.config import StrictModel
from rnn_lab.kernels.dispatch import Choice
from rnn_lab.parts import Linear, Part
from rnn_lab.spectral import prepare_together

State = dict[str, Tensor]


class LayerConfig(StrictModel):
    """Fields that every layer has; a model adds its own."""

    dim: int = Field(256, ge=1, le=2**17, description="model width D")

    def derived(self) -> dict[str, Any]:
        """What follows from the fields, for people: every public property of the configuration's own classes."""
        own = [cls for cls in reversed(type(self).__mro__) if issubclass(cls, LayerConfig)]
        names = [name for cls in own for name, value in vars(cls).items() if isinstance(value, property)]
        return {name: getattr(self, name) for name in dict.fromkeys(names) if not name.startswith("_")}


class Layer(nn.Module, ABC):
    """One layer: `[B, T, D]` in, `[B, T, D]` out, with explicit state.

    A subclass sets `Config`, declares `parts` and implements `forward`; everything else follows from those.
    """

    Config: ClassVar[type[LayerConfig]]
    lm_defaults: ClassVar[Mapping[str, Any]] = {}
    """Fields of LMConfig that this family's natural shell sets."""
    peers: ClassVar[Mapping[str, Callable[[Any, int], nn.Module]]] = {}
    """Other libraries' blocks of the same mathematics by name, made from a Config and a layer's index: bench train."""

    token_filter_exclude: ClassVar[tuple[str, ...]] = ()
    """Parts whose backward a token filter leaves whole: maps that do not take one position to one position."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.backends: dict[str, Choice] = {}
        """What ran, per operation, in the last forward, parts included: filled by kernels.dispatch."""
        for name, part in self.parts(cfg).items():
            module = part.build()
            setattr(self, name, module)
            if hasattr(module, "backends"):
                module.backends = self.backends
            if name in self.token_filter_exclude and isinstance(module, Linear):
                module.filtered = False

    @classmethod
    @abstractmethod
    def parts(cls, cfg: Any) -> dict[str, Part]:
        """Every parameter of the layer, by attribute name."""

    @abstractmethod
    def forward(
        self, x_BTD: Tensor, state: State | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over T steps.

        Args:
            x_BTD: normalised input.
            state: state to start from; zeros when None.
            reset_BT: True at t zeroes all state, the convolution's too, before step t.

        Returns:
            y_BTD in the dtype of the input's computation, and the state after the last step.

        """

    @classmethod
    @abstractmethod
    def state_shapes(cls, cfg: Any, seq_len: int = 0) -> dict[str, tuple[int, ...]]:
        """Shape of every state tensor of one sequence after `seq_len` steps, without the batch axis.

        Recurrent states do not grow; a cache of keys and values has `seq_len` rows, none at the start.
        """

    @classmethod
    def recurrence_flops(cls, cfg: Any, seq_len: int) -> int:
        """Forward FLOPs per token inside the recurrence that no part accounts for."""
        return 0

    @classmethod
    def normalises_input(cls, cfg: Any) -> bool:
        """Whether the layer takes the residual stream and returns it, norm and addition its own, not the model's."""
        return False

    @classmethod
    def diverges(cls, cfg: Any) -> str | None:
        """Why this configuration blows up in training, or None.

        A declaration of what its mathematics does, for configurations kept to reproduce a source. The contract
        holds it against what happens; it excuses nothing else.
        """
        return None

    @classmethod
    def search_space(cls, cfg: Any) -> "SearchSpace":
        """Fields that the solver may move when the user left them free."""
        return SearchSpace()

    @classmethod
    def n_params(cls, cfg: Any) -> dict[str, int]:
        """Closed-form parameter count per part."""
        return {name: part.n_params for name, part in cls.parts(cfg).items()}

    @classmethod
    def flops_per_token(cls, cfg: Any, seq_len: int) -> int:
        """Forward FLOPs per token, recurrence included: 2 per multiply-add, element-wise work left out."""
        return sum(part.flops for part in cls.parts(cfg).values()) + cls.recurrence_flops(cfg, seq_len)

    @classmethod
    def state_bytes(cls, cfg: Any, seq_len: int) -> int:
        """Bytes of fp32 state per sequence after `seq_len` steps."""
        meta = {k: torch.empty(s, device="meta") for k, s in cls.state_shapes(cfg, seq_len).items()}
        return sum(t.numel() * t.element_size() for t in meta.values())

    def init_state(self, batch: int) -> State:
        """Zero state for `batch` sequences, fp32 (fp64 in an fp64 layer), on the layer's device."""
        like = next(self.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        shapes = self.state_shapes(self.cfg)
        return {k: torch.zeros(batch, *s, dtype=dtype, device=like.device) for k, s in shapes.items()}

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """One step for generation: `forward` with T = 1."""
        y_BTD, state = self(x_BD[:, None], state)
        return y_BTD[:, 0], state

    def prepare(self) -> None:
        """Advance what changes once per optimizer step and is frozen elsewhere, such as power iterations."""
        prepare_together(self.children())


class SearchSpace(StrictModel):
    """What the sizing solver may move.

    `dim` is always searched in multiples of `dim_multiple` and depth from `depth[0]` to `depth[1]`;
    `choices` lists further fields and their values, preferred first.
    """

    dim_multiple: int = 16
    depth: tuple[int, int] = (2, 48)
    choices: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
