"""What both codecs' trainings share: learning rate and the average of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

FLOOR = 0.02  # of the learning rate, at the end


def cosine(step: int, *, steps: int, warmup_steps: int) -> float:
    """Share of the learning rate: linear warm-up, then half a cosine."""
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    return warm * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, *, step: int, decay: float) -> None:
    """average <- the exponential moving average of net, which forgets the beginning sooner."""
    decay = min(decay, (1 + step) / (10 + step))
    for ours, theirs in zip(average.parameters(), net.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)
