"""Whole models of other libraries in our language-model shell: their block, our embedding, norms and head."""

from typing import Any

from torch import Tensor, nn

from rnn_lab.layer import Layer, State
from rnn_lab.lm import LM
from rnn_lab.parts import Part


class ForeignLayer(Layer):
    """A block that maps `[B, T, D]` to `[B, T, D]`, or to a tuple that begins with it, from a state of zeros."""

    def __init__(self, cfg: Any, block: nn.Module) -> None:
        super().__init__(cfg)
        self.block = block

    @classmethod
    def parts(cls, cfg: Any) -> dict[str, Part]:
        """None of ours."""
        return {}

    @classmethod
    def state_shapes(cls, cfg: Any, seq_len: int = 0) -> dict[str, tuple[int, ...]]:
        """None that goes in or out."""
        return {}

    def forward(
        self, x_BTD: Tensor, state: State | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See Layer.forward."""
        y = self.block(x_BTD)
        return (y if isinstance(y, Tensor) else y[0]), {}


def foreign_model(model: LM, name: str) -> LM:
    """`model` with every layer replaced by the block that its `peers` know as `name`.

    Raises:
        MissingLibrary: the library cannot be used here.

    """
    make, device = model.layer_cls.peers[name], model.embedding.weight.device
    for index in range(len(model.layers)):
        model.layers[index] = ForeignLayer(model.layer_cfg, make(model.layer_cfg, index)).to(device)
    return model
