"""LM cases: layers, norms, tied embedding; a chunk, the chunk after it, and a loss over masked targets."""

import re

import torch
from rnn_lab.lm import LM, LMConfig
from torch import Tensor
from torch.nn import functional as F

from .cases import Case, CaseError
from .fields import Plan, vector_plan
from .links import Link, copy_in, link_all
from .measure import Entry
from .subject import DTYPES, Setting, gradients

SHELL_KEYS = ("vocab_size", "depth", "level")


def check_lm(case: Case, setting: Setting) -> list[Entry]:
    """A: chunk1 from zero states; B: chunk2 from A's states, detached; C: chunk1 with a masked loss."""
    ctor = case.table("ctor")
    layer_keys = {key: value for key, value in ctor.items() if key not in SHELL_KEYS}
    width = {"d_inner": case.sidecar["d_inner"]} if "d_inner" in case.sidecar else {}
    plan = vector_plan(case, layer_keys, case.table("level_resolved"), width)
    model = _build(plan, case, setting)
    links = _links(plan.model, model, case)
    copy_in(model, links, case)
    key = next(iter(plan.layer_cls.state_shapes(model.layer_cfg)))
    chunk1, chunk2 = (case.get(f"in.{name}").to(setting.device) for name in ("chunk1", "chunk2"))

    entries, hidden = _run(case, setting, model, links, chunk1, None, key, "A")
    states = []
    for h in hidden:
        state = model.layers[0].init_state(len(chunk1))  # type: ignore[operator]
        states.append(state | {key: h.detach()})
    more, _ = _run(case, setting, model, links, chunk2, states, key, "B")
    with setting.active(), torch.no_grad():
        logits, _ = model(chunk1[:, :-1])
    entries.append(Entry("A.logits", logits, case.get("A.logits")))
    counted = torch.arange(chunk1.shape[1] - 1)[None] < case.get("in.actual_length")[:, None] - 1
    targets = chunk1[:, 1:].masked_fill(~counted.to(setting.device), -100)
    loss = F.cross_entropy(logits.to(torch.float64).flatten(0, 1), targets.flatten())
    return [*entries, *more, Entry("C.loss", loss.reshape(1), case.get("C.loss"))]


def _build(plan: Plan, case: Case, setting: Setting) -> LM:
    ctor, norm = case.table("ctor"), str(case.sidecar.get("norm"))
    said = re.match(r"(LayerNorm|RMSNorm)\(eps=([0-9.e+-]+)", norm)
    if not said:
        raise CaseError(f"norm {norm!r} is none of ours")
    if ctor.get("vocab_size", 256) != 256:
        raise CaseError(f"config key 'vocab_size' = {ctor['vocab_size']}: ours is 256")
    kind = "rms" if said[1] == "RMSNorm" else "layer"
    config = LMConfig(depth=ctor["depth"], norm=kind, norm_eps=float(said[2]))
    layer_cfg = plan.config()
    if plan.expect.get("d_inner", 0) not in (0, getattr(layer_cfg, "d_inner", layer_cfg.dim)):
        raise CaseError(f"config key 'd_inner' = {plan.expect['d_inner']}, but ours is {layer_cfg.d_inner}")
    return LM(plan.layer_cls, layer_cfg, config).to(setting.device, DTYPES[setting.dtype])


def _links(name: str, model: LM, case: Case) -> dict[str, Link]:
    """Links by source name: `layers.i.` by the layer's own rules, norms and embedding by position."""
    links = {"embedding.weight": Link("embedding.weight")}
    for i, layer in enumerate(model.layers):
        prefix = f"layers.{i}."
        inner = link_all(name, layer, case, prefix)  # type: ignore[arg-type]
        links |= {prefix + source: Link(prefix + link.own, link.take) for source, link in inner.items()}
    for source in case.parameters():
        if found := re.fullmatch(r"(layer_norms\.(\d+)|norm)\.(weight|bias)", source):
            own = f"norms.{found[2]}" if found[2] else "final_norm"
            links[source] = Link(f"{own}.{found[3]}")
        elif source not in links:
            raise CaseError(f"tensor param.{source} has no counterpart in our language model")
    return links


def _run(
    case: Case,
    setting: Setting,
    model: LM,
    links: dict[str, Link],
    chunk: Tensor,
    states: list[dict[str, Tensor]] | None,
    key: str,
    run: str,
) -> tuple[list[Entry], list[Tensor]]:
    with setting.active():
        loss, new = model.loss(chunk, states)
    for layer in model.layers:
        setting.no_fallback(layer)  # type: ignore[arg-type]
    entries = [Entry(f"{run}.loss", loss.reshape(1), case.get(f"{run}.loss"))]
    entries += gradients(model, loss, {}, links, case, (f"{run}.grad.",) * 2)
    hidden = [state[key] for state in new]
    entries += [Entry(f"{run}.hidden.{i}", h, case.get(f"{run}.hidden.{i}")) for i, h in enumerate(hidden)]
    return entries, hidden
