"""What every row has in common: a status, and a reason wherever it has no figures."""

import gc
from contextlib import suppress
from typing import Any

import torch

from rnn_lab.discovery.libraries import MissingLibrary
from rnn_lab.errors import RnnLabError
from rnn_lab.tensors import is_out_of_memory


def failure(error: Exception) -> dict[str, Any]:
    """Status and reason of what was raised.

    Raises:
        Exception: `error` itself, where it left a GPU that answers no more: this process can measure nothing else.

    """
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            raise error from None
    if isinstance(error, MissingLibrary):
        return {"status": "missing", "reason": str(error)}
    status = "oom" if is_out_of_memory(error) else "error"
    text = (
        str(error) if isinstance(error, RnnLabError) else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    )
    return {"status": status, "reason": text[:400]}


def free() -> None:
    """Give back what the last row left behind."""
    # Only a GPU's memory is short; a whole collection takes longer than most rows on a CPU.
    gc.collect(2 if torch.cuda.is_available() else 1)
    if torch.cuda.is_available():
        # After a fault of the device every call raises; the rows so far are still worth writing.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
