"""The engine that train.zero_stage asks for."""

from __future__ import annotations

import torch

from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.train.whole_weights_engine import ReplicatedEngine, WholeWeightsEngine
from worldmodel.train.zero_engine import ZeroEngine


def distributed_engine(
    cfg: RunConfig, layout: Layout, *, micro_batches: int, device: torch.device | None = None
) -> ZeroEngine | ReplicatedEngine:
    """One rank's; the process group must exist. micro_batches: how many this rank runs a step."""
    if cfg.train.zero_stage == 0:
        return ReplicatedEngine(cfg, layout, device=device)
    kind = ZeroEngine if cfg.train.zero_stage == 3 else WholeWeightsEngine
    return kind(cfg, layout, micro_batches=micro_batches, device=device)
