"""Defects of what a model claims and how it is built, saved and prepared."""

import os
import random
import re
import sys
from importlib import metadata

import torch
from pydantic import ConfigDict
from rnn_lab.registry import build_registry

from .planting import Ground, defect


@defect("discovery", "e1")
def torch_at_discovery(ground: Ground):
    package, info = ground.tmp_path / "rnn_lab_heavy", ground.tmp_path / "rnn_lab_heavy-0.1.dist-info"
    package.mkdir()
    info.mkdir()
    hook = (ground.ref.path.parent / "__init__.py").read_text()
    (package / "__init__.py").write_text(hook + "\nimport torch\n")
    (package / "heavy.py").write_text(ground.ref.path.read_text().replace("Aliases     1:", ""))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rnn-lab-heavy\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[rnn_lab]\nheavy = rnn_lab_heavy\n")
    ground.monkeypatch.syspath_prepend(ground.tmp_path)
    ground.monkeypatch.setenv("RNN_LAB_LOAD_PLUGINS", "heavy")
    assert "heavy" in {point.name for point in metadata.entry_points(group="rnn_lab")}
    ref = build_registry().models["heavy"]
    for name in ("rnn_lab_heavy", "rnn_lab_heavy.heavy"):
        ground.monkeypatch.delitem(sys.modules, name, raising=False)
    return ref


@defect("discovery", "e61")
def file_without_a_docstring(ground: Ground):
    folder = ground.tmp_path / "family"
    folder.mkdir()
    text = re.sub(r"(?ms)^Aliases.*?(?=^Source)", "", ground.ref.path.read_text())
    (folder / "fine.py").write_text(text)
    ref = build_registry(folder).models["fine"]
    ref.load()
    (folder / "fine.py").write_text(text.partition('\n"""\n')[2])
    return ref


@defect("config", "e74")
def permissive_config(ground: Ground):
    class Config(ground.Model.Config):
        model_config = ConfigDict(extra="allow")

    return type("Model", (ground.Model,), {"Config": Config})


@defect("config", "e88")
def mutable_config(ground: Ground):
    class Config(ground.Model.Config):
        model_config = ConfigDict(frozen=False)

    return type("Model", (ground.Model,), {"Config": Config})


@defect("config", "gru")
def undescribed_field(ground: Ground):
    class Config(ground.Model.Config):
        secret: int = 3

    return type("Model", (ground.Model,), {"Config": Config})


@defect("shapes", "gru")
def batch_axis_last(ground: Ground):
    class Model(ground.Model):
        def forward(self, x_BTD, state=None, reset_BT=None):
            state = None if state is None else {"h": state["h"].transpose(0, 1)}
            y_BTD, state = super().forward(x_BTD, state, reset_BT)
            return y_BTD, {"h": state["h"].transpose(0, 1)}

    return Model


@defect("shapes", "e61")
def last_step_never_written(ground: Ground):
    class Model(ground.Model):
        def output(self, o_BTd, x_BTd, z_BTd):
            y_BTd = torch.empty_like(o_BTd)
            y_BTd[:, :-1] = super().output(o_BTd, x_BTd, z_BTd)[:, :-1]
            return y_BTd

    return Model


@defect("shapes", "e68")
def fp32_output_of_an_fp64_layer(ground: Ground):
    class Model(ground.Model):
        def forward(self, x_BTD, state=None, reset_BT=None):
            y_BTD, state = super().forward(x_BTD, state, reset_BT)
            return y_BTD.float(), state

    return Model


@defect("count", "e61")
def off_by_one_closed_form(ground: Ground):
    class Model(ground.Model):
        @classmethod
        def n_params(cls, cfg):
            counts = super().n_params(cfg)
            return counts | {"leak": counts["leak"] + 1}

    return Model


@defect("count", "e88")
def parameter_outside_the_parts(ground: Ground):
    class Model(ground.Model):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.extra = torch.nn.Parameter(torch.zeros(3))

    return Model


@defect("flops", "e74")
def flops_without_the_read_out(ground: Ground):
    class Model(ground.Model):
        @classmethod
        def recurrence_flops(cls, cfg, seq_len):
            return super().recurrence_flops(cfg, seq_len) - 2 * cfg.n_state**2

    return Model


@defect("flops", "e1")
def product_per_step_that_no_counter_sees(ground: Ground):
    class Model(ground.Model):
        def output(self, o_BTd, x_BTd, z_BTd):
            with torch.no_grad():
                for o_Bd in o_BTd.unbind(1):
                    torch.mv(self.W_x.weight, o_Bd[0])
            return super().output(o_BTd, x_BTd, z_BTd)

    return Model


@defect("state-bytes", "e61", use_conv=True)
def state_bytes_without_the_convolution(ground: Ground):
    class Model(ground.Model):
        @classmethod
        def state_bytes(cls, cfg, seq_len):
            return 4 * cfg.d_inner

    return Model


@defect("deterministic", "e1")
def init_by_another_generator(ground: Ground):
    class Model(ground.Model):
        def __init__(self, cfg):
            super().__init__(cfg)
            with torch.no_grad():
                self.W_x.weight.mul_(1 + random.random())

    return Model


@defect("deterministic", "e68")
def init_by_what_was_built_before(ground: Ground):
    class Model(ground.Model):
        built = 0

        def __init__(self, cfg):
            super().__init__(cfg)
            type(self).built += 1
            with torch.no_grad():
                self.d_g.fill_(0.5 + 0.01 * self.built)

    return Model


@defect("prepare", "e1")
def power_iteration_in_forward(ground: Ground):
    class Model(ground.Model):
        def weights(self):
            self.W_h.prepare()
            return super().weights()

    return Model


@defect("prepare", "e74")
def state_written_in_place(ground: Ground):
    class Model(ground.Model):
        def forward(self, x_BTD, state=None, reset_BT=None):
            y_BTD, new = super().forward(x_BTD, state, reset_BT)
            if state is not None and not state["h"].requires_grad:
                state["h"].copy_(new["h"].detach())
            return y_BTD, new

    return Model


@defect("save-load", "e61")
def buffer_of_one_backend(ground: Ground):
    class Model(ground.Model):
        def __init__(self, cfg):
            super().__init__(cfg)
            if os.environ.get("RNN_LAB_KERNELS") == "reference":
                self.register_buffer("packed", torch.zeros(cfg.d_inner))

    return Model


@defect("save-load", "gru")
def buffer_that_is_not_saved(ground: Ground):
    class Model(ground.Model):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.register_buffer("tilt", torch.randn(cfg.d_inner), persistent=False)

        def output(self, o_BTd, x_BTd, z_BTd):
            return o_BTd * self.tilt

    return Model
