"""Randomness keyed by what it is for, never by rank, step or batch slot, so that a replay is exact on any
cluster."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# B samples.


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A Philox generator whose stream depends on the whole key and on nothing else."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


@dataclass(frozen=True)
class SampleRandom:
    """Draws of one micro-batch: row i depends only on (seed, epoch, sample_ids[i], name)."""

    seed: int
    epoch: int
    sample_ids: tuple[int, ...]

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal [B, *shape], float32."""
        return self._rows(name, lambda g: g.standard_normal(shape, dtype=np.float32))

    def noise(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """As `normal`, drawn where it is used. A GPU has a generator of its own: as exact a replay, but not
        the CPU's numbers, which would take longer to draw and to copy than the step that they are for."""
        if device.type == "cpu":
            return self.normal(name, shape)
        rows = []
        for sample in self.sample_ids:
            key = int(keyed_generator(self.seed, self.epoch, sample, name).integers(2**63))
            generator = torch.Generator(device).manual_seed(key)
            rows.append(torch.randn(shape, generator=generator, device=device))
        return torch.stack(rows)

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform [0, 1) of [B, *shape], float32."""
        return self._rows(name, lambda g: g.random(shape, dtype=np.float32))

    def _rows(self, name: str, draw) -> Tensor:
        rows = [draw(keyed_generator(self.seed, self.epoch, sample, name)) for sample in self.sample_ids]
        return torch.from_numpy(np.stack(rows))
