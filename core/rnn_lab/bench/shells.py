"""Whole models of other libraries in our language-model shell: their block, our embedding, norms and head."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rnn_lab.bench.libraries import MissingPeer, load
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


def _mamba2(cfg: Any, index: int) -> nn.Module:
    """mamba-ssm's block with the sizes of ours; its fused path where causal-conv1d is there."""
    try:
        load("causal_conv1d")
        fused = True
    except MissingPeer:
        fused = False
    block: nn.Module = load("mamba_ssm.modules.mamba2").Mamba2(
        cfg.dim, d_state=cfg.n_state, headdim=cfg.head_dim, expand=cfg.expansion, use_mem_eff_path=fused,
        layer_idx=index,
    )  # fmt: skip
    return block


def _gated_deltanet(cfg: Any, index: int) -> nn.Module:
    """FLA's block with the sizes of ours."""
    load("fla.ops.gated_delta_rule")
    block: nn.Module = load("fla.layers.gated_deltanet").GatedDeltaNet(
        hidden_size=cfg.dim, expand_v=cfg.expansion, head_dim=cfg.d_key, num_heads=cfg.heads, layer_idx=index
    )
    return block


FOREIGN: dict[str, tuple[str, Callable[[Any, int], nn.Module]]] = {
    "mamba2": ("mamba-ssm Mamba2", _mamba2),
    "gdn": ("fla GatedDeltaNet", _gated_deltanet),
}
"""By the model of ours that it stands beside: name and block."""


def foreign_model(model: LM, name: str) -> LM:
    """`model` with every layer replaced by the block of the library that FOREIGN names for `name`.

    Raises:
        MissingPeer: the library cannot be used here.

    """
    device = model.embedding.weight.device
    for index in range(len(model.layers)):
        model.layers[index] = ForeignLayer(model.layer_cfg, FOREIGN[name][1](model.layer_cfg, index)).to(device)
    return model
