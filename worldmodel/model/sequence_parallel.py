"""One clip's tokens over several ranks, for contexts that one of them cannot hold (DeepSpeed-Ulysses, arXiv
2309.14509).

Each rank keeps whole chunks of the sequence, the first one the text too; every token's path is its own, so
only attention needs the others: for it tokens are exchanged for heads, and back. Inputs and outputs of the
transformer are whole on every rank, and so is the loss: divided by the number of ranks, the gradients of all
of them add up to those of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd

from worldmodel.layout import Layout

# B clips, L tokens, O own tokens, H heads, h heads of one rank, D width, d head width, K noise levels.

LEVELS_OF_CHUNK = 4  # t and s of picture and of sound, see Layout.level_slot_L


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share each clip."""

    group: Any
    rank: int
    size: int

    @classmethod
    def of(cls, group: Any) -> SequenceGroup:
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def part(self, layout: Layout) -> SequencePart:
        """ValueError when the chunks do not divide among the ranks."""
        return _part(self, layout)


def share_sequences(size: int) -> SequenceGroup | None:
    """The group of `size` ranks in a row that this one is in; None where nothing is shared. Collective."""
    if size == 1:
        return None
    firsts = range(0, dist.get_world_size(), size)
    groups = [dist.new_group(list(range(first, first + size))) for first in firsts]
    return SequenceGroup.of(groups[dist.get_rank() // size])


@lru_cache(maxsize=32)
def _part(group: SequenceGroup, layout: Layout) -> SequencePart:
    if layout.num_chunks % group.size:
        raise ValueError(
            f"{layout.num_chunks} chunks of a clip do not divide among train.sequence_parallel={group.size} "
            "ranks; use a divisor"
        )
    chunks = layout.num_chunks // group.size
    tokens = chunks * sum(layout.parts)
    lengths = [tokens + (layout.text_tokens if rank == 0 else 0) for rank in range(group.size)]
    own = layout.of(num_chunks=chunks, text=group.rank == 0)
    return SequencePart(group, own, tuple(lengths), group.rank * chunks)


@dataclass(frozen=True)
class SequencePart:
    """What this rank holds of clips of one layout: chunks from `first` on, as the layout `own`."""

    ranks: SequenceGroup
    own: Layout
    lengths: tuple[int, ...]
    first: int

    @property
    def start(self) -> int:
        return sum(self.lengths[: self.ranks.rank])

    def of(self, x_BL: Tensor) -> Tensor:
        """[B, L, ...] -> [B, O, ...]."""
        return x_BL.narrow(1, self.start, self.lengths[self.ranks.rank])

    def whole(self, x_BOD: Tensor) -> Tensor:
        """[B, O, D] -> [B, L, D]; gradients of all ranks are added."""
        return _Whole.apply(x_BOD, self)

    def levels(self, level_BKD: Tensor, level_of_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the table that own tokens are at, and which of them each is at."""
        begin, num = LEVELS_OF_CHUNK * self.first, LEVELS_OF_CHUNK * self.own.num_chunks
        own = torch.cat([level_BKD[:, begin : begin + num], level_BKD[:, -2:]], dim=1)
        index_BO, of_all = self.of(level_of_BL), level_BKD.shape[1] - 2
        return own, torch.where(index_BO >= of_all, index_BO - of_all + num, index_BO - begin)

    def to_heads(self, x_BHOd: Tensor) -> Tensor:
        """Own tokens of all heads -> all tokens of own heads, [B, h, L, d]."""
        batch, heads, own, width = x_BHOd.shape
        heads_each = heads // self.ranks.size
        sent = x_BHOd.permute(1, 2, 0, 3).contiguous().view(-1)  # by rank, head and token
        sizes = [heads_each * length * batch * width for length in self.lengths]
        got = self._exchange(sent, sizes, [heads_each * own * batch * width] * self.ranks.size)
        parts = [
            part.view(heads_each, length, batch, width)
            for part, length in zip(got.split(sizes), self.lengths, strict=True)
        ]
        return torch.cat(parts, dim=1).permute(2, 0, 1, 3)

    def to_tokens(self, x_BhLd: Tensor) -> Tensor:
        """And back: own tokens of all heads, [B, H, O, d]."""
        batch, heads_each, _, width = x_BhLd.shape
        own = self.lengths[self.ranks.rank]
        parts = x_BhLd.permute(1, 2, 0, 3).split(self.lengths, dim=1)
        sent = torch.cat([part.reshape(-1) for part in parts])
        sizes = [heads_each * own * batch * width] * self.ranks.size
        got = self._exchange(sent, sizes, [heads_each * length * batch * width for length in self.lengths])
        return got.view(-1, own, batch, width).permute(2, 0, 1, 3)

    def _exchange(self, sent: Tensor, got_sizes: list[int], sent_sizes: list[int]) -> Tensor:
        return all_to_all_single_autograd(sent, got_sizes, sent_sizes, self.ranks.group)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BOD: Tensor, part: SequencePart) -> Tensor:
        ctx.part = part
        # Gloo gathers equal shapes only: shorter parts are padded on their way.
        padded = F.pad(x_BOD, (0, 0, 0, max(part.lengths) - x_BOD.shape[1])).contiguous()
        got = [torch.empty_like(padded) for _ in part.lengths]
        dist.all_gather(got, padded, group=part.ranks.group)
        return torch.cat([x[:, :length] for x, length in zip(got, part.lengths, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        total = grad_BLD.contiguous()
        dist.all_reduce(total, group=ctx.part.ranks.group)
        return ctx.part.of(total), None
