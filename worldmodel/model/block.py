"""One joint block: attention of all tokens, then a feed-forward for each modality, both under adaLN-zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.config import ModelConfig
from worldmodel.layout import Layout
from worldmodel.model.attention import Attention, KeyValue
from worldmodel.model.level_rows import LevelOfTokens, join_text, split_text
from worldmodel.model.rope import Rotary
from worldmodel.model.visibility import Visibility

# B clips, L tokens, D width, K distinct noise levels of one clip.


class Modulation(nn.Module):
    """adaLN-zero for the K levels, gathered, never computed for all L tokens."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, level_BKD: Tensor, at: LevelOfTokens, layout: Layout) -> tuple[Tensor, ...]:
        return at.rows_of(self.linear(level_BKD), self.parts, layout)


class FeedForward(nn.Sequential):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))


class ModalityFeedForward(nn.Module):
    """Each modality has its own feed-forward: attention is shared, what a token means is not."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.video = FeedForward(width, hidden)
        self.audio = FeedForward(width, hidden)
        self.text = FeedForward(width, width)  # conditions carry little: one width is enough
        self.action = FeedForward(width, width)

    def forward(self, x_BLD: Tensor, layout: Layout) -> Tensor:
        if layout.num_chunks == 0:
            return self.text(x_BLD)
        text, chunks = split_text(x_BLD, layout)
        parts = chunks.split(layout.parts, dim=2)
        paths = (self.action, self.video, self.audio)
        # Contiguous rows first: a linear layer over a strided slice multiplies row block by row block.
        out = torch.cat([path(x.contiguous()) for path, x in zip(paths, parts, strict=True)], dim=2)
        # Also where there is no text: ZeRO-3's collectives must match on all ranks.
        return join_text(self.text(text), out)


class Block(nn.Module):
    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.modulation = Modulation(cfg.width, 6)
        self.attention = Attention(cfg.width, cfg.head_dim)
        self.feed_forward = ModalityFeedForward(cfg.width, cfg.mlp_ratio)
        self.compiled: Callable[..., Tensor] | None = None

    def forward(
        self,
        x_BLD: Tensor,
        level_BKD: Tensor,
        at: LevelOfTokens,
        layout: Layout,
        rotary: Rotary,
        visibility: Visibility,
        past: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue | None]:
        """The block's output and, where nothing is compiled, its unrotated keys and values.

        ZeRO-3 gathers and releases weights around this call, so that what is compiled lies inside it."""
        if self.compiled is not None and visibility.blocks is not None:
            return self.compiled(x_BLD, level_BKD, at, layout, rotary, visibility), None
        return self.computed(x_BLD, level_BKD, at, layout, rotary, visibility, past)

    def output(
        self,
        x_BLD: Tensor,
        level_BKD: Tensor,
        at: LevelOfTokens,
        layout: Layout,
        rotary: Rotary,
        visibility: Visibility,
    ) -> Tensor:
        """Without keys and values, which a compiled graph would have to write down."""
        return self.computed(x_BLD, level_BKD, at, layout, rotary, visibility, None)[0]

    def computed(
        self,
        x_BLD: Tensor,
        level_BKD: Tensor,
        at: LevelOfTokens,
        layout: Layout,
        rotary: Rotary,
        visibility: Visibility,
        past: KeyValue | None,
    ) -> tuple[Tensor, KeyValue]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(level_BKD, at, layout)
        normed = torch.addcmul(shift_a, normalised(x_BLD), 1 + scale_a)
        attended, new = self.attention(normed, rotary, visibility, past=past)
        x_BLD = torch.addcmul(x_BLD, gate_a, attended)
        normed = torch.addcmul(shift_m, normalised(x_BLD), 1 + scale_m)
        return torch.addcmul(x_BLD, gate_m, self.feed_forward(normed, layout)), new


def normalised(x_BLD: Tensor) -> Tensor:
    return F.layer_norm(x_BLD, (x_BLD.shape[-1],))
