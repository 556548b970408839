"""Latents of no clip at all, for what costs the same whatever they hold."""

from __future__ import annotations

import torch

from worldmodel.batch import LatentBatch, ModalityLatents
from worldmodel.layout import Layout


def random_batch(layout: Layout, clips: int, number: int) -> LatentBatch:
    """Latents of unit variance, with words and actions, as the stream brings them."""
    generator = torch.Generator().manual_seed(number)
    steps, frames = layout.num_chunks * layout.video_steps, layout.num_chunks * layout.chunk_frames
    rows, columns = (n * p for n, p in zip(layout.video_grid, layout.patch, strict=True))
    audio_steps = layout.num_chunks * layout.audio_steps

    def modality(*shape: int) -> ModalityLatents:
        latents = torch.randn(clips, *shape, generator=generator)
        valid_BT = torch.ones(clips, shape[0], dtype=torch.bool)
        return ModalityLatents(latents, valid_BT, valid_BT.clone(), torch.zeros(shape[0], 2))

    return LatentBatch(
        epoch=0,
        batch_id=number,
        sample_ids_B=torch.arange(clips) + clips * number,
        video=modality(steps, rows, columns, layout.video_channels),
        audio=modality(audio_steps, layout.audio_channels),
        text_BN=torch.randint(1, 257, (clips, layout.text_bytes), generator=generator),
        actions_BFA=torch.randn(clips, frames, layout.action_dim, generator=generator),
        actions_valid_BF=torch.ones(clips, frames, dtype=torch.bool),
    )
