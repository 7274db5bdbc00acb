"""Faults planted in the kernels with resident matrices, which the emulation has to notice."""

import pytest
from rnn_lab.kernels.dense import engine as dense
from rnn_lab.kernels.dense import plan as dense_plan
from rnn_lab.kernels.dense.cuda import source

from tests.kernels.dense_cells import call
from tests.kernels.test_dense import emulated, expect_reference, only, planned_afresh  # noqa: F401


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize(("good", "bad", "noticed"), [
    ("await(barrier(n), int(n >> 1 & 1));", "", "second arrival"),
    ("if (threadIdx.x == 0) expect(barrier(n), WIRE_BYTES);  // message n + 2", "", "never comes"),
    ("(group * 2 + int(n & 1)) * WIRE_BYTES", "group * 2 * WIRE_BYTES", "differs"),
    ("rank + c) % C", "rank + c + (c == 1)) % C", "never comes|differs"),
    ("__syncthreads();", "", "differs"),
    ("AHEAD * F : F - 1)>", "AHEAD * F + 1 : F)>", "differs|on its way"),
    ("sequence() < a.B;", "true;", "outside"),
    ("% PARTIALS * PARTIAL;", "* 0;", "differs"),
    ("F > 1 ? 2 : 1;", "1;", "differs"),
    ("* F + group) * RING_BYTES", "* F) * RING_BYTES", "on its way"),
    ("group * 2 + (n & 1);", "(n & 1);", "second arrival"),
    ("((group * KEPT + j)", "(j", "differs"),
])  # fmt: skip
def test_the_emulation_notices(groups, good, bad, noticed, monkeypatch):
    """Readers that do not wait, barriers that are not armed again, what two messages or two groups may not share."""
    monkeypatch.setattr(dense_plan, "STAGES", (4, 2) if groups == 2 else (1,))
    only(monkeypatch, 8, 8, groups)
    monkeypatch.setattr(dense, "source", lambda *args: source(*args).replace(good, bad))
    with pytest.raises(AssertionError, match=noticed):
        expect_reference(call("rates", 11, 9, 128))


def test_the_emulation_notices_a_stage_that_is_filled_before_it_is_read(monkeypatch):
    only(monkeypatch, 8, 8, 2)
    early = ("STAGES > 1 ? STAGES - 1 : 1;", "STAGES;")
    monkeypatch.setattr(dense, "source", lambda *args: source(*args).replace(*early))
    with pytest.raises(AssertionError, match="on its way"):
        expect_reference(call("rates", 11, 9, 128))


@pytest.mark.parametrize(("good", "bad"), [
    ("int(n * F + group) % PARTIALS", "int(n + group) % 2"), ("int(n * F + group) % PARTIALS", "group % PARTIALS"),
    ("partial_of(shared, f, a.T);", "partial_of(shared, f, a.T - 1);"),
    ("partial_of(shared, f, a.T);", "partial_of(shared, 0, a.T);"),
    ("partial_of(shared, f, a.T);", "partial_of(shared, f, 0);"),
])  # fmt: skip
def test_the_emulation_notices_sums_that_are_overwritten(good, bad, monkeypatch):
    """Which place a group's sums take depends on the step, in the last products of the backward too."""
    found = []
    for groups, T in ((2, 9), (3, 9), (3, 8), (4, 9)):
        only(monkeypatch, 8, 8, groups)
        monkeypatch.setattr(dense, "source", lambda *args: source(*args).replace(good, bad))
        try:
            expect_reference(call("rates", 8 * groups, T, 128))
        except AssertionError as error:
            found.append(str(error))
    assert found and all("differs" in text for text in found)
