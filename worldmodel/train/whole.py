"""Whole parameters between steps: one collective a step instead of one a module, for models that fit.

DeepSpeed's own persistent parameters (stage3_param_persistence_threshold) are gathered one by one after each
step: 170 collectives for a model of six blocks, on CPUs slower than gathering block by block. The shards of
all parameters of a group lie in one flat buffer, so one collective brings them all. What ZeRO-3 shards
besides stays sharded: gradients, master weights, moments, average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# W ranks, S elements of one rank's flat buffer.


@dataclass(frozen=True)
class Place:
    """Where the shard of one ZeRO-3 parameter lies: `length` elements of flat buffer `group`."""

    parameter: Any
    group: int
    offset: int
    length: int


class WholeParameters:
    """Keeps the parameters of one ZeRO-3 module whole. `refresh` on all ranks when shards have changed."""

    def __init__(self, places: Sequence[Place], flats: Sequence[Tensor]) -> None:
        self.places, self.flats = places, flats
        for place in places:
            place.parameter.ds_persist = True  # hooks then neither gather nor release it
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        gathered_WS = [_all_gather(flat) for flat in self.flats]
        for place in self.places:
            parts = gathered_WS[place.group][:, place.offset : place.offset + place.length]
            numel = math.prod(place.parameter.ds_shape)  # the last rank's shard is padded
            whole = parts.reshape(-1)[:numel].view(place.parameter.ds_shape)
            place.parameter.data = whole
            place.parameter.ds_status = type(place.parameter.ds_status).AVAILABLE


def _all_gather(flat_S: Tensor) -> Tensor:
    """[W, S] of all ranks' buffers. One rank's is the whole already, and is not copied."""
    world_size = dist.get_world_size()
    if world_size == 1:
        return flat_S.detach().view(1, -1)
    whole_WS = torch.empty(world_size, flat_S.numel(), dtype=flat_S.dtype, device=flat_S.device)
    dist.all_gather_into_tensor(whole_WS.view(-1), flat_S.detach().contiguous().view(-1))
    return whole_WS
