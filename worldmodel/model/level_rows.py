"""The row of each token in a table of the K distinct noise levels; no table of all tokens lies in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from worldmodel.layout import Layout

# B clips, L tokens, D width, K distinct noise levels of a row, N chunks.


@dataclass(frozen=True)
class LevelOfTokens:
    """Which of the K levels each token is at, as one-hot rows or as indices."""

    one_hot_BLK: Tensor | None = None
    index_BL: Tensor | None = None

    def rows_of(self, table_BKD: Tensor, parts: int, layout: Layout) -> tuple[Tensor, ...]:
        """`parts` of [B, L, D / parts]: each token's row of the table, cut in pieces."""
        if self.index_BL is None:
            assert self.one_hot_BLK is not None, "one of the two"
            # On CPUs: a product with one-hot rows picks exactly and, unlike a gather, has a fast backward.
            return torch.bmm(self.one_hot_BLK, table_BKD).chunk(parts, dim=-1)
        tokens = (layout.text_tokens, layout.num_chunks, layout.video_tokens)
        # Piece by piece: the compiler then puts each gather into what reads it, and writes no rows down.
        return tuple(_Rows.apply(piece, self.index_BL, *tokens) for piece in table_BKD.chunk(parts, dim=-1))


class _Rows(torch.autograd.Function):
    """A gather whose gradients are summed chunk by chunk, not token by token into one row at a time."""

    @staticmethod
    def forward(
        ctx: Any, table_BKD: Tensor, index_BL: Tensor, text_tokens: int, num_chunks: int, video_tokens: int
    ) -> Tensor:
        ctx.save_for_backward(index_BL)
        ctx.tokens = (text_tokens, num_chunks, video_tokens)
        return table_BKD.gather(1, index_BL[..., None].expand(-1, -1, table_BKD.shape[-1]))

    @staticmethod
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore
        (index_BL,) = ctx.saved_tensors
        text_tokens, num_chunks, video_tokens = ctx.tokens
        grad = rearrange(grad_BLD[:, text_tokens:], "b (n p) d -> b n p d", n=num_chunks)
        # A slot's first level has an even index, its second an odd one; see Layout.level_slot_L.
        index = rearrange(index_BL[:, text_tokens:, None], "b (n p) d -> b n p d", n=num_chunks)
        zero = grad.new_zeros(())
        is_first_frame = index == 4 * num_chunks  # whose level is of no slot
        first_frame = torch.where(is_first_frame[:, 0], grad[:, 0], zero).sum(1, keepdim=True)
        grad, second = torch.where(is_first_frame, zero, grad), index % 2 == 1
        sums = []
        for part in (slice(1, 1 + video_tokens), slice(1 + video_tokens, None)):
            own, at_second = grad[:, :, part], second[:, :, part]
            sums += [torch.where(at_second, zero, own).sum(2), torch.where(at_second, own, zero).sum(2)]
        slots = rearrange(torch.stack(sums, 2), "b n four d -> b (n four) d")
        clean = grad_BLD[:, :text_tokens].sum(1, keepdim=True) + grad[:, :, 0].sum(1, keepdim=True)
        return torch.cat([slots, first_frame, clean], 1), None, None, None, None


def split_text(x_BLD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """[B, L, D] -> text [B, N, D] and chunks [B, chunks, tokens, D]."""
    chunks = rearrange(x_BLD[:, layout.text_tokens :], "b (k n) d -> b k n d", k=layout.num_chunks)
    return x_BLD[:, : layout.text_tokens], chunks


def join_text(text_BND: Tensor | None, chunks_BKND: Tensor) -> Tensor:
    flat = rearrange(chunks_BKND, "b k n d -> b (k n) d")
    return flat if text_BND is None else torch.cat([text_BND, flat], dim=1)
