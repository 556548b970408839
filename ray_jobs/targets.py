"""Features of frozen encoders, made beside the latents of a clip and on their grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from avtok.frozen import FrozenPicture, FrozenSound, load_frozen
from avtok.spec import CodecSpec
from ray_jobs.errors import UserError
from worldmodel.config import RunConfig

if TYPE_CHECKING:
    from ray_jobs.clip_encoder import Geometry

# T latent steps, H W tokens, D width of the features.

PREFIX = "target_"  # of a row's column


@dataclass(frozen=True)
class Targets:
    """Encoders by the column that their features travel in."""

    pictures: dict[str, FrozenPicture]
    sounds: dict[str, FrozenSound]
    video: CodecSpec
    audio: CodecSpec
    patch: tuple[int, int]

    @classmethod
    def load(cls, cfg: RunConfig, video: CodecSpec, audio: CodecSpec, *, device: str) -> Targets:
        """UserError, with the name of the target and its folder, for one without such an encoder."""
        pictures: dict[str, FrozenPicture] = {}
        sounds: dict[str, FrozenSound] = {}
        for target in cfg.data.targets:
            try:
                encoder = load_frozen(Path(target.encoder).expanduser(), target.modality, device=device)
            except ValueError as error:
                raise UserError(f"data.targets: {target.name}: {error}") from None
            if isinstance(encoder, FrozenPicture):
                pictures[PREFIX + target.name] = encoder
            else:
                sounds[PREFIX + target.name] = encoder
        return cls(pictures, sounds, video, audio, cfg.model.patch)

    @property
    def key(self) -> list[Any]:
        """What the features depend on besides the clip, for the name of a cached file."""
        hashes = [[name, one.content_hash] for name, one in (self.pictures | self.sounds).items()]
        return [*hashes, *self.patch] if hashes else []

    def empty(self, geometry: Geometry) -> dict[str, np.ndarray]:
        shapes = {
            name: (geometry.video_steps, *self._grid(geometry), one.width)
            for name, one in self.pictures.items()
        }
        shapes |= {name: (geometry.audio_steps, one.width) for name, one in self.sounds.items()}
        arrays = {name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}
        return arrays | {f"{name}_valid": np.zeros(shape[0], dtype=bool) for name, shape in shapes.items()}

    def of_picture(
        self, video_FHWC: np.ndarray, first: int, geometry: Geometry
    ) -> dict[str, tuple[int, torch.Tensor]]:
        """Column -> (first, features) of frames that begin at the latent step `first`."""
        count = self.video.steps_of_units(len(video_FHWC))
        frames = [self.video.first_units] + [self.video.stride_units] * (count - 1)
        if not self.pictures or not count:
            return {}
        shown = video_FHWC[: sum(frames)]
        grid = self._grid(geometry)
        return {name: (first, one.encode(shown, frames, grid)) for name, one in self.pictures.items()}

    def of_sound(self, audio_N: np.ndarray, first: int) -> dict[str, tuple[int, torch.Tensor]]:
        count, rate_hz = self.audio.steps_of_units(len(audio_N)), self.audio.rate_hz
        step_s = self.audio.stride_units / rate_hz
        if not count:
            return {}
        return {
            name: (first, one.encode(audio_N, rate_hz, step_s, count)) for name, one in self.sounds.items()
        }

    def _grid(self, geometry: Geometry) -> tuple[int, int]:
        """Tokens of one step, rows and columns."""
        _, height, width, _ = self.video.latent_shape(1, geometry.size)
        return height // self.patch[0], width // self.patch[1]
