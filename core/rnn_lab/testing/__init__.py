"""The contract that every model keeps, third-party models too: one suite over whatever is registered.

    from rnn_lab.testing import check_model
    for result in check_model("e74"):
        print(result.id, result.status, result.message)

Every check has an id. A check whose prerequisite did not pass is skipped, so one defect shows as one failure.
`rnn_lab.testing.pytest_plugin` says how a plugin's own tests run the suite in three lines.

This module imports torch only when one of its names is used: pytest loads it at start-up.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnn_lab.testing.checks import CHECKS, Suite, check_model
    from rnn_lab.testing.contract import Check, CheckResult, ContractError

__all__ = ["CHECKS", "Check", "CheckResult", "ContractError", "Suite", "check_model"]

_HOMES = {
    "rnn_lab.testing.checks": ("CHECKS", "Suite", "check_model"),
    "rnn_lab.testing.contract": ("Check", "CheckResult", "ContractError"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
