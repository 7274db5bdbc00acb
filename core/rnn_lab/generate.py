"""Text from a model, one byte at a time with carried state."""

import math
from collections.abc import Iterator

import torch

from rnn_lab.data.sidecar import DELIMITER
from rnn_lab.errors import ConfigError
from rnn_lab.layer import State
from rnn_lab.lm import LM

PROMPT_CHUNK = 1024
"""Bytes of a prompt read in one forward; states go from chunk to chunk, so memory does not grow with it."""


def generate(
    model: LM,
    prompt: bytes,
    n: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Bytes that follow `prompt`, each drawn as soon as it is asked for.

    Args:
        model: in eval mode, on any device.
        prompt: where the text starts; when empty, a document begins (0x1e).
        n: how many bytes.
        temperature: 0 takes the likeliest byte, 1 the model's own distribution.
        top_k: draw among the k likeliest bytes only.
        generator: source of randomness, on the CPU, so that a seed gives the same text on every device.

    Yields:
        Byte values.

    Raises:
        ConfigError: n or temperature is negative, temperature is infinite, or top_k is below 1.

    """
    if n < 0 or not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
        raise ConfigError(
            f"bytes = {n}, temperature = {temperature}, top_k = {top_k}: "
            "give at least 0 bytes, a finite temperature of at least 0, and a top_k of at least 1"
        )
    return _generate(model, prompt or bytes([DELIMITER]), n, temperature, top_k, generator)


def _generate(
    model: LM, prompt: bytes, n: int, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Iterator[int]:
    states: list[State] | None = None
    logits_V = torch.empty(0)
    for first in range(0, len(prompt), PROMPT_CHUNK):
        logits_V, states = _advance(model, prompt[first : first + PROMPT_CHUNK], states)
    for i in range(n):
        byte = _draw(logits_V, temperature, top_k, generator)
        yield byte
        if i + 1 < n:
            logits_V, states = _advance(model, bytes([byte]), states)


@torch.no_grad()
def _advance(model: LM, text: bytes, states: list[State] | None) -> tuple[torch.Tensor, list[State]]:
    """Logits of the byte after `text`, in fp32 on the CPU, and the states there."""
    tokens_BT = torch.tensor([list(text)], device=model.embedding.weight.device)
    logits_BTV, states = model(tokens_BT, states)
    return logits_BTV[0, -1].float().cpu(), states


def _draw(logits_V: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], -torch.inf)
    # The largest logit is moved to 0 first, and fp64 holds any temperature, so that a tiny one makes no nan.
    probabilities_V = ((logits_V - logits_V.max()).double() / temperature).softmax(-1).float()
    return int(torch.multinomial(probabilities_V, 1, generator=generator))
