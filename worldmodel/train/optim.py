"""The optimizer, its parameter groups and its schedule."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from worldmodel.config import OptimConfig


def build_optimizer(parameters: Iterable[Tensor], cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW on what is not frozen; weight decay on matrices only."""
    everything = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in everything if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # a LoRA may be matrices only
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=1e-8, fused=True)


def learning_rate(step: int, total_steps: int, cfg: OptimConfig) -> float:
    """Linear warm-up, constant, then linear decay to a tenth over the last fifth of the run."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup_steps))
    decay_steps = max(1, total_steps // 5)
    cool = min(1.0, max(0.1, (total_steps - step) / decay_steps))
    return cfg.lr * warm * cool


def ema_decay(updates: int, target: float) -> float:
    """min(target, (1 + n) / (10 + n)): short runs need a teacher that follows early."""
    return min(target, (1 + updates) / (10 + updates))
