"""What a rollout is made of, one piece after the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# B sessions, V video and T audio tokens of a chunk, C latent channels, A values of actions.


@dataclass(frozen=True)
class Chunk:
    """Tokens of one chunk: video [B, V, patch*C], audio [B, T, patch*C]; which sessions have each; actions
    that led into it."""

    video_BVC: Tensor
    audio_BTC: Tensor
    has_video_B: Tensor
    has_audio_B: Tensor
    actions_BA: Tensor
    actions_valid_B: Tensor
