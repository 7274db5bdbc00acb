"""Small models with a part of every kind, and gradients that follow from a step's number."""

import torch
from rnn_lab.config import OptimizerSection
from rnn_lab.optim import factories
from rnn_lab.train.checkpoint import optimizer_tensors, restore_optimizer
from safetensors.torch import load, save
from torch import nn


class Block(nn.Module):
    """No parts: its linear maps' weights are matrices by the default rule."""

    def __init__(self, dim: int, wide: int) -> None:
        super().__init__()
        self.up, self.down, self.square = nn.Linear(dim, wide), nn.Linear(wide, dim, bias=False), nn.Linear(dim, dim)
        self.decay = nn.Parameter(torch.ones(dim))
        self.heads = nn.Parameter(torch.randn(2, dim, dim))


class Small(nn.Module):
    """Embedding, blocks, norm."""

    def __init__(self, dim: int = 16, wide: int = 24, depth: int = 2, vocab: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(Block(dim, wide) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)


def small(dtype: torch.dtype = torch.float32, **sizes: int) -> Small:
    torch.manual_seed(0)
    return Small(**sizes).to(dtype)


def made(kind: str, dtype: torch.dtype = torch.float32, sizes: dict[str, int] | None = None, **settings):
    """A model and its optimizer."""
    model = small(dtype, **(sizes or {}))
    section = OptimizerSection(**{"name": kind, "lr": 0.02, "weight_decay": 0.1, **settings})
    return model, getattr(factories, kind)(model, section)


def gradients(model: nn.Module, step: int) -> None:
    """Gradients that depend on the parameter's name and the step alone; of rank that decays, as real ones."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if p.dim() == 2:
            g = g * torch.arange(1, p.shape[1] + 1) ** -0.5
        p.grad = g.to(p.dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps) -> None:
    for step in steps:
        gradients(model, step)
        optimizer.step()


def reloaded(optimizer: torch.optim.Optimizer, into: torch.optim.Optimizer) -> None:
    """Through what a checkpoint file holds."""
    tensors, values = optimizer_tensors(optimizer)
    restore_optimizer(into, load(save({name: t.contiguous() for name, t in tensors.items()})), values)


def assert_equal(one: nn.Module, two: nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q), name
