"""Who sees whom, as the attention kernels take it: a bias for any of them, or the blocks that FlexAttention
visits.

The structure (window, sinks, text) belongs to a layout and is made once; which keys are there belongs to a
micro-batch. FlexAttention skips blocks that nobody sees and asks the mask only where a block is partly seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.layout import Layout, chunk_sees, on_device

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from worldmodel.model.sequence_parallel import SequencePart

# B clips, L query tokens, J key tokens, Q query blocks, K key blocks.

BLOCK = 128  # tokens of a block of queries and of keys
KEPT = 32  # layouts; a run has one a bucket


@dataclass(frozen=True)
class Visibility:
    """One of the two. bias [B, 1, L, J]: 0 where a query sees a key, -inf elsewhere.

    shared: how the tokens lie on several ranks; L and J are then those of all of them.
    """

    bias: Tensor | None = None
    blocks: BlockMask | None = None
    shared: SequencePart | None = None

    @classmethod
    def by_bias(
        cls,
        structure_LJ: Tensor,
        valid_BJ: Tensor,
        dtype: torch.dtype,
        *,
        group_BL: Tensor | None = None,
    ) -> Visibility:
        """group_BL: a token sees group 0 and its own, as far as the structure goes."""
        mask = attention_mask(structure_LJ, valid_BJ)
        if group_BL is not None:
            mask = mask & _groups_see(group_BL[:, :, None], group_BL[:, None, :])[:, None]
        return cls(bias=additive(mask, dtype))

    @classmethod
    def by_blocks(
        cls,
        layout: Layout,
        valid_BL: Tensor,
        *,
        window_chunks: int,
        sink_chunks: int,
        group_BL: Tensor | None = None,
    ) -> Visibility:
        """The same visibility for torch.compile'd FlexAttention. Nothing of size L x L is made a step."""
        from torch.nn.attention.flex_attention import BlockMask  # brings the compiler in: 5 s on a CPU

        device = valid_BL.device
        chunk_L = on_device(layout, "chunk_L", device)
        any_QK, all_QK = _block_structure(layout, window_chunks, sink_chunks, device)
        valid_BKb = F.pad(valid_BL, (0, -valid_BL.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
        full_BQK = all_QK & valid_BKb.all(-1)[:, None]
        if group_BL is not None:  # may part any two tokens
            full_BQK = torch.zeros_like(full_BQK)
        own_QK = torch.eye(len(any_QK), dtype=torch.bool, device=device)
        partial_BQK = (any_QK & valid_BKb.any(-1)[:, None] | own_QK) & ~full_BQK

        def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = chunk_sees(chunk_L[query], chunk_L[key], window_chunks, sink_chunks) & valid_BL[b, key]
            if group_BL is not None:
                seen = seen & _groups_see(group_BL[b, query], group_BL[b, key])
            return seen | (query == key)

        length = valid_BL.shape[1]
        blocks = BlockMask.from_kv_blocks(
            *_listed(partial_BQK), *_listed(full_BQK), BLOCK, sees, seq_lengths=(length, length)
        )
        return cls(blocks=blocks)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask, True where a query sees a key, as what is added to scores: 0 or -inf. Made once a forward."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def attention_mask(structure_LJ: Tensor, valid_BJ: Tensor) -> Tensor:
    """[B, 1, L, J]: the structure, without invalid keys; a token always sees itself, or an all-masked row is
    NaN."""
    num_queries, num_keys = structure_LJ.shape
    own_LJ = torch.eye(num_keys, dtype=torch.bool, device=valid_BJ.device)[num_keys - num_queries :]
    return ((structure_LJ.to(valid_BJ.device) & valid_BJ[:, None, :]) | own_LJ)[:, None]


def _groups_see(query: Tensor, key: Tensor) -> Tensor:
    return (key == 0) | (key == query)


@lru_cache(maxsize=KEPT)
def window_structure(layout: Layout, window_chunks: int, sink_chunks: int, device: torch.device) -> Tensor:
    """layout.window_mask_LL on a device, kept."""
    return layout.window_mask_LL(window_chunks=window_chunks, sink_chunks=sink_chunks).to(device)


@lru_cache(maxsize=KEPT)
def _block_structure(
    layout: Layout, window_chunks: int, sink_chunks: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """[Q, K] each: blocks of which something is seen, and those seen whole; beyond the end is nothing."""
    structure_LL = window_structure(layout, window_chunks, sink_chunks, device)
    beyond = -layout.length % BLOCK
    tiles = F.pad(structure_LL, (0, beyond, 0, beyond)).unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    return tiles.any(3).any(1), tiles.all(3).all(1)


def _listed(which_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block visits [B, 1, Q], and their numbers first in [B, 1, Q, K]."""
    number = which_BQK.sum(-1, dtype=torch.int32)
    order = torch.argsort(which_BQK.int(), dim=-1, descending=True, stable=True).int()
    return number[:, None], order[:, None]
