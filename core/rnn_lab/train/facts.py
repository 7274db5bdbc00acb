"""What diagnostics have to know of a run before it begins."""

import torch

from rnn_lab.config import RunConfig
from rnn_lab.diagnostics.rule import Facts
from rnn_lab.lm import LM, VOCAB
from rnn_lab.optim.plan import unsaved_share, wider_rank
from rnn_lab.optim.routed import RoutedOptimizer
from rnn_lab.optim.state_bytes import measured, predicted
from rnn_lab.train.budget import Budget
from rnn_lab.train.device import pick_dtype
from rnn_lab.train.schedule import total_steps, warmup_steps
from rnn_lab.train.step import TrainStep


def facts_of(cfg: RunConfig, model: LM, optimizer: torch.optim.Optimizer, step: TrainStep) -> Facts:
    """The facts of a run whose model and optimizer are on their device."""
    device = model.embedding.weight.device
    total = total_steps(Budget.of(cfg.train))
    plain = cfg.schedule.type == "none"
    return Facts(
        cfg=cfg,
        total_steps=total,
        warmup_steps=cfg.optimizer.warmup_steps if plain else warmup_steps(cfg.schedule, total),
        muon=isinstance(optimizer, RoutedOptimizer) and cfg.optimizer.name != "galore_adamw",
        memory=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        needs=_needs(cfg, model, optimizer),
        unsaved=unsaved_share(model, cfg.optimizer),
        wider=wider_rank(model, cfg.optimizer),
        backward=step.backward_seconds,
    )


def _needs(cfg: RunConfig, model: LM, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes that training takes at least: of activations only the residual stream before every block, and logits."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    try:
        state = sum(predicted(model, cfg.optimizer.name, cfg.optimizer).values())
    except KeyError:
        state = sum(measured(optimizer).values())
    positions = cfg.train.batch_size // cfg.train.grad_accum * cfg.train.seq_len
    wide = 2 if pick_dtype(cfg.train.dtype, model.embedding.weight.device) == torch.bfloat16 else 4
    activations = positions * (4 * model.cfg.depth * int(model.layer_cfg.dim) + wide * VOCAB)
    return {"weights": weights, "gradients": trained, "optimizer state": state, "activations at least": activations}
