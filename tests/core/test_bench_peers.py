"""Peers load only when they are measured, and what keeps one from loading is a reason."""

import sys
from types import SimpleNamespace

import pytest
import torch
from rnn_lab.bench.shells import foreign_model
from rnn_lab.config import ModelSection
from rnn_lab.discovery import libraries
from rnn_lab.discovery.libraries import MissingLibrary, load, load_flashrnn, load_gated_delta_rule, refuses_tile
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry
from torch import nn

LIBRARIES = {"fla", "flashrnn", "mamba_ssm", "brokenlib"}


def forget():
    """Take the libraries out of sys.modules; what was there."""
    load.cache_clear()
    load_gated_delta_rule.cache_clear()
    load_flashrnn.cache_clear()
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in LIBRARIES}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts files where Python finds them first, for one test."""
    before = forget()
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    yield put
    forget()
    sys.modules.update(before)


def test_a_library_that_is_not_there_is_missing():
    with pytest.raises(MissingLibrary, match="nowhere is not installed"):
        load("nowhere.at.all")


def test_a_library_that_does_not_import_says_why(installed):
    installed({"brokenlib.py": "raise OSError('libsomething.so')"})
    with pytest.raises(MissingLibrary, match=r"OSError: libsomething\.so"):
        load("brokenlib")


def test_mamba2_loads_without_the_extension_of_mamba1(installed):
    ops = "mamba_ssm/ops"
    installed(
        {
            "mamba_ssm/__init__.py": "import selective_scan_cuda",
            f"{ops}/__init__.py": "",
            f"{ops}/triton/__init__.py": "",
            f"{ops}/triton/ssd_combined.py": "scan = 'the scan'",
        }
    )
    assert load("mamba_ssm.ops.triton.ssd_combined").scan == "the scan"


@pytest.mark.parametrize("hopper, above, changed", [(True, False, True), (True, True, False), (False, False, False)])
def test_fla_gets_the_right_tile_where_it_refuses(installed, hopper, above, changed):
    flags = f"IS_NVIDIA_HOPPER = {hopper}\nTRITON_ABOVE_3_4_0 = True\nTRITON_ABOVE_3_7_1 = {above}\n"
    refusing = (
        "def check_shared_mem(*_):\n    return True\n"
        "def chunk_bwd_dqkwg():\n    assert not (IS_NVIDIA_HOPPER and not TRITON_ABOVE_3_7_1)\n"
        "    return 128 if check_shared_mem('hopper') else 32\n"
    )
    packages = ("fla", "fla/ops", "fla/ops/common", "fla/ops/gated_delta_rule")
    installed({f"{package}/__init__.py": "" for package in packages})
    installed(
        {
            "fla/ops/common/chunk_o.py": flags + refusing,
            "fla/ops/gated_delta_rule/__init__.py": "from . import chunk\n",
            "fla/ops/gated_delta_rule/chunk.py": "from fla.ops.common.chunk_o import chunk_bwd_dqkwg\n",
        }
    )
    load_gated_delta_rule()
    assert refuses_tile() == changed
    chunk = load("fla.ops.gated_delta_rule.chunk")
    assert chunk.chunk_bwd_dqkwg() == (32 if changed else 128)


def test_flashrnn_asks_torch_about_the_gpu(installed, monkeypatch):
    inner = "from .query import get_gpu_info\ndef plan(): return get_gpu_info(0)"
    installed(
        {
            "flashrnn/__init__.py": "from .flashrnn import flashrnn",
            "flashrnn/flashrnn/__init__.py": "from .flashrnn import plan as flashrnn",
            "flashrnn/flashrnn/query.py": "def get_gpu_info(device_id): raise OSError('does not compile')",
            "flashrnn/flashrnn/flashrnn.py": inner,
        }
    )
    told = SimpleNamespace(
        multi_processor_count=132, regs_per_multiprocessor=65536, shared_memory_per_block_optin=232448
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: told)
    found = load_flashrnn().flashrnn()
    assert found == {
        "maxThreadsPerBlock": 1024, "multiProcessorCount": 132, "regsPerMultiprocessor": 65536,
        "sharedMemPerBlockOptin": 232448,
    }  # fmt: skip


def test_a_foreign_block_trains_in_our_shell(monkeypatch):
    spec = model_spec(ModelSection(name="mamba2", depth=2, fields={"dim": 64}), registry())
    monkeypatch.setattr(spec.layer_cls, "peers", {"their block": lambda cfg, index: Tupled(cfg.dim)})
    model = foreign_model(spec.build(), "their block")
    model.prepare()
    loss, _ = model.loss(torch.randint(256, (2, 9)))
    loss.backward()
    assert all(layer.block.linear.weight.grad.abs().sum() > 0 for layer in model.layers)


class Tupled(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x):
        return self.linear(x), None


def test_peers_of_the_baselines_are_named_and_need_their_libraries(monkeypatch):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    load.cache_clear()
    load_gated_delta_rule.cache_clear()
    for model, peer, library in (("mamba2", "mamba-ssm Mamba2", "mamba_ssm"), ("gdn", "fla GatedDeltaNet", "fla")):
        cls = registry().find_model(model)[0].load()
        if library in sys.modules:
            continue
        with pytest.raises(MissingLibrary, match=f"{library} is not installed"):
            cls.peers[peer](cls.Config(), 0)
    load.cache_clear()
