"""Rotary positions in seconds, rows and columns. Angles stay fp32 until after sin and cos."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# B clips, H heads, L tokens, P rotary pairs of one head, d = 2 P.

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


@dataclass(frozen=True)
class Rotary:
    """What turns the heads: cos and signed sin [L, d], taken in fp32 and kept in the dtype of the heads."""

    cos_Ld: Tensor
    sin_Ld: Tensor

    @classmethod
    def of(cls, angles_LP: Tensor, dtype: torch.dtype) -> Rotary:
        cos, sin = angles_LP.cos(), angles_LP.sin()
        return cls(torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype))

    def last(self, num: int) -> Rotary:
        """Of the last `num` positions: the queries come after cached keys."""
        return Rotary(self.cos_Ld[-num:], self.sin_Ld[-num:])


def rotate(x_BHLd: Tensor, rotary: Rotary) -> Tensor:
    """Turns the pairs (first half, second half) of each head."""
    first, second = x_BHLd.chunk(2, dim=-1)
    return torch.addcmul(x_BHLd * rotary.cos_Ld, torch.cat([second, first], dim=-1), rotary.sin_Ld)
