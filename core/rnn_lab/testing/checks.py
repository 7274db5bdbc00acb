"""The ordered list of checks, and running them on one model."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.registry import ModelRef, registry
from rnn_lab.testing import accounting, building, configuration, numerics, precision, streaming, training
from rnn_lab.testing.contract import Check, CheckResult, NotApplicableError
from rnn_lab.testing.measure import kernels
from rnn_lab.testing.subject import Subject

CHECKS: tuple[Check, ...] = (
    configuration.discovery,
    configuration.config,
    accounting.shapes,
    accounting.count,
    accounting.state_bytes,
    building.deterministic,
    building.prepare,
    accounting.flops,
    building.save_load,
    streaming.causal,
    streaming.streaming,
    streaming.reset,
    numerics.gradients,
    numerics.backends,
    precision.state_precision,
    precision.bf16,
    training.learns,
    training.compile_equal,
)
"""Every check comes after those that it needs."""

_BY_ID = {check.id: check for check in CHECKS}
_ANY_BACKEND = ("state-precision", "bf16", "learns", "compile")


class Suite:
    """The contract on one model, each check run at most once and only when asked for.

    Args:
        model: a reference, or the name or alias of a registered model.
        fields: fields of the model's Config that are held at these values in every variant.
        device: where the layers run.

    Raises:
        ConfigError: no such model, or no small Config with these fields.
        PluginError: the model file cannot be loaded.

    """

    def __init__(self, model: ModelRef | str, fields: Mapping[str, Any] | None = None, device: str = "cpu") -> None:
        ref, preset = registry().find_model(model) if isinstance(model, str) else (model, {})
        self.subject = Subject(ref, {**preset, **(fields or {})}, device)
        assert self.subject.variants
        self._done: dict[str, CheckResult] = {}

    def result(self, check_id: str) -> CheckResult:
        """The result of one check; what it needs runs first.

        Raises:
            ConfigError: no such check.

        """
        check = _known(check_id)
        if check_id not in self._done:
            self._done[check_id] = self._run(check)
        return self._done[check_id]

    def results(self, only: Iterable[str] | None = None) -> Iterator[CheckResult]:
        """Results of the checks that are asked for, or of all, each as soon as it is known, in the order of CHECKS.

        Raises:
            ConfigError: no such check.

        """
        wanted = set(_BY_ID) if only is None else {_known(check_id).id for check_id in only}
        return (self.result(check_id) for check_id in _BY_ID if check_id in wanted)

    def _run(self, check: Check) -> CheckResult:
        missing = [need for need in check.needs if self.result(need).status != "pass"]
        if missing:
            return CheckResult(check.id, "skip", f"needs {', '.join(missing)}", 0.0)
        began = time.perf_counter()
        try:
            # A defect of a kernel shows in `backends`; what follows that check runs whatever the user chose.
            setting = os.environ.get("RNN_LAB_KERNELS") if check.id in _ANY_BACKEND else "reference"
            with kernels(setting), _one_thread():
                note = check.run(self.subject)
        except NotApplicableError as declared:
            return CheckResult(check.id, "skip", str(declared), time.perf_counter() - began)
        except Exception as error:
            return CheckResult(check.id, "fail", str(error), time.perf_counter() - began)
        return CheckResult(check.id, "pass", note or "", time.perf_counter() - began)


def _known(check_id: str) -> Check:
    if check_id not in _BY_ID:
        raise ConfigError(f"unknown check {check_id!r}.{did_you_mean(check_id, list(_BY_ID))}")
    return _BY_ID[check_id]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_model(
    model: ModelRef | str,
    fields: Mapping[str, Any] | None = None,
    only: Iterable[str] | None = None,
    *,
    device: str = "cpu",
) -> list[CheckResult]:
    """Run the contract on one model.

    Args:
        model: a reference, or the name or alias of a registered model.
        fields: fields of the model's Config that are held at these values in every variant.
        only: ids of the checks to report; what they need runs too.
        device: where the layers run.

    Returns:
        One result per check, in the order of CHECKS.

    Raises:
        ConfigError: no such model or check, or no small Config with these fields.
        PluginError: the model file cannot be loaded.

    """
    return list(Suite(model, fields, device).results(only))
