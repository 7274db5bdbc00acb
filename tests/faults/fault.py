"""h_t = tanh(x_t + h_{t-1}), until optimizer step `at`

A cell that fails on purpose, for tests of what has to survive it: `--plugins-dir tests/faults --also crash,nan`.

Parent      none.
Parameters  2*D*d per layer.
Aliases     crash: how = crash
            nan: how = nan
            hang: how = hang
            oom: how = oom
            slow: how = slow
"""

import os
import signal
import time
from typing import Literal

import torch
from pydantic import Field
from rnn_lab.layers import ProjectedConfig, ProjectedLayer


class Config(ProjectedConfig):
    """What happens, and when."""

    how: Literal["crash", "nan", "hang", "oom", "slow"] = Field(
        "nan", description="killed, not finite, silent, out of memory, 20 ms more in every step"
    )
    at: int = Field(20, ge=1, description="optimizer step of this process at which it happens")
    fits: int = Field(4, ge=1, description="sequences at once that an oom cell has memory for")


class Model(ProjectedLayer):
    """See the module docstring."""

    Config = Config

    def __init__(self, cfg):
        super().__init__(cfg)
        self.steps = 0

    @classmethod
    def cell_parts(cls, cfg):
        return {}

    def inputs(self, x_BTd):
        return (x_BTd,)

    @staticmethod
    def update(h, x):
        return torch.tanh(h + x)

    def prepare(self):
        self.steps += 1
        if self.cfg.how == "slow":
            time.sleep(0.02)
        if self.steps == self.cfg.at:
            if self.cfg.how == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.cfg.how == "hang":
                time.sleep(3600)

    def forward(self, x_BTD, state=None, reset_BT=None):
        if self.cfg.how == "oom" and self.training and x_BTD.shape[0] > self.cfg.fits:
            raise torch.OutOfMemoryError("planted")
        y_BTD, state = super().forward(x_BTD, state, reset_BT)
        poisoned = self.cfg.how == "nan" and self.steps >= self.cfg.at
        return (y_BTD * float("nan") if poisoned else y_BTD), state
