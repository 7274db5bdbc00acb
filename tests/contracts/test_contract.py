"""Every registered model keeps the whole contract."""

import pytest
from rnn_lab.testing.pytest_plugin import contract_params


@pytest.mark.parametrize(("model", "check"), contract_params())
def test_contract(model, check, contract):
    contract(model, check)
