"""bench kernels, train and decode: rows for everything, figures only for what is right."""

import gc
import json
import weakref
from unittest import mock

import pytest
import torch
from rnn_lab.bench import train as bench_train
from rnn_lab.bench.kernels import Setting, bench_kernels
from rnn_lab.bench.step import make_step
from rnn_lab.bench.timing import Spread, captured
from rnn_lab.bench.train import TrainSetting, covered
from rnn_lab.kernels import recurrence
from rnn_lab.kernels.dispatch import Backend
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry
from rnn_lab_cli import running
from rnn_lab_cli.bench_options import sections
from rnn_lab_cli.commands import bench_train as bench_command

from .helpers import CELL

KERNELS = ["bench", "kernels", "--device", "cpu", "--batch", "2", "--seq-len", "6", "--seconds", "0.001"]
TRAIN = ["bench", "train", "--device", "cpu", "--batch-size", "2", "--seq-len", "8", "--steps", "3"]
DECODE = ["bench", "decode", "--device", "cpu", "--batch-size", "1,3", "--tokens", "4"]
BACKWARD = ["bench", "backward", "--dim", "16", "--depth", "1", "--batch-size", "2", "--seq-len", "8"]
PAGE = {"kind", "header", "setting", "ceilings", "rows"}
HEADER = {"date", "device", "driver", "python", "torch", "cuda", "cudnn", "triton", "peers", "commit"}
FIGURES = {"ms", "bytes", "flops", "copy_share", "matmul_share"}
SPREAD = {"median", "q1", "q3", "n"}


@pytest.fixture
def backends(monkeypatch):
    """Backends of the recurrence for one test: name and function."""

    def put(*implementations):
        made = [Backend(name, run, lambda *args: None) for name, run in implementations]
        monkeypatch.setattr(recurrence.RECURRENCE, "backends", made)

    return put


def slower_decay(cell, h, streams, *rest):
    """A right forward of another recurrence: what a mistaken kernel looks like."""
    first, *others = streams.inputs
    o, h = recurrence.reference(cell, h, streams._replace(inputs=(0.99 * first, *others)), *rest)
    return o, h


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o):
        return o.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.01 * gradient


def wrong_backward(cell, h, *rest):
    o, h = recurrence.reference(cell, h, *rest)
    return WrongBackward.apply(o), h


def raises(*args):
    raise RuntimeError("no such instruction")


def test_kernels_json_has_header_ceilings_and_a_row_for_every_implementation(rnn_lab, tmp_path):
    out = tmp_path / "page.json"
    done = rnn_lab(*KERNELS, "--model", "e61:dim=16", "--model", "e62:dim=16", "--json", "--out", str(out))
    assert done.code == 0, done.err
    assert done.json == json.loads(out.read_text())
    assert done.json.keys() == PAGE and done.json["header"].keys() == HEADER
    assert done.json["kind"] == "bench-kernels" and done.json["setting"]["seq_len"] == 6
    assert done.json["ceilings"]["copy_bytes_per_s"] > 0 and done.json["ceilings"]["matmul_flops_per_s"] > 0
    of_cells = [row for row in done.json["rows"] if row["op"] in ("recurrence", None)]
    rows = {(row["model"], row["implementation"]): row for row in of_cells}
    loop = rows["e61", "reference"]
    assert loop["status"] == "ok" and loop["mode"] == "eager"
    assert loop["check"]["forward"] < 1e-5 and loop["check"]["gradient"] < 1e-4
    for key in ("forward", "forward_backward"):
        assert loop[key].keys() == FIGURES and loop[key]["ms"].keys() == SPREAD
    # Two projections in, o out, the state in and out, two biases, all fp32: 3 * B T d + 2 * B d + 2 * d.
    assert loop["forward"]["bytes"] == 4 * (3 * 2 * 6 * 32 + 2 * 2 * 32 + 2 * 32)
    assert rows["e61", "fla chunk_hgrn"]["status"] == "refused"
    assert rows["e62", "reference"]["status"] == "ok"  # arguments of the same shapes, another function
    same = [row for row in done.json["rows"] if row["status"] == "same"]
    assert same and all(row["model"] == "e62" and "e61" in row["reason"] for row in same)


def test_what_a_graph_reads_and_writes_lives_as_long_as_its_replay():
    class Held:
        pass

    held = Held()
    alive = weakref.ref(held)
    names = (
        "Stream", "stream", "current_stream", "current_device", "default_generators", "CUDAGraph", "graph",
        "graph_pool_handle",
    )  # fmt: skip
    with mock.patch.multiple(torch.cuda, **{name: mock.MagicMock() for name in names}):
        replay = captured([lambda kept=held: kept]).replay
    del held
    gc.collect()
    assert alive() is not None
    del replay
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("run", [slower_decay, wrong_backward])
def test_a_wrong_backend_gets_no_time(rnn_lab, backends, run):
    backends(("wrong", run))
    rows = rnn_lab(*KERNELS, "--model", "e61:dim=16", "--json").json["rows"]
    row = next(row for row in rows if row["implementation"] == "wrong")
    assert row["status"] == "wrong" and "allowed are" in row["reason"]
    assert row.keys().isdisjoint({"forward", "forward_backward"}) and '"ms"' not in json.dumps(row)
    lines = rnn_lab(*KERNELS, "--model", "e61:dim=16").out.splitlines()
    (line,) = [line for line in lines if "\twrong\t" in line]
    assert " ms " not in line


def test_a_right_backend_is_timed_and_a_broken_one_is_a_row(rnn_lab, backends):
    backends(("right", recurrence.reference), ("broken", raises))
    rows = rnn_lab(*KERNELS, "--model", "e61:dim=16", "--json").json["rows"]
    found = {row["implementation"]: row for row in rows}
    assert found["right"]["status"] == "ok" and found["right"]["implementation_kind"] == "backend"
    assert found["broken"]["status"] == "error" and "no such instruction" in found["broken"]["reason"]


def test_flops_are_those_of_the_products_at_the_measured_size():
    setting = Setting(2, 6, torch.float32, torch.device("cpu"), 0.001)
    asked = [("e1", {"dim": 16, "expansion": 1.0}), ("llama", {"dim": 64}), ("mamba2", {"dim": 64})]
    rows = bench_kernels(asked, [], setting, lambda row: None)["rows"]
    ops = ("recurrence", "attention", "causal_conv")
    figures = {row["model"]: row for row in rows if row["implementation"] == "reference" and row["op"] in ops}
    assert figures["e1"]["forward"]["flops"] == 2 * 6 * 2 * 16 * 16
    assert figures["llama"]["forward"]["flops"] == 2 * 4 * 6 * 6 * 64
    assert figures["mamba2"]["forward"]["flops"] == figures["mamba2"]["forward_backward"]["flops"] == 0


def test_a_cell_written_a_minute_ago_is_measured(rnn_lab, fresh, tmp_path):
    fresh()
    (tmp_path / "mine.py").write_text(CELL)
    done = rnn_lab("--plugins-dir", str(tmp_path), *KERNELS, "--model", "mine", "--dim", "16", "--json")
    assert done.code == 0, done.err
    assert any(row["status"] == "ok" and row["model"] == "mine" for row in done.json["rows"])


@pytest.mark.parametrize("op,kept", [("recurrence", True), ("attention", False)])
def test_only_the_operation_that_is_asked_for(rnn_lab, op, kept):
    page = rnn_lab(*KERNELS, "--model", "e61:dim=16", "--op", op, "--json").json
    assert bool(page["rows"]) is kept and page["setting"]["only op"] == op


def test_a_peer_without_a_state_is_not_cut_in_time():
    setting = TrainSetting(2, 16, 3, torch.bfloat16, torch.device("cuda"), wavefront=4)
    row = bench_train._row(None, "mamba-ssm", "graph", setting, None, [], {})
    assert row["status"] == "refused" and "takes no state" in row["reason"]


def test_where_nothing_could_be_measured_scripts_are_told(rnn_lab, monkeypatch):
    monkeypatch.setenv("RNN_LAB_KERNELS", "dense")
    done = rnn_lab(*KERNELS, "--model", "e1:dim=128", "--json")
    assert done.code == 1 and {row["status"] for row in done.json["rows"]} == {"error"}
    assert "on cpu" in done.json["rows"][0]["reason"]
    done = rnn_lab(*TRAIN, "--model", "e1:dim=16,depth=1", "--json")
    assert done.code == 1 and done.json["rows"][0]["status"] == "error"


def test_only_the_implementations_that_are_asked_for(rnn_lab):
    done = rnn_lab(*KERNELS, "--model", "e61:dim=16", "--implementation", "ref*", "--json")
    rows, setting = done.json["rows"], done.json["setting"]
    assert {row["implementation"] for row in rows} == {"reference"} and all(row["status"] == "ok" for row in rows)
    assert setting["only implementation"] == "ref*" and "only op" not in setting
    assert "nothing that is" not in done.err
    models = ["--model", "e61:dim=16", "--model", "e62:dim=16"]
    some = rnn_lab(*KERNELS, *models, "--implementation", "nobody's", "--implementation", "matrix", "--json")
    assert some.code == 0 and "nothing that is nobody's" in some.err
    assert {row["implementation"] for row in some.json["rows"]} == {"matrix"}
    none = rnn_lab(*KERNELS, *models, "--implementation", "referense")
    assert none.code == 2 and not none.out and "Did you mean 'reference'" in none.err


@pytest.mark.parametrize("bench", [KERNELS, TRAIN, DECODE])
def test_a_backend_that_nobody_has_is_no_setting(rnn_lab, monkeypatch, bench):
    monkeypatch.setenv("RNN_LAB_KERNELS", "diagonals")
    done = rnn_lab(*bench, "--model", "e61:dim=16")
    assert done.code == 2 and not done.out and "known are auto" in done.err and "mean 'diagonal'" in done.err


def test_train_runs_by_the_variable_unless_it_is_told_otherwise(rnn_lab, monkeypatch):
    monkeypatch.setenv("RNN_LAB_KERNELS", " reference ")
    page = rnn_lab(*TRAIN, "--model", "e61:dim=16,depth=1", "--json").json
    assert page["setting"]["kernels"] == "reference"
    assert page["rows"][0]["backends"][0]["refused"]["diagonal"] == "RNN_LAB_KERNELS=reference"
    page = rnn_lab(*TRAIN, "--model", "e61:dim=16,depth=1", "--kernels", "auto", "--json").json
    assert "on cpu" in page["rows"][0]["backends"][0]["refused"]["diagonal"]


def test_train_json_has_rates_memory_and_the_loss(rnn_lab, tmp_path):
    out = tmp_path / "page.json"
    options = ["--model", "e61:dim=16,depth=2", "--model", "mamba2:dim=64,depth=1", "--json", "--out", str(out)]
    done = rnn_lab(*TRAIN, *options)
    assert done.code == 0, done.err
    assert done.json == json.loads(out.read_text())
    assert done.json.keys() == PAGE and done.json["kind"] == "bench-train"
    ours, mamba, peer = done.json["rows"]
    assert ours["status"] == mamba["status"] == "ok" and ours["mode"] == "eager"
    assert 0 < ours["tokens_per_s"]["q1"] <= ours["tokens_per_s"]["median"] <= ours["tokens_per_s"]["q3"]
    assert ours["ms"]["n"] == 3 and 0 < ours["loss"] < 6 and ours["peak_memory_bytes"] > 0
    assert ours["mfu_datasheet"] is None and ours["mfu_measured"] > 0 and ours["launch_overhead"] is None
    assert ours["backends"][0]["op"] == "recurrence" and ours["config"]["dim"] == 16 and ours["wavefront"] == 1
    assert (peer["implementation"], peer["status"]) == ("mamba-ssm Mamba2", "refused")


def test_clip_and_optimizer_are_timed_by_themselves(rnn_lab):
    argv = [*TRAIN, "--seq-len", "256", "--model", "e61:dim=16,depth=2", "--json", "--optimizer"]
    muon = rnn_lab(*argv, "muon:bits=8,ns_steps=20").json
    assert muon["setting"]["optimizer"] == "muon, lr = 0.02, weight_decay = 0.01, ns_steps = 20, bits = 8"
    (row,) = muon["rows"]
    assert row["update_ms"].keys() == SPREAD and 0 < row["update_share"] < 1
    assert row["update_share"] == row["update_ms"]["median"] / row["ms"]["median"]
    (row,) = rnn_lab(*argv, "galore_muon:galore_layerwise=true").json["rows"]  # its update is part of backward
    assert row["status"] == "ok" and row["update_ms"] is row["update_share"] is None


def test_where_none_of_the_usual_models_is_installed_the_table_is_empty(rnn_lab, monkeypatch):
    monkeypatch.setattr(bench_command, "MODELS", ())
    assert rnn_lab(*TRAIN, "--json").json["rows"] == []


def test_the_update_that_is_timed_is_the_steps_own(monkeypatch):
    calls = []

    class Optimizer(torch.optim.SGD):
        def step(self, closure=None):
            calls.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
            super().step()

    torch.manual_seed(0)
    ((_, section),) = sections(["e61:dim=16,depth=1"], [], "100k", registry())
    model = model_spec(section, registry()).build()
    bytes_BT1 = torch.randint(97, 123, (2, 9), dtype=torch.uint8)
    step = make_step(model, Optimizer(model.parameters(), lr=0.1), torch.float32, bytes_BT1, False)
    step(bytes_BT1)
    left = [p.grad.clone() for p in model.parameters()]
    step.update()
    assert len(calls) == 4
    torch.testing.assert_close(calls[-1], left, rtol=1e-5, atol=0)


def test_train_prints_a_table_and_says_that_a_cpu_is_no_gpu(rnn_lab):
    done = rnn_lab(*TRAIN, "--model", "e61:dim=16,depth=1", "--kernels", "reference")
    assert done.code == 0 and "how fast a GPU is" in done.err
    assert "recurrence reference" in done.out.splitlines()[-1]


def test_a_model_that_fails_is_a_row(rnn_lab, monkeypatch):
    def explode(*args):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr("rnn_lab.bench.train.make_step", explode)
    (row,) = rnn_lab(*TRAIN, "--model", "e61:dim=16,depth=1", "--json").json["rows"]
    assert row["status"] == "oom" and "too large" in row["reason"] and "ms" not in row


def test_an_interrupted_run_keeps_its_rows(rnn_lab, monkeypatch, tmp_path):
    def stop(*args):
        raise KeyboardInterrupt

    out = tmp_path / "page.json"
    monkeypatch.setattr("rnn_lab.bench.train._backends", lambda model: stop() if len(model.layers) == 2 else [])
    models = ["--model", "e61:dim=16,depth=1", "--model", "e61:dim=16,depth=2"]
    assert rnn_lab(*TRAIN, *models, "--out", str(out)).code == 130
    (row,) = json.loads(out.read_text())["rows"]
    assert row["status"] == "ok" and row["backends"] == []


def test_decode_json_has_rates_and_state_bytes(rnn_lab):
    done = rnn_lab(*DECODE, "--model", "e61:dim=16,depth=2", "--json")
    assert done.code == 0 and done.json.keys() == PAGE and done.json["kind"] == "bench-decode"
    one, three = done.json["rows"]
    assert (one["batch"], three["batch"]) == (1, 3) and one["status"] == "ok"
    # Width 32 in fp32, two layers.
    assert one["state_bytes"] == 2 * 32 * 4 and three["state_bytes"] == 3 * one["state_bytes"]
    assert one["tokens_per_s"] == pytest.approx(1e3 / one["ms"]["median"])


def test_decode_of_a_growing_state_runs_eagerly(rnn_lab):
    (row, _) = rnn_lab(*DECODE, "--model", "llama:dim=64,depth=1", "--json").json["rows"]
    assert row["status"] == "ok" and row["mode"] == "eager"


@pytest.mark.parametrize(
    "argv",
    [
        [*KERNELS, "--model", "e61:dim=16", "--model", "e999"],
        [*KERNELS, "--model", "e61:dim"],
        [*KERNELS, "--model", "e61:width=16"],
        [*KERNELS, "--model", "e61:dim=16,dim=32"],
        [*TRAIN, "--model", "e999"],
        [*TRAIN, "--model", "e61:dim=16", "--optimizer", "sgdd"],
        [*TRAIN, "--model", "e61:dim=16", "--optimizer", "muon:bit=8"],
        [*TRAIN, "--model", "e61:dim=16", "--optimizer", "muon:bits"],
        [*TRAIN, "--model", "e61:dim=16", "--preset", "nobody/knows"],
        [*DECODE[:-4], "--batch-size", "one"],
        [*DECODE[:-4], "--batch-size", "0"],
        [*KERNELS, "--device", "tpu"],
        [*KERNELS, "--seconds", "nan"],
        [*KERNELS, "--seconds", "-1"],
        [*KERNELS, "--limit", "nan"],
        [*KERNELS, "--dim", "0"],
        [*KERNELS, "--model", "e61:dim=16", "--op", "nothing"],
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_runs(rnn_lab, argv):
    done = rnn_lab(*argv)
    assert done.code == 2 and not done.out and ": ok" not in done.err


@pytest.mark.parametrize("bench", [KERNELS, TRAIN, DECODE, BACKWARD])
def test_a_folder_is_no_file_and_that_is_said_before_anything_is_measured(rnn_lab, tmp_path, bench):
    model = "e61" if bench is BACKWARD else "e61:dim=16,depth=1"
    done = rnn_lab(*bench, "--model", model, "--out", str(tmp_path))
    assert done.code == 2 and "this is a folder" in done.err and ": ok" not in done.err and not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_said(rnn_lab, tmp_path):
    (tmp_path / "file").touch()
    done = rnn_lab(*DECODE, "--model", "e61:dim=16,depth=1", "--out", str(tmp_path / "file" / "page.json"))
    assert done.code == 2 and "--out" in done.err


def test_spread_is_median_and_quartiles():
    assert Spread.of([3.0]).as_dict() == {"median": 3.0, "q1": 3.0, "q3": 3.0, "n": 1}
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(3.0, 2.0, 4.0, 5)


def test_busy_time_counts_what_overlaps_once():
    assert covered([]) == 0
    assert covered([(4, 6), (0, 2), (1, 3), (1, 2)]) == 5


@pytest.mark.parametrize(
    ("chunks", "told"), [({}, "recurrence dense"), ({"wavefront": 3}, "recurrence dense, 3 chunks")]
)
def test_a_row_and_a_summary_say_how_layers_share_the_gpu(chunks, told):
    row = {"backends": [{"op": "recurrence", "backend": "dense"}], **chunks}
    assert bench_command._backends(row).removesuffix(" at once") == told
    summary = "one CUDA graph" + (", layers on 3 chunks of time at once" if chunks else "")
    assert running._step({"used": True, "reason": None, **chunks}) == summary
    assert running._step({"used": False, "reason": "no GPU"}) == "launched from Python: no GPU"
