"""The one type that crosses from data to training."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

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

    sample_ids_B: int64, -1 for padding. text_BN: bytes of the caption, then of the transcript, each padded to
    its own length: values + 1 as int64, 0 for padding.
    actions_BFA: action[i] takes frame i to frame i + 1. reasons: sample_id -> why the clip could not be used.
    targets: features of frozen encoders by name, and under NAME_valid which latent steps have them.
    is_still: of still pictures, which have noise levels, masks and a weight of their own.
    """

    epoch: int
    batch_id: int
    sample_ids_B: Tensor
    video: ModalityLatents
    audio: ModalityLatents
    text_BN: Tensor
    actions_BFA: Tensor
    actions_valid_BF: Tensor
    reasons: dict[int, str] = field(default_factory=dict[int, str])
    targets: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    is_still: bool = False

    @property
    def num_clips(self) -> int:
        return self.sample_ids_B.shape[0]

    def only(self, modalities: Collection[str]) -> LatentBatch:
        """As if clips had no others of "video" and "audio"."""
        there = {"video": self.video, "audio": self.audio}
        gone = {
            name: replace(
                part,
                valid_BT=torch.zeros_like(part.valid_BT),
                loss_mask_BT=torch.zeros_like(part.loss_mask_BT),
            )
            for name, part in there.items()
            if name not in modalities
        }
        return replace(self, **gone)

    def to(self, device: torch.device | str) -> LatentBatch:
        """The same micro-batch on another device."""

        def modality(part: ModalityLatents) -> ModalityLatents:
            return ModalityLatents(
                part.latents.to(device, non_blocking=True),
                part.valid_BT.to(device, non_blocking=True),
                part.loss_mask_BT.to(device, non_blocking=True),
                part.time_s_T2.to(device, non_blocking=True),
            )

        return replace(
            self,
            video=modality(self.video),
            audio=modality(self.audio),
            text_BN=self.text_BN.to(device, non_blocking=True),
            actions_BFA=self.actions_BFA.to(device, non_blocking=True),
            actions_valid_BF=self.actions_valid_BF.to(device, non_blocking=True),
            targets={name: target.to(device, non_blocking=True) for name, target in self.targets.items()},
        )
