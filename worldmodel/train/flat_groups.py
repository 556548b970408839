"""Weights under ZeRO-1 and 2: whole on each rank in flat buffers, of which it steps its partition in fp32.

The average follows that partition without communication; the weights of the teacher come by one all-gather a
group and step, in the precision that they run in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from worldmodel.train.exchange import Exchange

# W ranks, P elements of one rank's partition.


@dataclass(frozen=True)
class FlatGroup:
    """Parameters in one buffer. This rank steps row `rank` of it, as `master_P`."""

    whole_WP: Tensor
    master_P: Tensor


@dataclass(frozen=True)
class Span:
    """Where one parameter lies in the flattened buffer of its group."""

    group: int
    start: int
    end: int

    def within(self, rank: int, partition: int) -> tuple[int, int, int]:
        """What a rank steps of it: where that begins in the parameter and in the partition, and its length,
        which may be 0."""
        first = max(self.start, rank * partition)
        length = min(self.end, (rank + 1) * partition) - first
        return (first - self.start, first - rank * partition, length) if length > 0 else (0, 0, 0)


def flat_groups(optimizer: Any) -> list[FlatGroup]:
    """Of DeepSpeed's optimizer, which for ZeRO-1 in bf16 is one of another class."""
    is_bf16 = hasattr(optimizer, "bf16_groups_flat")
    wholes = optimizer.bf16_groups_flat if is_bf16 else optimizer.bit16_groups_flat
    masters = optimizer.fp32_groups_flat_partition if is_bf16 else optimizer.single_partition_of_fp32_groups
    return [
        FlatGroup(whole.detach().view(-1, master.numel()), master)
        for whole, master in zip(wholes, masters, strict=True)
    ]


def spans(parameters: Iterable[tuple[str, nn.Parameter]], groups: Sequence[FlatGroup]) -> dict[str, Span]:
    """Of the parameters that lie in one of the groups."""
    found = {}
    for name, parameter in parameters:
        for number, group in enumerate(groups):
            whole = group.whole_WP
            start, off = divmod(parameter.data_ptr() - whole.data_ptr(), whole.element_size())
            if off == 0 and 0 <= start < whole.numel() and parameter.device == whole.device:
                found[name] = Span(number, start, start + parameter.numel())
    return found


class GatheredEma:
    """Keeps `teacher`, whole on each rank, the average of the student whose parameters lie at `places`.

    Names of teacher parameters are those of student parameters without `prefix`; the student may have more.
    """

    def __init__(
        self, groups: Sequence[FlatGroup], places: Mapping[str, Span], teacher: nn.Module, *, prefix: str
    ) -> None:
        self.rank, self.masters = dist.get_rank(), [group.master_P.detach() for group in groups]
        self.average = [master_P.clone() for master_P in self.masters]
        self.wholes = [torch.empty_like(group.whole_WP) for group in groups]
        self.exchanges = [Exchange(whole_WP[self.rank]) for whole_WP in self.wholes]
        for name, parameter in teacher.named_parameters():
            span = places[prefix + name]
            parameter.data = self.wholes[span.group].view(-1)[span.start : span.end].view(parameter.shape)
        self.publish()

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * student, on this rank's partition. Call only when a step
        was applied, and `publish` before the teacher runs."""
        torch._foreach_lerp_(self.average, self.masters, 1.0 - decay)  # pyright: ignore

    @torch.no_grad()
    def publish(self) -> None:
        """Writes the average into the teacher's weights. On all ranks at once."""
        for exchange, whole_WP, average_P in zip(self.exchanges, self.wholes, self.average, strict=True):
            own_P = whole_WP[self.rank].copy_(average_P)
            for rank, shard_P in exchange.gather(own_P):
                if rank != self.rank:
                    whole_WP[rank].copy_(shard_P)
