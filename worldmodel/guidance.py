"""Guidance by each condition apart: caption, transcript and actions (arXiv 2207.12598; several: 2211.09800).

A guided session runs as rows beside each other: with all conditions, and without each guided one. All rows
share noise and history, so that they differ by the condition alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from worldmodel.chunk import Chunk

# B sessions, V variants of conditions, N bytes.


@dataclass(frozen=True)
class Guidance:
    """1 follows a condition as trained, 0 ignores it, more exaggerates it."""

    caption: float = 1.0
    speech: float = 1.0
    actions: float = 1.0

    @property
    def without(self) -> list[str]:
        """Conditions that a variant lacks, in the order of rows after those with everything."""
        return [f.name for f in fields(self) if getattr(self, f.name) != 1.0]

    @property
    def num_variants(self) -> int:
        return 1 + len(self.without)

    def rows(self, x_B: Tensor) -> Tensor:
        """[B, ...] -> [V * B, ...]: the same for every variant."""
        return x_B.repeat(self.num_variants, *[1] * (x_B.ndim - 1))

    def text(self, text_BN: Tensor, caption_bytes: int) -> Tensor:
        """[V * B, N] bytes of caption and transcript."""
        is_caption_N = torch.arange(text_BN.shape[1], device=text_BN.device) < caption_bytes
        gone = {"caption": is_caption_N, "speech": ~is_caption_N, "actions": torch.zeros_like(is_caption_N)}
        return torch.cat([text_BN, *(text_BN.masked_fill(gone[name], 0) for name in self.without)])

    def chunk(self, chunk: Chunk) -> Chunk:
        """[V * B] of each field."""
        valid_B = chunk.actions_valid_B
        valid_VB = torch.stack([valid_B, *(valid_B & (name != "actions") for name in self.without)])
        tiled = {f.name: self.rows(getattr(chunk, f.name)) for f in fields(chunk)}
        return replace(chunk, **tiled | {"actions_valid_B": valid_VB.flatten()})

    def combine(self, out_B: Tensor) -> Tensor:
        """Outputs [V * B, ...] -> [B, ...]: away from what each guided condition does not change."""
        whole, *others = out_B.chunk(self.num_variants)
        return whole + sum(
            (getattr(self, name) - 1) * (whole - other)
            for name, other in zip(self.without, others, strict=True)
        )
