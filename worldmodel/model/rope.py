"""Rotary positions in seconds, rows and columns. Angles stay fp32 until after sin and cos."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# L tokens, P rotary pairs of one head.

SHORTEST_S, LONGEST_S = 0.0625, 16.0  # periods of the time pairs: four audio steps to several windows
SHORTEST_PATCH, LONGEST_PATCH = 2.0, 128.0


def rotary_angles(positions_L3: Tensor, head_dim: int) -> Tensor:
    """Angles [L, P] of seconds, row and column: half of the pairs turn with time, a quarter each with row and
    column."""
    pairs = head_dim // 2
    spatial = pairs // 4
    time_f = _frequencies(pairs - 2 * spatial, SHORTEST_S, LONGEST_S, positions_L3.device)
    patch_f = _frequencies(spatial, SHORTEST_PATCH, LONGEST_PATCH, positions_L3.device)
    seconds, row, column = positions_L3.float().unbind(-1)
    return torch.cat([seconds[:, None] * time_f, row[:, None] * patch_f, column[:, None] * patch_f], dim=-1)


def _frequencies(num: int, shortest: float, longest: float, device: torch.device) -> Tensor:
    periods = torch.logspace(
        math.log10(shortest), math.log10(longest), num, device=device, dtype=torch.float32
    )
    return 2 * math.pi / periods


def rotate(x_BHLD: Tensor, angles_LP: Tensor) -> Tensor:
    """Turns the pairs (first half, second half) of each head."""
    cos, sin = angles_LP.cos(), angles_LP.sin()
    first, second = x_BHLD.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.to(x_BHLD.dtype)
