"""Gradients by what they move: what only pictures use, what only sound uses, and what they share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

PARTS = ("video", "audio", "shared")


def part_of(name: str) -> int:
    """Index in PARTS of a parameter by its name."""
    return next((i for i, part in enumerate(PARTS[:2]) if part in name), len(PARTS) - 1)


@torch.no_grad()
def squares_by_part(gradients: Iterable[tuple[str, Tensor]]) -> Tensor:
    """[PARTS] sums of squares of named gradients, or of this rank's slices of them, where they lie."""
    there = [(name, gradient) for name, gradient in gradients if gradient.numel()]
    if not there:
        return torch.zeros(len(PARTS), dtype=torch.float64)
    names, tensors = zip(*there, strict=True)
    norms = torch.stack(torch._foreach_norm(list(tensors))).double()  # pyright: ignore
    parts = torch.tensor([part_of(name) for name in names], device=norms.device)
    return norms.new_zeros(len(PARTS)).index_add(0, parts, norms.square())
