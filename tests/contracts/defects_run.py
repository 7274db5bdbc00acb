"""Defects of what a model computes."""

from dataclasses import replace

import torch
from rnn_lab.kernels.dispatch import Backend
from rnn_lab.kernels.recurrence import RECURRENCE, reference
from rnn_lab.parts import CausalConv

from .planting import Ground, defect


@defect("causal", "e61")
def leak_from_the_next_step(ground: Ground):
    class Model(ground.Model):
        def inputs(self, x_BTd):
            return super().inputs(x_BTd + 1e-4 * torch.cat([x_BTd[:, 1:], x_BTd[:, -1:]], 1))

    return Model


@defect("causal", "gru")
def leak_between_sequences(ground: Ground):
    class Model(ground.Model):
        def output(self, o_BTd, x_BTd, z_BTd):
            return o_BTd + 1e-4 * o_BTd.mean(0, keepdim=True)

    return Model


@defect("streaming", "e74", use_conv=True)
def convolution_past_dropped_at_a_boundary(ground: Ground):
    class Model(ground.Model):
        def forward(self, x_BTD, state=None, reset_BT=None):
            if state is not None:
                state = {**state, "conv": torch.zeros_like(state["conv"])}
            return super().forward(x_BTD, state, reset_BT)

    return Model


@defect("streaming", "lstm")
def step_with_another_cell_state(ground: Ground):
    class Model(ground.Model):
        def step(self, x_BD, state):
            y_BD, new = super().step(x_BD, state)
            return y_BD, {"h": new["h"] * (1 - 1e-6)}

    return Model


class ForgetfulConv(CausalConv):
    def forward(self, x_BTd, past_BKd, reset_BT=None, *, silu=False):
        return super().forward(x_BTd, past_BKd, None, silu=silu)


@defect("reset", "e61", use_conv=True)
def reset_forgets_the_convolution_past(ground: Ground):
    class Model(ground.Model):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.conv.__class__ = ForgetfulConv

    return Model


@defect("reset", "e88")
def reset_ignored_at_the_first_step(ground: Ground):
    class Model(ground.Model):
        def forward(self, x_BTD, state=None, reset_BT=None):
            if reset_BT is not None:
                reset_BT = torch.cat([torch.zeros_like(reset_BT[:, :1]), reset_BT[:, 1:]], 1)
            return super().forward(x_BTD, state, reset_BT)

    return Model


@defect("reset", "llama")
def growing_state_forgets_the_reset(ground: Ground):
    class Model(ground.Model):
        def forward(self, x_BTD, state=None, reset_BT=None):
            state = self.init_state(len(x_BTD)) if state is None else state
            y_BTD, new = super().forward(x_BTD, state, reset_BT)
            return y_BTD, {**new, "start": state["start"]}

    return Model


@defect("gradients", "e68")
def initial_state_detached(ground: Ground):
    class Model(ground.Model):
        def run_cell(self, x_BTd, h, reset_BT=None):
            return super().run_cell(x_BTd, h.detach(), reset_BT)

    return Model


@defect("gradients", "gru")
def half_the_gradient_of_the_initial_state(ground: Ground):
    class Model(ground.Model):
        def run_cell(self, x_BTd, h, reset_BT=None):
            return super().run_cell(x_BTd, (h + h.detach()) / 2, reset_BT)

    return Model


@defect("gradients", "e74")
def final_state_detached(ground: Ground):
    class Model(ground.Model):
        def run_cell(self, x_BTd, h, reset_BT=None):
            o_BTn, h = super().run_cell(x_BTd, h, reset_BT)
            return o_BTn, h.detach()

    return Model


@defect("gradients", "e61")
def gradient_truncated_at_resets(ground: Ground):
    class Model(ground.Model):
        def run_cell(self, x_BTd, h, reset_BT=None):
            x_BTd = x_BTd if reset_BT is None else x_BTd.detach()
            return super().run_cell(x_BTd, h, reset_BT)

    return Model


@defect("gradients", "e68")
def parameter_frozen_without_a_declaration(ground: Ground):
    class Model(ground.Model):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.b_g.requires_grad_(False)

    return Model


def wrong_kernel(ground: Ground, run) -> type:
    fake = Backend("fake", run, lambda *args: None)
    ground.monkeypatch.setattr(RECURRENCE, "backends", [fake])
    return ground.Model


@defect("backends", "e61")
def kernel_with_a_small_error(ground: Ground):
    def run(*args):
        o, h = reference(*args)
        return o * (1 + 3e-5), h

    return wrong_kernel(ground, run)


@defect("backends", "e74")
def kernel_that_drops_a_gradient(ground: Ground):
    def run(cell, h, inputs, weights, queries, reset_BT):
        return reference(cell, h, (inputs[0].detach(), *inputs[1:]), weights, queries, reset_BT)

    return wrong_kernel(ground, run)


@defect("backends", "gru")
def kernel_that_ignores_resets(ground: Ground):
    def run(cell, h, inputs, weights, queries, reset_BT):
        return reference(cell, h, inputs, weights, queries, None)

    return wrong_kernel(ground, run)


@defect("backends", "e88")
def kernel_that_leaves_its_output_unwritten(ground: Ground):
    def run(*args):
        o, h = reference(*args)
        unwritten = torch.empty_like(o)
        return torch.cat([o[:, :-1], unwritten[:, -1:]], 1), h

    return wrong_kernel(ground, run)


@defect("backends", "e68")
def reference_that_is_not_recorded(ground: Ground):
    class Model(ground.Model):
        def run_cell(self, x_BTd, h, reset_BT=None):
            results = super().run_cell(x_BTd, h, reset_BT)
            self.backends["recurrence"] = replace(self.backends["recurrence"], backend="guess")
            return results

    return Model


@defect("state-precision", "e61")
def state_returned_in_bf16(ground: Ground):
    class Model(ground.Model):
        def run_cell(self, x_BTd, h, reset_BT=None):
            o_BTd, h = super().run_cell(x_BTd, h, reset_BT)
            return o_BTd, h.bfloat16() if torch.is_autocast_enabled("cpu") else h

    return Model


@defect("state-precision", "e74")
def state_rounded_to_bf16_inside(ground: Ground):
    class Model(ground.Model):
        def cell(self):
            cell = super().cell()

            def rounded(S, *args):
                S = cell.update(S, *args)
                return S.bfloat16().float() if self.low else S

            return replace(cell, update=rounded)

        def forward(self, *args):
            self.low = torch.is_autocast_enabled("cpu")
            return super().forward(*args)

    return Model


@defect("bf16", "e61")
def epsilon_that_bf16_rounds_away(ground: Ground):
    class Model(ground.Model):
        def output(self, o_BTd, x_BTd, z_BTd):
            one = torch.ones_like(x_BTd)
            epsilon = (one + 1e-3) - one
            return super().output(o_BTd, x_BTd, z_BTd) * (epsilon / epsilon)

    return Model


@defect("learns", "e1")
def output_that_hardly_arrives(ground: Ground):
    class Model(ground.Model):
        def forward(self, x_BTD, state=None, reset_BT=None):
            y_BTD, state = super().forward(x_BTD, state, reset_BT)
            return y_BTD * 1e-12, state

    return Model


@defect("learns", "e68")
def blows_up_once_trained(ground: Ground):
    class Model(ground.Model):
        def output(self, o_BTd, x_BTd, z_BTd):
            moved = (self.d_g - 0.5).abs().mean()
            return super().output(o_BTd, x_BTd, z_BTd) * torch.where(moved > 0.1, torch.inf, 1.0)

    return Model


@defect("learns", "e74d")
def declared_to_diverge_without_doing_so(ground: Ground):
    class Model(ground.Model):
        @classmethod
        def diverges(cls, cfg):
            return "a bound is missing"

    return Model


@defect("compile", "gru")
def graph_break(ground: Ground):
    class Model(ground.Model):
        def output(self, o_BTd, x_BTd, z_BTd):
            return o_BTd if o_BTd.detach().sum().item() < 1e9 else -o_BTd

    return Model


@defect("compile", "e88")
def other_results_when_compiled(ground: Ground):
    class Model(ground.Model):
        def forward(self, x_BTD, state=None, reset_BT=None):
            y_BTD, state = super().forward(x_BTD, state, reset_BT)
            return (y_BTD * 1.001 if torch.compiler.is_compiling() else y_BTD), state

    return Model
