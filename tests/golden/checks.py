"""What is compared in a case: one function per format, each giving every comparison that the case allows."""

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .cases import Case, CaseError
from .fields import matrix_plan, vector_plan
from .lm_check import check_lm
from .measure import Entry, signed_scale
from .subject import Setting, Subject

View = Callable[[Tensor], Tensor]


def check(case: Case, setting: Setting) -> list[Entry]:
    """Run the case and list every comparison.

    Raises:
        CaseError: something in the case cannot be read, mapped or checked.
        NotInstalledError: its model is not registered.

    """
    if "in.chunk1" in case:
        entries = check_lm(case, setting)
    elif "ctor" in case.sidecar:
        entries = check_vector(case, setting)
    elif "config" in case.sidecar:
        entries = check_matrix(case, setting)
    else:
        raise CaseError(f"{case.name}.json has neither 'ctor' nor 'config': not a golden case")
    if left := case.unchecked():
        raise CaseError(f"unchecked tensor {', '.join(left)}")
    return entries


def check_vector(case: Case, setting: Setting) -> list[Entry]:
    """Runs A (zero state) and B (state in.h0, and a gradient from the last state)."""
    plan = vector_plan(case, case.table("ctor"), case.table("resolved"), _stated(case))
    subject = Subject(plan, case, setting)
    return [*_vector_run(case, subject, "A"), *_vector_run(case, subject, "B")]


def _stated(case: Case) -> dict[str, object]:
    return {key: case.sidecar[key] for key in ("dim", "d_inner") if key in case.sidecar}


def _vector_run(case: Case, subject: Subject, run: str) -> list[Entry]:
    tensor = subject.setting.tensor
    x, dout = tensor(case.get("in.x"), grad=True), tensor(case.get("in.dout"))
    h = tensor(case.get("in.h0"), grad=True) if run == "B" else None
    y, last = subject.forward(x, h)
    terms = [y * dout] + ([last * tensor(case.get("in.dh_final"))] if run == "B" else [])
    loss = torch.stack([term.sum() for term in terms]).sum()
    entries = [
        Entry(f"{run}.out", y, case.get(f"{run}.out")),
        Entry(f"{run}.h_final", last, case.get(f"{run}.h_final")),
    ]
    if f"{run}.loss" in case:
        entries.append(Entry(f"{run}.loss", loss.reshape(1), case.get(f"{run}.loss"), scale=signed_scale(*terms)))
    if f"{run}.cell_out" in case and subject.pre_out is not None:
        entries.append(Entry(f"{run}.cell_out", subject.pre_out.transpose(0, 1), case.get(f"{run}.cell_out")))
    elif f"{run}.cell_out" in case:  # without an output projection the layer's output is the cell's
        entries.append(Entry(f"{run}.cell_out", y.transpose(0, 1), case.get(f"{run}.cell_out")))
    if "aux.u_after" in case:
        for module in subject.starts:
            entries.append(Entry("aux.u_after", module.get_buffer("u").clone(), case.get("aux.u_after")))
    leaves = {"x": x} | ({"h0": h} if h is not None else {})
    prefixes = (f"{run}.grad.", f"{run}.grad.param.")
    entries += subject.gradients(loss, leaves, case, prefixes)
    if f"{run}.h_all" in case:
        first = torch.zeros_like(last) if h is None else h
        got = torch.cat([first[None], subject.trajectory(x, h)])
        entries.append(Entry(f"{run}.h_all", got, _batch_second(case, case.get(f"{run}.h_all"))))
    return entries


def _batch_second(case: Case, h_all: Tensor) -> Tensor:
    """h_all with the batch on axis 1, wherever the sidecar's layout has it."""
    axes = str(case.table("layouts").get("h_all", "[T+1,B]")).strip("[]").split(",")
    return h_all.movedim(axes.index("B"), 1)


def check_matrix(case: Case, setting: Setting) -> list[Entry]:
    """A run from in.S0, or zeros; its gradients without and with the last state; a run from zeros."""
    subject = Subject(matrix_plan(case), case, setting)
    tensor, turn = setting.tensor, _time_axis(case)
    state = _state_view(case, subject, turn)
    x = tensor(turn(case.get("in.x")), grad=True)
    h = tensor(state(case.get("in.S0")), grad=True) if "in.S0" in case else None
    y, last = subject.forward(x, h)
    entries = [Entry("out.y", y, turn(case.get("out.y")))]
    if "mid.pre_out" in case:
        entries.append(_pre_out(case, subject, turn(case.get("mid.pre_out"))))
    leaves = {"x": x} | ({"S0": h} if h is not None else {})
    loss = (y * tensor(turn(case.get("cot.dy")))).sum()
    entries += _turned(subject.gradients(loss, leaves, case, ("grad.", "grad.")), turn, state)
    if "out.S_final" in case:
        entries.append(Entry("out.S_final", last, state(case.get("out.S_final"))))
        loss = loss + (last * tensor(state(case.get("cot.dS_final")))).sum()
        entries += _turned(subject.gradients(loss, leaves, case, ("gradS.", "gradS.")), turn, state)
    if "mid.S_traj" in case:
        entries.append(Entry("mid.S_traj", subject.trajectory(x, h), state(case.get("mid.S_traj"))))
    if "out.y_zero_state" in case:
        y, last = subject.forward(x)
        entries.append(Entry("out.y_zero_state", y, turn(case.get("out.y_zero_state"))))
        if "out.S_final_zero_state" in case:
            golden = state(case.get("out.S_final_zero_state"))
            entries.append(Entry("out.S_final_zero_state", last, golden))
    return entries


def _turned(entries: list[Entry], turn: View, state: View) -> list[Entry]:
    """Gradients of x and S0, golden side in our layout."""
    views = {"x": turn, "S0": state}
    return [replace(entry, golden=views.get(entry.what.partition(".")[2], _same)(entry.golden)) for entry in entries]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _time_axis(case: Case) -> View:
    """From the case's layout of x and y to batch first."""
    batch, steps = case.sidecar.get("B"), case.sidecar.get("T")
    shape = list(case.get("in.x").shape[:2])
    said = f"{(case.sidecar.get('symbols') or {}).get('in.x', '')} {case.sidecar.get('note', '')}"
    time_first = shape == [steps, batch] if batch != steps else bool(re.search(r"\[T,|time-major", said))
    if shape != ([steps, batch] if time_first else [batch, steps]):
        raise CaseError(f"tensor in.x has shape {shape}..., the sidecar says B = {batch}, T = {steps}")
    return (lambda t: t.transpose(0, 1)) if time_first else _same


def _state_view(case: Case, subject: Subject, turn: View) -> View:
    """From the case's layout of the state to ours.

    Ours are one tensor [B, ...]. A stack of h and c may have layouts that shapes cannot tell apart; the one
    whose h is the last output is right.
    """
    ours = subject.layer.state_shapes(subject.layer.cfg)[subject.key]
    if not (subject.cell_only and len(ours) == 2 and ours[0] == 2 and "out.S_final" in case):
        return _same
    layouts: list[View] = [
        _same,
        lambda t: t.transpose(-3, -2),
        lambda t: t.reshape(*t.shape[:-1], 2, t.shape[-1] // 2),
    ]
    h_last, final = turn(case.get("out.y"))[:, -1], case.get("out.S_final")
    for layout in layouts if final.dim() == 3 else layouts[2:]:
        view = layout(final)
        if view.shape[1:] == ours and torch.allclose(view[:, 0], h_last, rtol=0, atol=1e-13):
            return layout
    raise CaseError(f"tensor out.S_final, {list(final.shape)}, holds h and c in no layout that we know")


def _pre_out(case: Case, subject: Subject, golden: Tensor) -> Entry:
    """Input of the output projection: as it is, heads apart, or the head that the source's hook saw."""
    if subject.pre_out is None:
        raise CaseError("unchecked tensor mid.pre_out: our layer has no output projection")
    got = subject.pre_out.detach()
    if got.shape == golden.shape or got.numel() != golden.numel():
        width = golden.shape[-1]
        if got.shape[:-1] == golden.shape[:-1] and got.shape[-1] % width == 0:
            got = min(torch.split(got, width, -1), key=lambda part: float((part.cpu() - golden).abs().max()))
        return Entry("mid.pre_out", got, golden)
    return Entry("mid.pre_out", got.reshape(golden.shape), golden)
