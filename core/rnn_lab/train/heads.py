"""Heads of multi-token prediction: what a model has besides while it trains, to predict further than the next byte.

Horizon k = 2 .. n: from position t, byte t + k. They hang below `LM.heads`, so that optimizers, gradient norms and
checkpoints have them; the size of a model and its use leave them out.

linear      logits_k = W_k x                      x: what the main head takes; W_k [256, D], no bias
layer       logits_k = E norm_k(s + layer_k(s))   s: the residual stream behind the trunk; E: the tied embedding
sequential  h_1 = s;  h_k = block_k(M_k [norm(h_{k-1}); norm(E[byte t+k-1])]);  logits_k = E norm_k(h_k)
shared      logits_k = logits_1                   no parameters: the same distribution scored against byte t + k
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rnn_lab.init import fill, normal
from rnn_lab.layer import State
from rnn_lab.lm import LM, VOCAB, final_norm, layer_norm
from rnn_lab.parts import Linear
from rnn_lab.sections import ObjectiveSection
from rnn_lab.token_filter import linear

Found = tuple[int, Tensor, State | None]
"""A horizon, its logits, and the state of its block if it has one."""


class Block(nn.Module):
    """One more layer of the model's own family, with its norms; `joined` to an embedding in the sequential form."""

    def __init__(self, model: LM, joined: bool) -> None:
        super().__init__()
        cfg, dim = model.layer_cfg, model.layer_cfg.dim
        self.norm = layer_norm(model.layer_cls, cfg, model.cfg)
        self.layer = model.layer_cls(cfg)
        self.out_norm = final_norm(cfg, model.cfg)
        if joined:
            self.before_norm, self.ahead_norm = final_norm(cfg, model.cfg), final_norm(cfg, model.cfg)
            self.join = Linear(2 * dim, dim, bias=False)
            fill(self.join.weight, normal(0.02))

    def forward(
        self, model: LM, stream_BTD: Tensor, state: State | None, reset_BT: Tensor | None
    ) -> tuple[Tensor, Tensor, State]:
        """The residual stream behind this block, what a head takes of it, and the block's state."""
        if isinstance(self.norm, nn.Identity):
            stream_BTD, state = self.layer(stream_BTD, state, reset_BT)
            _, x_BTD = model.add_and_norm(self.out_norm, stream_BTD, None)
            return stream_BTD, x_BTD, state
        stream_BTD, x_BTD = model.add_and_norm(self.norm, stream_BTD, None)
        y_BTD, state = self.layer(x_BTD, state, reset_BT)
        stream_BTD, x_BTD = model.add_and_norm(self.out_norm, stream_BTD, y_BTD)
        return stream_BTD, x_BTD, state

    def joined(self, model: LM, stream_BTD: Tensor, ahead_BTD: Tensor) -> Tensor:
        """The stream and the embedding of a byte further on, each normalised, in one stream."""
        _, h_BTD = model.add_and_norm(self.before_norm, stream_BTD, None)
        _, e_BTD = model.add_and_norm(self.ahead_norm, ahead_BTD, None)
        joined_BTD: Tensor = self.join(torch.cat([h_BTD, e_BTD], -1))
        return joined_BTD.to(stream_BTD.dtype)


class Heads(nn.Module):
    """The heads of horizons 2 to n; none in the variant `shared`."""

    def __init__(self, model: LM, cfg: ObjectiveSection) -> None:
        super().__init__()
        self.variant, extra = cfg.mtp_variant, cfg.horizons - 1
        made: list[nn.Module] = []
        if self.variant == "linear":
            made = [Linear(model.layer_cfg.dim, VOCAB, bias=False) for _ in range(extra)]
            for head in made:
                fill(head.weight, normal(0.02))  # type: ignore[arg-type]
        elif self.variant in ("layer", "sequential"):
            made = [Block(model, self.variant == "sequential") for _ in range(extra)]
        self.horizons, self.extra = nn.ModuleList(made), extra

    def flops_per_token(self, model: LM, seq_len: int) -> int:
        """Forward FLOPs per token, counted as Layer.flops_per_token does."""
        dim, each = int(model.layer_cfg.dim), 2 * VOCAB * int(model.layer_cfg.dim)
        if self.variant in ("layer", "sequential"):
            each += model.layer_cls.flops_per_token(model.layer_cfg, seq_len)
            each += 4 * dim * dim if self.variant == "sequential" else 0
        return 0 if self.variant == "shared" else self.extra * each

    def forward(
        self, model: LM, stream_BTD: Tensor, x_BTD: Tensor, window: Tensor, states: list[State] | None,
        reset_BT: Tensor | None, logits_BTV: Tensor,
    ) -> Iterator[Found]:  # fmt: skip
        """Each horizon's logits, one after the other.

        Args:
            model: the trunk.
            stream_BTD: residual stream behind it.
            x_BTD: what its head takes.
            window: bytes `[B, T + n]`.
            states: of the blocks, zeros when None.
            reset_BT: see LM.forward.
            logits_BTV: the main head's.

        """
        if self.variant == "shared":
            yield from ((k, logits_BTV, None) for k in range(2, self.extra + 2))
            return
        T, chain_BTD = x_BTD.shape[1], stream_BTD
        for at, head in enumerate(self.horizons):
            k = at + 2
            if not isinstance(head, Block):
                yield k, head(x_BTD), None
                continue
            if self.variant == "sequential":
                ahead_BTD = model.embedding(window[:, k - 1 : T + k - 1].long())
                stream_BTD = head.joined(model, chain_BTD, ahead_BTD)
            chain_BTD, out_BTD, state = head(model, stream_BTD, None if states is None else states[at], reset_BT)
            yield k, linear(out_BTD, model.embedding.weight), state


def attach_heads(model: LM, cfg: ObjectiveSection) -> LM:
    """The model, with the heads that `cfg` asks for; its own parameters are what they would be without."""
    if cfg.horizons > 1 and cfg.mtp_variant != "shared":
        model.heads = Heads(model, cfg).to(model.embedding.weight.device)
    return model


def detach_heads(model: LM) -> LM:
    """The model without its heads, as it is exported and evaluated."""
    model.heads = None
    return model
