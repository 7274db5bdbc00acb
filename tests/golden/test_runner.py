"""The golden runner itself: what it lets pass, what it fails, what it skips, and how it says so."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rnn_lab.kernels.dispatch import Backend, Choice
from rnn_lab.kernels.recurrence import RECURRENCE, reference
from safetensors.torch import load_file, save_file
from torch import Tensor

from .cases import FolderError, discover
from .measure import Entry, judge, judge_bf16
from .runner import main, run_case
from .standins import B, D, draw, e61, e61_params, matrix_case, vector_case
from .standins_matrix import e88, e88_params
from .subject import Setting

SIDECAR = {
    "family": "e61",
    "level_key": 61,
    "ctor": {"dim": D, "expansion": 1.5},
    "resolved": {"expansion": 1.5, "w_h_mode": None, "use_conv": False, "d_conv": None},
    "symbols": {},
}


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    """A vector case that passes."""
    torch.manual_seed(1)
    return vector_case(tmp_path, "good", SIDECAR, e61_params(9), e61)


def change(stem: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(stem.with_suffix(".safetensors"))
    edit(tensors)
    save_file(tensors, stem.with_suffix(".safetensors"))


def describe(stem: Path, **changes: object) -> None:
    path = stem.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def failure(stem: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The line of the one failing case; also checks exit status and summary."""
    assert main([str(stem.parent), *options]) == 1
    line, last = capsys.readouterr().out.splitlines()
    assert last == "0 passed, 1 failed, 0 skipped"
    assert re.fullmatch(r"FAIL good .+ r=\S+", line)
    return line


def test_a_good_case_passes(stem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(stem.parent)]) == 0
    line, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"pass good r=\d\.\de-1\d", line)
    assert last == "1 passed, 0 failed, 0 skipped"


@pytest.mark.parametrize(
    "name",
    [
        "A.out",
        "B.h_final",
        "A.cell_out",
        "B.h_all",
        "A.grad.x",
        "B.grad.h0",
        "B.grad.param.cell.b_v",
        "A.loss",
    ],
)
def test_a_change_of_one_billionth_fails(stem: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    def nudge(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[-1] += 1e-9

    change(stem, nudge)
    assert f" {name} of " in failure(stem, capsys)


def test_several_changes_are_counted(stem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(stem, lambda tensors: (tensors["A.out"].mul_(2), tensors["B.out"].mul_(1.1)))
    assert re.search(r"FAIL good A.out and 1 more of \d+ r=5.0e-01", failure(stem, capsys))


def test_another_family_is_skipped(stem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe(stem, family="e99", level_key=99)
    assert main([str(stem.parent)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "skip good model e99 is not installed",
        "0 passed, 0 failed, 1 skipped",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ctor": {"dim": D, "expansion": 1.5, "mystery": 3}}, "config key 'mystery' = 3 cannot be mapped"),
        ({"ctor": {"dim": D, "expansion": 2.0}}, "contradicts"),
        ({"ctor": {"dim": D, "expansion": 1.5, "rank": 4}}, "has no field 'rank'"),
        ({"ctor": {"dim": D, "r_h_mode": "spectral_norm"}}, "has no field 'constraint'"),
        ({"ctor": {"dim": D, "expansion": 1e9}, "resolved": {}}, "model e61 refuses"),
        ({"ctor": None, "config": None}, "'ctor' is missing"),
        ({"d_inner": 7}, "config key 'd_inner' = 7"),
        ({"level_key": "61z"}, "level key '61z' is no model"),
        ({"level_key": "68i"}, "level key '68i' is e68, not of family e61"),
        ({"shapes": {"cell.W_z": [9]}}, "tensor param.cell.W_z is missing"),
        ({"shapes": {"cell.b_v": [3]}}, "tensor param.cell.b_v is [9], the sidecar says [3]"),
    ],
)
def test_a_sidecar_that_we_cannot_follow_fails(
    stem: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str
) -> None:
    describe(stem, **changes)
    assert said in failure(stem, capsys)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.update({"A.extra": draw(3)}), "unchecked tensor A.extra"),
        (lambda t: t.update({"param.cell.W_new": draw(9, 9)}), "tensor param.cell.W_new has no counterpart"),
        (lambda t: t.pop("param.cell.b_v"), "0 of the 9 entries of our value.bias"),
        (lambda t: t.pop("A.grad.param.cell.b_v"), "tensor A.grad.param.cell.b_v is missing"),
        (lambda t: t.pop("in.x"), "tensor in.x is missing"),
        (lambda t: t.update({"param.cell.b_v": draw(8)}), "has shape [8], our value.bias [9]"),
        (lambda t: t.update({"A.out": t["A.out"][:, :2].clone()}), "A.out (shape"),
        (lambda t: t.update({"A.out": t["A.out"].float()}), "tensor A.out is torch.float32"),
        (lambda t: t["A.out"].fill_(float("nan")), "tensor A.out is not finite"),
    ],
)
def test_tensors_that_are_wrong_missing_or_unknown_fail(
    stem: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    change(stem, edit)
    assert said in failure(stem, capsys)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff" * 64, b"[]"])
def test_a_corrupt_or_missing_file_is_a_failure(
    stem: Path, capsys: pytest.CaptureFixture[str], suffix: str, content: bytes | None
) -> None:
    path = stem.with_suffix(suffix)
    path.unlink() if content is None else path.write_bytes(content)
    assert f"good{suffix}" in failure(stem, capsys)


def test_truncated_tensors_are_a_failure(stem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stem.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert "good.safetensors" in failure(stem, capsys)


def test_gradients_listed_as_absent_must_be_zero(tmp_path: Path) -> None:
    config = {"dim": D, "n_state": 4, "n_heads": 3, "expansion": 1.0, "use_gate": True}
    sidecar = {"source": "e88_fla_hybrid 627683a9", "config": config}
    stem = matrix_case(tmp_path, "e88", sidecar, e88_params(config), e88(config), draw(B, 3, 4, 4))
    assert run_case(stem, Setting()).status == "pass"
    change(stem, lambda t: (t.pop("grad.g_proj.weight"), t.pop("gradS.g_proj.weight")))
    describe(stem, params_without_gradient=["g_proj.weight"])
    assert "grad.g_proj.weight (none in the source)" in run_case(stem, Setting()).line()


def test_missing_and_empty_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, said in ((tmp_path / "absent", "no such folder"), (tmp_path, "holds no golden case")):
        assert main([str(folder)]) == 1
        assert said in capsys.readouterr().err
        with pytest.raises(FolderError):
            discover([folder])


def test_only_and_json(stem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(stem.parent), "--only", "go*", "--json"]) == 0
    written = capsys.readouterr()
    assert json.loads(written.out)[0]["status"] == "pass"
    assert written.err.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"
    assert main([str(stem.parent), "--only", "e7*"]) == 1


def test_parts_are_every_case_once(stem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("better", "worse"):
        vector_case(stem.parent, name, SIDECAR, e61_params(9), e61)
    ran = []
    for part in ("0/2", "1/2", "5/9"):
        assert main([str(stem.parent), "--part", part, "--json"]) == 0
        ran.append([row["name"] for row in json.loads(capsys.readouterr().out)])
    assert [len(names) for names in ran] == [2, 1, 0] and {*ran[0], *ran[1]} == {"good", "better", "worse"}
    for wrong in ("2/2", "1", "-1/2", "0/0"):
        with pytest.raises(SystemExit, match="2"):
            main([str(stem.parent), f"--part={wrong}"])
        assert "expected I/N" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
def test_the_reference_backend_passes_in_every_precision(stem: Path, dtype: str) -> None:
    outcome = run_case(stem, Setting("reference", dtype))
    assert outcome.status == "pass", outcome.line()


def test_a_backend_that_is_not_there_fails(stem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "RNN_LAB_KERNELS=warp" in failure(stem, capsys, "--backend", "warp")


def test_a_fallback_fails(stem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RECURRENCE, "backends", [Backend("warp", reference, lambda *a, **k: None)])
    assert run_case(stem, Setting("warp")).status == "pass"
    choice = Choice("recurrence", "reference", (("warp", "too cold"),))
    monkeypatch.setattr(RECURRENCE, "select", lambda *a, **k: (reference, choice))
    outcome = run_case(stem, Setting("warp"))
    assert outcome.line() == "FAIL good recurrence fell back to reference (warp: too cold) r=-"


def test_a_wrong_backend_fails(stem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        o, h = reference(*args, **kwargs)  # type: ignore[arg-type]
        return o, h * (1 + 3e-2)

    monkeypatch.setattr(RECURRENCE, "backends", [Backend("warp", wrong, lambda *a, **k: None)])
    for dtype in ("fp64", "fp32", "bf16"):
        outcome = run_case(stem, Setting("warp", dtype))
        assert outcome.status == "FAIL"
        assert "h_" in outcome.what or "grad" in outcome.what


def test_tiny_references_are_measured_against_one() -> None:
    big, tiny = torch.ones(4, dtype=torch.float64), torch.full((4,), 1e-6, dtype=torch.float64)
    entries = [Entry("a", big, big), Entry("b", big, big), Entry("tiny", tiny + 1e-15, tiny)]
    assert [finding.ok for finding in judge(entries, "fp64")] == [True, True, True]
    assert not judge([Entry("tiny", tiny + 1e-15, tiny)], "fp64")[0].ok
    assert not judge([*entries, Entry("worse", tiny + 1e-11, tiny)], "fp64")[-1].ok


def test_nan_never_passes() -> None:
    nan, one = torch.full((2,), float("nan")), torch.ones(2, dtype=torch.float64)
    assert not judge([Entry("a", nan, one)], "fp64")[0].ok
    assert not judge_bf16([Entry("a", nan, one)], [Entry("a", one, one)])[0].ok


def test_bf16_may_err_twice_as_much_as_the_plain_reference() -> None:
    one = torch.ones(8, dtype=torch.float64)
    plain = [Entry("a", one * 1.01, one)]
    assert judge_bf16([Entry("a", one * 1.019, one)], plain)[0].ok
    assert not judge_bf16([Entry("a", one * 1.021, one)], plain)[0].ok


@pytest.mark.slow
def test_it_runs_as_a_script(stem: Path) -> None:
    script = Path(__file__).parent / "run.py"
    done = subprocess.run(
        [sys.executable, str(script), str(stem.parent)], capture_output=True, text=True, check=False, cwd="/"
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 passed, 0 failed, 0 skipped")
