"""The layers of mamba-ssm and FLA at the sizes of ours, for `rnn-lab bench train`."""

from typing import Any

from rnn_lab.discovery.libraries import MissingLibrary, load, load_gated_delta_rule
from torch import nn


def mamba2_block(cfg: Any, index: int) -> nn.Module:
    """mamba-ssm's block with the sizes of ours; its fused path where causal-conv1d is there."""
    try:
        load("causal_conv1d")
        fused = True
    except MissingLibrary:
        fused = False
    block: nn.Module = load("mamba_ssm.modules.mamba2").Mamba2(
        cfg.dim, d_state=cfg.n_state, headdim=cfg.head_dim, expand=int(cfg.expansion), use_mem_eff_path=fused,
        layer_idx=index,
    )  # fmt: skip
    return block


def gated_deltanet_block(cfg: Any, index: int) -> nn.Module:
    """FLA's block with the sizes of ours."""
    load_gated_delta_rule()
    block: nn.Module = load("fla.layers.gated_deltanet").GatedDeltaNet(
        hidden_size=cfg.dim, expand_v=cfg.expansion, head_dim=cfg.d_key, num_heads=cfg.heads, layer_idx=index
    )
    return block
