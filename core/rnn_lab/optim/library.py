"""8-bit AdamW of bitsandbytes for what is no matrix: its kernels, its state, launched from the host."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from rnn_lab.errors import ConfigError
from rnn_lab.optim.adamw import AdamRule
from rnn_lab.optim.batch import Signals

EXTRA = "pip install 'rnn-lab-core[optim]'"


def bitsandbytes() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed, or cannot be imported here.

    """
    try:
        return importlib.import_module("bitsandbytes")
    except Exception as error:
        raise ConfigError(
            f"optimizer.aux_library = bitsandbytes, and it cannot be imported ({type(error).__name__}: {error}): "
            f"install it with {EXTRA}, or leave the key out: `own` needs no library"
        ) from error


class LibraryAdam:
    """`bitsandbytes.optim.AdamW8bit` over parameters of one weight decay."""

    def __init__(self, parameters: Sequence[nn.Parameter], rule: AdamRule, weight_decay: float) -> None:
        self.parameters, self.rule = list(parameters), rule
        self.inner = bitsandbytes().optim.AdamW8bit(
            self.parameters, lr=0.0, betas=rule.betas, eps=rule.eps, weight_decay=weight_decay
        )
        for index, p in enumerate(self.parameters):
            self.inner.init_state(self.inner.param_groups[0], p, 0, index)

    def step(self, now: Signals, weight_decay: float, taken: int) -> None:
        """One update; the host knows that it is not skipped."""
        for group in self.inner.param_groups:
            group.update(lr=float(now.lr), weight_decay=weight_decay)
        for p in self.parameters:
            self.inner.state[p]["step"] = taken - 1
        self.inner.step()

    def states(self) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
        """(parameter, name, tensor) of everything stored; code maps are shared and listed once."""
        seen: set[int] = set()
        for p in self.parameters:
            for name, value in self.inner.state[p].items():
                if isinstance(value, Tensor) and value.data_ptr() not in seen:
                    seen.add(value.data_ptr())
                    yield p, f"library.{name}", value
