"""The one type that crosses from data to training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

# B clips, T latent steps, C latent channels, N text tokens, F video frames, A action width.


@dataclass(frozen=True)
class ModalityLatents:
    """Latents of one modality: [B, T, H, W, C] for video, [B, T, C] for audio.

    valid_BT: the step holds real media. loss_mask_BT: the step may carry loss (a subset of valid).
    time_s_T2: [start, end) of each step in seconds from the start of the clip, the same for the whole bucket.
    """

    latents: Tensor
    valid_BT: Tensor
    loss_mask_BT: Tensor
    time_s_T2: Tensor


@dataclass(frozen=True)
class LatentBatch:
    """One planned micro-batch. Shapes are fixed within a bucket; an absent clip is zeros with valid False.

    sample_ids_B: int64, -1 for padding. text_BN: uint8 values + 1 as int64, 0 for padding.
    actions_BFA: action[i] takes frame i to frame i + 1. reasons: sample_id -> why the clip could not be used.
    targets: features of frozen encoders by name.
    """

    epoch: int
    batch_id: int
    sample_ids_B: Tensor
    video: ModalityLatents
    audio: ModalityLatents
    text_BN: Tensor
    actions_BFA: Tensor
    actions_valid_BF: Tensor
    reasons: dict[int, str] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_clips(self) -> int:
        return self.sample_ids_B.shape[0]

    def to(self, device: torch.device | str) -> LatentBatch:
        def move(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, ModalityLatents):
                return ModalityLatents(**{f.name: move(getattr(value, f.name)) for f in fields(value)})  # pyright: ignore
            return {k: move(v) for k, v in value.items()} if value and isinstance(value, dict) else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})  # pyright: ignore
