"""What a token sees of the chunk before it without any attention: the nearest patches, and the same moment.

A small model needs many hundred steps to find the previous chunk by attention alone; stacking past frames at
the input is how DIAMOND (arXiv 2405.12399) shows them. Attention then only has to learn what is further away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldmodel.flow import wiener_factor
from worldmodel.layout import Layout

# B clips, N chunks, V video and T audio tokens of a chunk, C channels of a token, D width, R rows, S columns.

NEAR = 3  # patches on a side


@dataclass(frozen=True)
class Estimate:
    """The best linear guess of the data of unit variance behind noisy tokens; zeros where media is absent."""

    video_BNVC: Tensor
    audio_BNTC: Tensor

    @classmethod
    def of(
        cls,
        video_BNVC: Tensor,
        video_t: Tensor,
        has_video: Tensor,
        audio_BNTC: Tensor,
        audio_t: Tensor,
        has_audio: Tensor,
    ) -> Estimate:
        """x_t times its Wiener factor: a clean chunk passes whole, pure noise not at all."""
        return cls(
            video_BNVC * (wiener_factor(video_t) * has_video),
            audio_BNTC * (wiener_factor(audio_t) * has_audio),
        )

    def last(self) -> Estimate:
        """Of the last chunk, for a forward that goes on from it."""
        return Estimate(self.video_BNVC[:, -1:], self.audio_BNTC[:, -1:])


class CausalStem(nn.Module):
    """Adds to each token a projection of the chunk before: 3x3 patches around it, or the same audio step."""

    def __init__(self, video_channels: int, audio_channels: int, width: int) -> None:
        super().__init__()
        self.video = nn.Linear(NEAR * NEAR * video_channels, width)
        self.audio = nn.Linear(audio_channels, width)

    def forward(
        self, seen: Estimate, before: Estimate | None, layout: Layout, group_BL: Tensor | None = None
    ) -> Tensor:
        """[B, L, D]; zeros for text and actions. `before` is the chunk before the first, if there is one.
        group_BL: a token sees group 0 and its own, as in attention."""
        dtype = self.video.weight.dtype
        video_BNVC = _shifted(seen.video_BNVC, None if before is None else before.video_BNVC)
        audio_BNTC = _shifted(seen.audio_BNTC, None if before is None else before.audio_BNTC)
        if group_BL is None:
            near_BNVC = neighbourhoods(video_BNVC, layout)
        else:
            groups = rearrange(group_BL[:, layout.text_tokens :], "b (n v) -> b n v", n=layout.num_chunks)
            _, video_BNV, audio_BNT = groups.split(layout.parts, 2)
            near_BNVC = _apart(video_BNVC, video_BNV, lambda x: neighbourhoods(x, layout))
            audio_BNTC = _apart(audio_BNTC, audio_BNT, lambda x: x)
        video = self.video(near_BNVC.to(dtype))
        audio = self.audio(audio_BNTC.to(dtype))
        chunks = torch.cat([torch.zeros_like(video[:, :, :1]), video, audio], dim=2)
        flat = rearrange(chunks, "b n v d -> b (n v) d")
        return F.pad(flat, (0, 0, layout.text_tokens, 0))


def _apart(x_BNVC: Tensor, group_BNV: Tensor, near: Callable[[Tensor], Tensor]) -> Tensor:
    """What `near` shows each token of the chunk before, x, but what is of another group."""
    of_x_BNV = _shifted(group_BNV, None)
    parts = []
    for own in (0, 1, 2):
        seen = (of_x_BNV == 0) | (of_x_BNV == own)
        parts.append(near(x_BNVC * seen[..., None]) * (group_BNV == own)[..., None])
    return parts[0] + parts[1] + parts[2]


def _shifted(x_BNVC: Tensor, before_B1VC: Tensor | None) -> Tensor:
    first = torch.zeros_like(x_BNVC[:, :1]) if before_B1VC is None else before_B1VC.to(x_BNVC.dtype)
    return torch.cat([first, x_BNVC[:, :-1]], dim=1)


def neighbourhoods(video_BNVC: Tensor, layout: Layout) -> Tensor:
    """[B, N, V, C] -> [B, N, V, 9 C]: each patch with those around it; zeros beyond the picture."""
    rows, columns = layout.video_grid
    num = video_BNVC.shape[1]
    grid = rearrange(video_BNVC, "b n (t r s) c -> (b n t) c r s", r=rows, s=columns)
    padded = F.pad(grid, (NEAR // 2,) * 4)
    around = [padded[:, :, i : i + rows, j : j + columns] for i in range(NEAR) for j in range(NEAR)]
    return rearrange(torch.cat(around, 1), "(b n t) c r s -> b n (t r s) c", n=num, t=layout.video_steps)
