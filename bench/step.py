"""A training step of the lab against a plain PyTorch loop of the same model, in turn, on the same bytes.

The plain side is what a person would write by hand for this one model: no registry, no states, no clock, no record.
Both sides begin with equal weights; their losses are compared in every step.
"""

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rnn_lab.config import Layer
from rnn_lab.data import RandomWindows, open_split
from rnn_lab.registry import registry
from rnn_lab.train.run import Plan, build, plan_run, start_run
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn
from torch.nn import functional as F

WARM, STEPS = 3, 20


class PlainE1(nn.Module):
    """E1 by hand: two-branch projection, tanh recurrence under a spectral norm of 0.99, gate."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.W_x = nn.Linear(inner, inner)
        self.W_h = nn.Parameter(torch.empty(inner, inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.register_buffer("u", torch.empty(inner))
        self.register_buffer("v", torch.empty(inner))

    @torch.no_grad()
    def power_iteration(self) -> None:
        """Three rounds, once per step."""
        for _ in range(3):
            v = self.W_h.T @ self.u
            self.v = v / (v.norm() + 1e-8)
            u = self.W_h @ self.v
            self.u = u / (u.norm() + 1e-8)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Loop over time."""
        a, z = self.in_proj(x_BTD).chunk(2, -1)
        u_T = self.W_x(F.silu(a)).unbind(1)
        W = (self.W_h * (0.99 / (torch.dot(self.u, self.W_h @ self.v).abs() + 1e-8))).T
        h = torch.zeros_like(u_T[0])
        out = []
        for u in u_T:
            h = torch.tanh(torch.addmm(u, h, W))
            out.append(h)
        return self.out_proj(torch.stack(out, 1) * F.silu(z))


class PlainLM(nn.Module):
    """Embedding, pre-norm residual layers, tied head."""

    def __init__(self, dim: int, inner: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, dim)
        self.norms = nn.ModuleList(nn.RMSNorm(dim, eps=1e-5) for _ in range(depth))
        self.layers = nn.ModuleList(PlainE1(dim, inner) for _ in range(depth))
        self.final_norm = nn.RMSNorm(dim, eps=1e-5)

    def forward(self, bytes_BT1: Tensor) -> Tensor:
        """Mean next-byte loss."""
        x = self.embedding(bytes_BT1[:, :-1])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        logits = F.linear(self.final_norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), bytes_BT1[:, 1:].flatten())


class PlainSide:
    """Takes the lab's place in the training loop as its observer, and trains a step of its own after each."""

    def __init__(self, plan: Plan) -> None:
        cfg = plan.resolved.config
        lab, _ = build(plan, registry())
        self.model = PlainLM(plan.spec.layer_cfg.dim, plan.spec.layer_cfg.d_inner, plan.spec.lm_cfg.depth)
        weights = {name.replace("W_h.weight", "W_h"): t for name, t in lab.state_dict().items()}
        weights = {name.replace("W_h.u", "u").replace("W_h.v", "v"): t for name, t in weights.items()}
        self.model.load_state_dict(weights)
        self.optimizer = AdamWScheduleFree(
            self.model.parameters(), lr=cfg.optimizer.lr, weight_decay=cfg.optimizer.weight_decay,
            betas=cfg.optimizer.betas, eps=cfg.optimizer.eps,
        )  # fmt: skip
        self.optimizer.train()
        split = open_split(str(cfg.data.path), seq_len=cfg.train.seq_len)
        self.sampler = RandomWindows(split.train, cfg.train.seed, cfg.train.batch_size, cfg.train.seq_len)
        self.clip = cfg.train.clip
        self.lab_times: list[float] = []
        self.plain_times: list[float] = []
        self.worst = 0.0
        self.lab_began = 0.0

    def step(self, line: dict[str, Any], fraction: float) -> None:
        """After a step of the lab, all its bookkeeping included: book it, then take the same step by hand."""
        began = time.perf_counter()
        if line["step"] > WARM:
            self.lab_times.append(began - self.lab_began)
        loss = self._plain_step(line["step"])
        if line["step"] > WARM:
            self.plain_times.append(time.perf_counter() - began)
        self.worst = max(self.worst, abs(loss - line["loss"]))
        self.lab_began = time.perf_counter()

    def note(self, text: str) -> None:
        """Nothing to say."""

    def _plain_step(self, k: int) -> float:
        bytes_BT1 = torch.from_numpy(self.sampler.batch(k).bytes_BT1).long()
        for layer in self.model.layers:
            layer.power_iteration()
        loss = self.model(bytes_BT1)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def compare_steps(folder: Path) -> tuple[float, float, float, int]:
    """Median seconds of a step of the lab and of the plain loop, the largest difference of losses, timed steps."""
    values = {
        "model": {"name": "e1", "dim": 128, "depth": 4},
        "train": {"steps": WARM + STEPS, "device": "cpu", "dtype": "fp32"},
        "eval": {"tokens": 128},
        "checkpoint": {"every": 10**6},
        "log": {"trackers": []},
    }
    plan = plan_run([Layer("bench", values)], registry())
    plain = PlainSide(plan)
    start_run(plan, folder / "run", registry(), plain)
    return median(plain.lab_times), median(plain.plain_times), plain.worst, STEPS
