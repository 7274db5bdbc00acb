"""Optimizers without the compiler's import, which takes longer than everything else before a first step.

torch keeps some methods of its optimizers out of compiled code by a wrapper that imports torch._dynamo when it is first
called, whether anything is compiled or not. Until somebody else imports it, nothing can be, and the plain method does.
"""

import sys
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
_KEPT = "__dynamo_disable"
"""Where the wrapper keeps what it calls. A torch that keeps it elsewhere ignores ours and imports as before."""


def spare_the_compiler() -> None:
    """See the module docstring; nothing where torch's wrapper has been called already."""
    for name in METHODS:
        plain = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if plain is not None and getattr(plain, _KEPT, None) is None:
            setattr(plain, _KEPT, _until_there_is_a_compiler(plain))


def _until_there_is_a_compiler(plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return plain(*args, **kwargs)
        import torch._dynamo

        disabled: Callable[..., Any] = torch._dynamo.disable(plain, wrapping=False)  # type: ignore[no-untyped-call]
        setattr(plain, _KEPT, disabled)
        return disabled(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # what torch._dynamo.disable sets
    return call
