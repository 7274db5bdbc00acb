"""Every check finds the defects that are planted for it, and no other check takes the blame."""

import pytest
from rnn_lab.testing import CHECKS, check_model

from . import defects_built, defects_run  # noqa: F401 - importing them plants DEFECTS
from .planting import DEFECTS


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.id}-{d.model}-{d.plant.__name__}")
def test_exactly_one_check_fails(defect, monkeypatch, tmp_path):
    ref = defect.reference(monkeypatch, tmp_path)
    results = check_model(ref, defect.held())
    told = {result.id: result.message for result in results if result.status == "fail"}
    assert list(told) == [defect.id], told
    assert told[defect.id].startswith("[default] ")
    assert all(result.message.startswith("needs ") for result in results if result.status == "skip")


def test_every_check_has_a_defect():
    assert {check.id for check in CHECKS} == {defect.id for defect in DEFECTS}
