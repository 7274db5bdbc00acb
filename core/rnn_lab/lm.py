"""The one language model: bytes -> embedding -> [norm, layer, +] x depth -> norm -> logits.

The embedding is tied to the head. The residual stream stays in fp32 under autocast. Parameters:
256 D + depth (layer + n) + n with n = D for `rms` and 2 D for `layer` norm. A layer that normalises its own input
takes the residual stream itself and gives it back with what it adds: 256 D + depth layer + n.

`shell = "e74"` is what E74's seed runs had around their layers, with the same count as `rms`: norms of eps 1e-6 that
also take away the mean before a layer (LayerNorm without bias) and not at the end; an embedding that enters the
residual stream twice; in_proj and out_proj drawn from N(0, 0.02).
"""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rnn_lab.blocks import Blocks
from rnn_lab.config import StrictModel
from rnn_lab.init import fill, normal
from rnn_lab.kernels.dispatch import Choice
from rnn_lab.kernels.fused.cross_entropy import CROSS_ENTROPY
from rnn_lab.kernels.fused.residual_norm import RESIDUAL_NORM, compute_dtype
from rnn_lab.layer import Layer, State
from rnn_lab.remat import Remat
from rnn_lab.spectral import prepare_together
from rnn_lab.token_filter import linear
from rnn_lab.wavefront import Wavefront

VOCAB = 256
"""Every byte is a token."""
E74_EPS = 1e-6


class LMConfig(StrictModel):
    """Fields of the model around the layers."""

    depth: int = Field(6, ge=1, le=1024, description="number of layers")
    norm: Literal["rms", "layer"] = Field("rms", description="RMSNorm, or LayerNorm with bias (January generation)")
    norm_eps: float = Field(1e-5, gt=0, le=1, description="eps of every norm; 1e-6 in shell e74")
    shell: Literal["common", "e74"] = Field("common", description="e74: the one that E74's seed runs had")

    @model_validator(mode="after")
    def _fits(self) -> "LMConfig":
        if self.shell == "e74" and self.norm != "rms":
            raise ValueError(f"shell e74 has norms of its own, with the count of rms; it takes no norm = {self.norm}")
        return self


class LM(nn.Module):
    """Byte language model over `depth` layers of one class.

    Args:
        layer_cls: the layer.
        layer_cfg: its configuration; `layer_cfg.dim` is the width of the whole model.
        cfg: what surrounds the layers.

    """

    def __init__(self, layer_cls: type[Layer], layer_cfg: Any, cfg: LMConfig) -> None:
        super().__init__()
        self.cfg, self.layer_cls, self.layer_cfg = cfg, layer_cls, layer_cfg
        self.heads: nn.Module | None = None
        """What training adds to predict further ahead: train.heads. No part of the model's size, nor of its use."""
        self.walk: Remat | Wavefront | None = None
        """How training goes through the layers, where not one after the other with everything kept."""
        self.backends: dict[str, Choice] = {}
        """What ran, per operation around the layers, in the last pass."""
        # Without a weight of ours, nn.Embedding draws one, which on the meta device makes torch import dynamo.
        self.embedding = nn.Embedding(VOCAB, layer_cfg.dim, _weight=torch.empty(VOCAB, layer_cfg.dim))
        fill(self.embedding.weight, normal(0.02))
        self.norms = nn.ModuleList(layer_norm(layer_cls, layer_cfg, cfg) for _ in range(cfg.depth))
        self.layers = nn.ModuleList(layer_cls(layer_cfg) for _ in range(cfg.depth))
        self.final_norm = final_norm(layer_cfg, cfg)
        if cfg.shell == "e74":
            for name, parameter in self.layers.named_parameters():
                if name.endswith(("in_proj.weight", "out_proj.weight")):
                    fill(parameter, normal(0.02))

    def forward(
        self, tokens_BT: Tensor, states: list[State] | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, list[State]]:
        """Next-byte logits.

        Args:
            tokens_BT: byte values, any integer dtype.
            states: one state per layer, as returned; zeros when None.
            reset_BT: True where a new document begins; see Layer.forward.

        Returns:
            logits `[B, T, 256]` and the state of every layer.

        """
        _, x_BTD, new = self.trunk(tokens_BT, states, reset_BT)
        return linear(x_BTD, self.embedding.weight), new

    def trunk(
        self, tokens_BT: Tensor, states: list[State] | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[State]]:
        """The residual stream `[B, T, D]` behind all layers, what the head takes of it, and the states; see forward."""
        stream_BTD: Tensor = self.embedding(tokens_BT.long())
        y_BTD = stream_BTD if self.cfg.shell == "e74" else None
        run: Blocks = self.blocks
        if self.walk is not None and self.training and torch.is_grad_enabled():
            run = self.walk.of(run)
        stream_BTD, y_BTD, new = run(range(self.cfg.depth), stream_BTD, y_BTD, states, reset_BT)
        stream_BTD, x_BTD = self.add_and_norm(self.final_norm, stream_BTD, y_BTD)
        return stream_BTD, x_BTD, new

    def blocks(
        self, which: range, stream_BTD: Tensor, y_BTD: Tensor | None, states: list[State] | None,
        reset_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, list[State]]:  # fmt: skip
        """Some layers in a row.

        Args:
            which: their indices.
            stream_BTD: the residual stream before them.
            y_BTD: what is still to be added to it, or None.
            states: theirs alone; zeros when None.
            reset_BT: see forward.

        Returns:
            The residual stream, what is still to be added to it, and their states.

        """
        new: list[State] = []
        for at, i in enumerate(which):
            norm, layer = self.norms[i], self.layers[i]
            before = None if states is None else states[at]
            if isinstance(norm, nn.Identity):
                stream_BTD, state = layer(stream_BTD if y_BTD is None else stream_BTD + y_BTD, before, reset_BT)
                y_BTD = None
            else:
                stream_BTD, x_BTD = self.add_and_norm(norm, stream_BTD, y_BTD)
                y_BTD, state = layer(x_BTD, before, reset_BT)
            new.append(state)
        return stream_BTD, y_BTD, new

    def add_and_norm(self, norm: nn.Module, stream_BTD: Tensor, y_BTD: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual stream with y added, and what the next layer or the head takes of it."""
        assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
        centred = isinstance(norm, nn.LayerNorm)
        bias_D = norm.bias if isinstance(norm, nn.LayerNorm) else None
        stream_BTD, x_BTD = RESIDUAL_NORM(
            self.backends, stream_BTD, y_BTD, norm.weight, bias_D, norm.eps, centred, compute_dtype(stream_BTD)
        )
        return stream_BTD, x_BTD

    def loss(
        self, bytes_BT1: Tensor, states: list[State] | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, list[State]]:
        """Mean next-byte cross-entropy in nats over all positions, computed in fp32 (fp64 for an fp64 model).

        Args:
            bytes_BT1: windows of T + 1 bytes; each of the last T is predicted from those before it.
            states: see forward.
            reset_BT: see forward.

        """
        logits_BTV, states = self(bytes_BT1[:, :-1], states, reset_BT)
        return CROSS_ENTROPY(self.backends, logits_BTV, bytes_BT1[:, 1:].long()), states

    def prepare(self) -> None:
        """Once per optimizer step, before its forward passes: `Layer.prepare` of all layers, equal parts together."""
        parts: list[nn.Module] = []
        ahead = [] if self.heads is None else [m for m in self.heads.modules() if isinstance(m, Layer)]
        for layer in (*self.layers, *ahead):
            parts += preparable(layer)
        prepare_together(parts)


def preparable(layer: nn.Module) -> list[nn.Module]:
    """What of a layer has to be asked to `prepare`: its parts, or itself if it has a prepare of its own."""
    own = getattr(type(layer), "prepare", None) is not Layer.prepare
    return [layer] if own else list(layer.children())


def layer_norm(layer_cls: type[Layer], layer_cfg: Any, cfg: LMConfig) -> nn.Module:
    """The norm before a layer; an Identity where the layer has its own."""
    return nn.Identity() if layer_cls.normalises_input(layer_cfg) else _norm(layer_cfg.dim, cfg)


def final_norm(layer_cfg: Any, cfg: LMConfig) -> nn.Module:
    """The norm before a head."""
    return _norm(layer_cfg.dim, cfg, final=True)


def _norm(dim: int, cfg: LMConfig, *, final: bool = False) -> nn.Module:
    if cfg.shell == "e74":
        return nn.RMSNorm(dim, eps=E74_EPS) if final else nn.LayerNorm(dim, eps=E74_EPS, bias=False)
    return nn.RMSNorm(dim, eps=cfg.norm_eps) if cfg.norm == "rms" else nn.LayerNorm(dim, eps=cfg.norm_eps)


def lm_n_params(layer_cls: type[Layer], layer_cfg: Any, cfg: LMConfig) -> dict[str, int]:
    """Closed-form count of the whole model per component; the values sum to the total exactly."""
    norm = layer_cfg.dim * (1 if cfg.norm == "rms" else 2)
    parts = {f"layers.{name}": cfg.depth * n for name, n in layer_cls.n_params(layer_cfg).items()}
    norms = 0 if layer_cls.normalises_input(layer_cfg) else cfg.depth * norm
    return {"embedding": VOCAB * layer_cfg.dim, **parts, "norms": norms, "final_norm": norm}


def lm_base_and_layer(layer_cls: type[Layer], layer_cfg: Any, cfg: LMConfig) -> tuple[int, int]:
    """Closed-form count without any layer, and what one layer adds: `lm_n_params` at every depth from one look."""
    counts = lm_n_params(layer_cls, layer_cfg, cfg)
    deep = sum(n for name, n in counts.items() if name.startswith("layers.") or name == "norms")
    return sum(counts.values()) - deep, deep // cfg.depth


def counted_params(model: LM) -> dict[str, int]:
    """Parameters of an instantiated model (any device, meta included) per component, tied tensors once."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        section, *rest = name.split(".")
        key = f"layers.{rest[1]}" if section == "layers" else section
        counts[key] = counts.get(key, 0) + parameter.numel()
    return counts


def lm_flops_per_token(layer_cls: type[Layer], layer_cfg: Any, cfg: LMConfig, seq_len: int) -> int:
    """Forward FLOPs per token, head included, 2 per multiply-add; a training step costs three times as much."""
    return cfg.depth * layer_cls.flops_per_token(layer_cfg, seq_len) + 2 * VOCAB * int(layer_cfg.dim)
