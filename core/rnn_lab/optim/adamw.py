"""AdamW for what is no matrix, and 8-bit AdamW for it, with every counter on the device.

8-bit moments follow torchao's AdamW8bit: dynamic codes in blocks of 256, a tensor below 4096 values stays in fp32, and
the step uses the moments before they are rounded. It is done here because a library's step cannot be left out by a
flag on the device, which a CUDA graph of the whole training step needs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rnn_lab.optim.batch import Signals
from rnn_lab.optim.quantise import MIN_NUMEL, Blockwise

BLOCK = 256
FIRST = Blockwise(BLOCK, "dynamic")
SECOND = Blockwise(BLOCK, "dynamic_unsigned")


@dataclass(frozen=True)
class AdamRule:
    """Settings of AdamW; see OptimizerSection."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


class AdamBatch:
    """Parameters of one dtype, device and weight decay, by torch's fused kernel, with moments in that dtype."""

    def __init__(self, parameters: Sequence[nn.Parameter], rule: AdamRule) -> None:
        self.parameters, self.rule = list(parameters), rule
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]

    def step(self, now: Signals, weight_decay: float, taken: Tensor) -> None:
        """One update, the `taken`-th, or none where the step is skipped."""
        here = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if not here:
            return
        grads = [g for i in here if (g := self.parameters[i].grad) is not None]
        beta1, beta2 = self.rule.betas
        torch._fused_adamw_(
            [self.parameters[i].detach() for i in here], grads, [self.first[i] for i in here],
            [self.second[i] for i in here], [], [taken.float()] * len(here),
            lr=now.lr.float(), beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=self.rule.eps, amsgrad=False,
            maximize=False, grad_scale=(1 / now.scale).float(), found_inf=now.skipped.float(),
        )  # fmt: skip

    def states(self) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
        """(parameter, name, tensor) of everything stored."""
        for p, first, second in zip(self.parameters, self.first, self.second, strict=True):
            yield p, "exp_avg", first
            yield p, "exp_avg_sq", second


class Adam8bit:
    """One parameter with both moments in 8 bits."""

    def __init__(self, parameter: nn.Parameter, rule: AdamRule) -> None:
        self.parameter, self.rule = parameter, rule
        numel, device = parameter.numel(), parameter.device
        self.first, self.first_scale = FIRST.zeros(1, numel, device)
        self.second, self.second_scale = SECOND.zeros(1, numel, device)

    def step(self, now: Signals, weight_decay: float, taken: Tensor) -> None:
        """One update, the `taken`-th, or none where the step is skipped."""
        p = self.parameter
        if p.grad is None:
            return
        shape = (1, *p.shape)
        scale = now.scale.masked_fill(now.skipped, 0.0).float()
        grad = p.grad.float().masked_fill(now.skipped, 0.0).unsqueeze(0) * scale
        beta1, beta2 = self.rule.betas
        first = FIRST.decode(self.first, self.first_scale, shape).lerp(grad, 1 - beta1)
        second = SECOND.decode(self.second, self.second_scale, shape).lerp(grad.square(), 1 - beta2)
        step = direction(first, second, self.rule, taken).squeeze(0) * now.lr.float()
        p.detach().mul_((1 - weight_decay * now.lr).to(p.dtype)).sub_(step.to(p.dtype))
        for codec, value, codes, scales in (
            (FIRST, first, self.first, self.first_scale),
            (SECOND, second, self.second, self.second_scale),
        ):
            for old, new in zip((codes, scales), codec.encode(value), strict=True):
                old.copy_(torch.where(now.skipped, old, new))

    def states(self) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
        """(parameter, name, tensor) of everything stored."""
        yield self.parameter, "exp_avg.codes", self.first
        yield self.parameter, "exp_avg.scales", self.first_scale
        yield self.parameter, "exp_avg_sq.codes", self.second
        yield self.parameter, "exp_avg_sq.scales", self.second_scale


def direction(first: Tensor, second: Tensor, rule: AdamRule, taken: Tensor) -> Tensor:
    """Bias-corrected m / (sqrt(v) + eps) after `taken` steps, counted from 1."""
    beta1, beta2 = rule.betas
    # In a run whose very first step is skipped `taken` is 0, and the corrections would be 0 / 0.
    t = taken.clamp(min=1).double()
    correction1, correction2 = (1 - beta1**t).to(first.dtype), (1 - beta2**t).sqrt().to(first.dtype)
    return (first / correction1) / (second.sqrt() / correction2 + rule.eps)


def adam(parameters: Sequence[nn.Parameter], rule: AdamRule, eight: bool) -> list[AdamBatch | Adam8bit]:
    """Who updates these parameters, which share a weight decay."""
    coded = [p for p in parameters if eight and p.numel() >= MIN_NUMEL]
    plain: dict[object, list[nn.Parameter]] = {}
    small = {id(p) for p in coded}
    for p in parameters:
        if id(p) not in small:
            plain.setdefault((p.dtype, p.device), []).append(p)
    return [*(AdamBatch(some, rule) for some in plain.values()), *(Adam8bit(p, rule) for p in coded)]
