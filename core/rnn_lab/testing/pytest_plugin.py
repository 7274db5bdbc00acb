"""pytest plugin: the contract in the tests of whoever brings a model. Active wherever rnn-lab is installed.

    import pytest
    from rnn_lab.testing.pytest_plugin import contract_params

    @pytest.mark.parametrize(("model", "check"), contract_params("mycell"))
    def test_contract(model, check, contract):
        contract(model, check)

The tests are called `test_contract[mycell-streaming]` and so on. For everything at once, with fields of one's
own, there is the fixture `check_model`, which is rnn_lab.testing.check_model.

Nothing here imports torch before a test or a parametrisation asks for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rnn_lab.testing.contract import CheckResult


def contract_params(*models: str) -> list[Any]:
    """Pairs (model, check id) for `pytest.mark.parametrize`; every registered model when none is named."""
    from rnn_lab.registry import registry
    from rnn_lab.testing.checks import CHECKS

    names = models or tuple(registry().models)
    return [pytest.param(name, check.id, id=f"{name}-{check.id}") for name in names for check in CHECKS]


@pytest.fixture(scope="session")
def contract() -> Callable[[str, str], None]:
    """Function (model, check id) that fails or skips the test as the check does; results are kept."""
    from rnn_lab.testing.checks import Suite

    suites: dict[str, Suite] = {}

    def run(model: str, check: str) -> None:
        if model not in suites:
            suites[model] = Suite(model)
        result = suites[model].result(check)
        if result.status == "skip":
            pytest.skip(result.message)
        if result.status == "fail":
            pytest.fail(f"{model}: {result.message}", pytrace=False)

    return run


@pytest.fixture
def check_model() -> "Callable[..., list[CheckResult]]":
    """rnn_lab.testing.check_model."""
    from rnn_lab.testing.checks import check_model as function

    return function
