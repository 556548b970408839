"""What reading media gives: facts of a file, a decoded cut, and the one error. Imports without av."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# T frames, H W pixels, C channels, N samples.


class ClipError(Exception):
    """A clip that cannot be used; the message is one line that says why."""


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. duration_s is the picture's, or the sound's without a picture; 0 for an image.

    has_sound: louder than silence, not merely a track. reason: what could not be used, empty if nothing.
    """

    uri: str
    has_video: bool
    has_audio: bool
    has_sound: bool
    duration_s: float
    width: int
    height: int
    fps: float
    sample_rate: int
    origin_s: float
    reason: str


@dataclass(frozen=True)
class DecodedClip:
    """One cut: uint8 RGB frames and float32 mono samples in [-1, 1], each with its left context in front."""

    video_THWC: np.ndarray | None
    audio_N: np.ndarray | None
    context_frames: int
    context_samples: int
    start_s: float
    end_s: float
